// What an endpoint is told, and what it counts.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "transport/handshake.h"
#include "transport/identity.h"

namespace pccl::transport {

// Which TCP connections go through TLS. What stays on this host, in Remote's case, does not.
enum class TlsUse : uint8_t { Never, Remote, Always };

struct EndpointOptions {
  std::string run;
  std::string bind_host;                     // "": every interface
  uint16_t port = 0;                         // 0: any
  bool accepts_calls = true;                 // false: it listens nowhere, and calls the others
  std::string graph;                         // see MemberAddress
  std::vector<std::string> advertise_hosts;  // empty: found by itself
  // TCP sockets per connection, 1..kSocketsMax; 0: one, and as many more as make it faster.
  int sockets = 1;
  // Of TCP sockets to other members. "auto": the kernel's, and BBR where lost packets hold that up;
  // "kernel": the kernel's; else its name. One that this kernel doesn't have is not used.
  std::string congestion_control = "kernel";
  bool shared_memory = true;
  double connect_timeout_seconds = 30;
  // A connection whose sockets break is resumed within this time, if both sides want it and the
  // peer's process lives; 0: never.
  double grace_seconds = 10;
  // A coordinator's: takes callers of every run, those that do not know its member id, and members
  // whose last connection has ended.
  bool accepts_any_run = false;
  // Where a flight record is written when an operation ends in an error; "": nowhere.
  std::string trace_folder;
  TlsUse tls = TlsUse::Remote;
  std::shared_ptr<const Identity> identity;  // null: a new one
  // Who calls through TLS and is welcome: "", else why not. Null: the members whose addresses this
  // endpoint was given. Driver only.
  std::function<std::string(const Hello& hello, const ChannelBinding& channel)> gate;
  // How often one source may call: so many TCP connections at once, then so many a second. 0: no
  // limit.
  double calls_per_second = 0;
  double calls_at_once = 0;
  // Told of every caller that is refused, and why. Driver only.
  std::function<void(const std::string& caller, const std::string& reason)> on_refused;
};
inline constexpr int kSocketsMax = 64;

struct Statistics {
  uint64_t bytes_sent_tcp = 0;
  uint64_t bytes_received_tcp = 0;
  uint64_t bytes_sent_memory = 0;
  uint64_t bytes_received_memory = 0;
  uint64_t connections = 0;
  uint64_t secure_sockets = 0;  // handshakes of TLS that led to a socket in use
  uint64_t refused_keys = 0;    // wrong, unknown or revoked ones, and tokens; as callers
  uint64_t refused_plain = 0;   // plain TCP where TLS is wanted, and the reverse
  uint64_t refused_connections = 0;
  uint64_t refused_rate = 0;         // calls too often, turned away before a byte was read
  uint64_t refused_late = 0;         // no handshake in time, or it was one of too many without one
  uint64_t resumed_connections = 0;  // times that one was without any socket, and had one again
  uint64_t replaced_sockets = 0;
  uint64_t resent_frames = 0;  // of which at least the beginning had left before
  uint64_t resent_bytes = 0;
  uint64_t added_sockets = 0;     // because several were faster
  uint64_t changed_controls = 0;  // times that a connection got another congestion control
  uint64_t probe_bytes = 0;       // sent to see how fast they go
};

}  // namespace pccl::transport
