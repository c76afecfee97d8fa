// Apart from socket.cpp: the kernel's header knows more than the C library's, and they exclude each
// other.
#include <linux/inet_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>

#include "transport/socket.h"

namespace pccl::transport {
namespace {

// BBR sends so many times as fast as it has seen bytes arrive while it looks for the rate: 2.89.
// Before the first acknowledgement the kernel says 0.
constexpr uint32_t kRampingGain = 5 * 256 / 2;

// TCP_CA_Disorder: something is out of order. Above it the kernel makes the window smaller.
constexpr uint8_t kDisorder = 1;

void add_bbr(int socket, SocketState& state) {
  tcp_bbr_info info{};
  socklen_t length = sizeof(info);
  if (getsockopt(socket, IPPROTO_TCP, TCP_CC_INFO, &info, &length) != 0 || length != sizeof(info))
    return;
  state.is_ramping = info.bbr_pacing_gain == 0 || info.bbr_pacing_gain > kRampingGain;
  if (state.is_ramping) return;
  state.bbr_bytes_per_second =
      static_cast<double>(uint64_t{info.bbr_bw_hi} << 32 | uint64_t{info.bbr_bw_lo});
}

uint64_t send_buffer(int socket) {
  int bytes = 0;
  socklen_t length = sizeof(bytes);
  getsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, &length);
  return static_cast<uint64_t>(std::max(bytes, 0));
}

}  // namespace

SocketState socket_state(int socket) {
  tcp_info info{};
  socklen_t length = sizeof(info);
  if (getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return {};
  SocketState state;
  state.round_trip_seconds = info.tcpi_rtt * 1e-6;
  state.round_trip_seconds_min = info.tcpi_min_rtt == UINT32_MAX ? 0 : info.tcpi_min_rtt * 1e-6;
  state.deviation_seconds = info.tcpi_rttvar * 1e-6;
  state.heard_seconds = std::min(info.tcpi_last_ack_recv, info.tcpi_last_data_recv) * 1e-3;
  state.delivery_bytes_per_second = static_cast<double>(info.tcpi_delivery_rate);
  state.is_recovering = info.tcpi_ca_state > kDisorder;
  state.is_waiting = info.tcpi_unacked > 0;
  state.bytes_acknowledged = info.tcpi_bytes_acked;
  state.window_limited_us = info.tcpi_rwnd_limited;
  state.buffer_limited_us = info.tcpi_sndbuf_limited;
  state.buffer_bytes = send_buffer(socket);
  state.delivered_bytes = uint64_t{info.tcpi_delivered} * info.tcpi_snd_mss;
  state.sent_segments = info.tcpi_data_segs_out;
  state.resent_segments = info.tcpi_total_retrans;
  state.busy_us = info.tcpi_busy_time - std::min(info.tcpi_busy_time, info.tcpi_rwnd_limited);
  add_bbr(socket, state);
  return state;
}

bool set_pacing(int socket, uint64_t bytes_per_second) {
  return setsockopt(socket, SOL_SOCKET, SO_MAX_PACING_RATE, &bytes_per_second,
                    sizeof(bytes_per_second)) == 0;
}

}  // namespace pccl::transport
