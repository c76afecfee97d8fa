// Where a member can be reached: what it publishes for the others, and what they make of it.
#pragma once

#include <sys/socket.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace pccl::transport {

using MemberId = std::array<uint8_t, 16>;  // random, one per endpoint

// SHA-256 of a public key. All zero: none.
using Fingerprint = std::array<uint8_t, 32>;

std::string to_text(const MemberId& id);  // first 8 hex digits

// 4 KiB hold 16 host names of the longest kind; an address is a few hundred bytes.
inline constexpr size_t kAddressBytesMax = 4096;
inline constexpr size_t kHostsMax = 16;

struct MemberAddress {
  MemberId member_id{};
  std::string run;  // members of different runs refuse each other
  std::string
      host_key;  // equal for members that share a kernel and a user; empty: never share memory
  std::string memory_name;         // abstract UNIX socket through which memory is handed over
  uint16_t port = 0;               // TCP; 0: it only connects outwards
  std::vector<std::string> hosts;  // names or numbers, best first
  Fingerprint fingerprint{};       // of its key; zero: it has none, and takes plain bytes only
  std::string graph;               // over which it wants to talk, see shown_graph(); "": every pair

  bool accepts_calls() const { return port != 0; }
  std::vector<std::byte> encode() const;
  // nullopt where the bytes are no address of this protocol version.
  static std::optional<MemberAddress> decode(std::span<const std::byte> bytes);
  std::string describe() const;  // "10.0.0.7:4123"; of port 0 the host alone
};

struct SocketAddress {
  sockaddr_storage storage{};
  socklen_t length = 0;
  std::string describe() const;  // "[::1]:4123"
  bool operator==(const SocketAddress& other) const;
  // Whether its host is `host`, a number; names are nobody's.
  bool has_host(const std::string& host) const;
  bool is_loopback() const;
  void set_port(uint16_t port);
};

// All socket addresses behind `address`, best first; asks DNS, so it may block. Empty if no name
// resolves.
std::vector<SocketAddress> resolve(const MemberAddress& address);
std::vector<SocketAddress> resolve(const std::string& host, uint16_t port);

// This kernel (boot), network namespace and user, as text.
std::string local_host_key();
// Addresses of this machine's interfaces that are up, global ones first, loopback last.
std::vector<std::string> local_hosts();

}  // namespace pccl::transport
