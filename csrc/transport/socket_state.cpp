// Apart from socket.cpp: the kernel's header knows more than the C library's, and they exclude each
// other.
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdint>

#include "transport/socket.h"

namespace pccl::transport {

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
  state.is_waiting = info.tcpi_unacked > 0;
  state.bytes_acknowledged = info.tcpi_bytes_acked;
  state.limited_us = info.tcpi_rwnd_limited + info.tcpi_sndbuf_limited;
  state.sent_segments = info.tcpi_data_segs_out;
  state.resent_segments = info.tcpi_total_retrans;
  state.busy_us = info.tcpi_busy_time - std::min(info.tcpi_busy_time, info.tcpi_rwnd_limited);
  return state;
}

}  // namespace pccl::transport
