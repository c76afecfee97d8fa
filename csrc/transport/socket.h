// System calls on sockets, with errors as words.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "transport/address.h"

namespace pccl::transport {

// Listens on `host` ("": every interface, IPv6 and IPv4) and `port` (0: any). Throws ConnectError.
FileDescriptor listen_tcp(const std::string& host, uint16_t port);
// Listens on an abstract UNIX socket, which vanishes with the process. Throws ConnectError.
FileDescriptor listen_memory(const std::string& name);
uint16_t local_port(int socket);
// The other end of a connected socket; IPv4 as such also where it came through an IPv6 listener.
SocketAddress remote_address(int socket);

// Starts a connection; connected() tells when EPOLLOUT comes. Empty and `error` on failure.
FileDescriptor begin_connect(const SocketAddress& address, std::string& error);
FileDescriptor connect_memory(const std::string& name, std::string& error);
// "" once a begun connection is there, else why it failed.
std::string connect_error(int socket);

// Of a connected socket: no Nagle; keepalive, so that a silent death is noticed while nothing is
// being sent; a small buffer where both ends are on one host.
void set_stream_options(int socket);

// Besides: silence is noticed within seconds also while nothing is being sent, for connections that
// can be had again.
void set_resumable_options(int socket);

// What the kernel knows of a connected TCP socket.
struct SocketState {
  double round_trip_seconds = 0;         // smoothed; 0: not measured
  double round_trip_seconds_min = 0;     // lately
  double delivery_bytes_per_second = 0;  // the kernel's: over a round trip that was full
  double deviation_seconds = 0;          // of the round trip
  double heard_seconds = 0;              // since anything came from the other side
  bool is_ramping = false;               // BBR is at its beginning: see Pacing
  double bbr_bytes_per_second = 0;       // that it found there; 0: not yet, or it is not used
  bool is_recovering = false;            // from losses: less than a window is under way
  bool is_waiting = false;  // something was sent that the other kernel has not acknowledged
  uint64_t bytes_acknowledged = 0;
  uint64_t busy_us = 0;  // this and the next ones: see LinkState
  uint64_t window_limited_us = 0;
  uint64_t buffer_limited_us = 0;
  uint64_t buffer_bytes = 0;
  uint64_t delivered_bytes = 0;  // also behind gaps
  uint64_t sent_segments = 0;
  uint64_t resent_segments = 0;
};
SocketState socket_state(int socket);

// What the kernel takes beyond what it sends, where the other end is on another host: so much at
// first. More would only make what comes behind it wait there.
inline constexpr uint32_t kUnsentBytesMax = 256 << 10;
bool set_unsent_max(int socket, uint32_t bytes);

// A TCP socket sends no faster from now on; UINT64_MAX: as fast as its congestion control says.
bool set_pacing(int socket, uint64_t bytes_per_second);

// The name of a TCP socket's congestion control; "" if unknown. Another one: false if this kernel
// does not have it, or not for this user.
std::string congestion_control(int socket);
bool set_congestion_control(int socket, const std::string& name);
// BBR begins anew on a socket that uses it; false if this process can't have that.
bool renew_bbr(int socket);

// Sends `bytes` with file descriptors attached (UNIX sockets); false if the socket did not take all
// of it.
bool send_all(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors = {});
// Receives up to `size` bytes and any descriptors. >0 bytes, 0 nothing now, -1 end or error.
long receive_with_descriptors(int socket, std::byte* target, size_t size,
                              std::vector<FileDescriptor>& descriptors);
// The user at the other end of a UNIX socket, -1 if unknown.
int64_t peer_user(int socket);

}  // namespace pccl::transport
