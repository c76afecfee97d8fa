// What has gone over a connection since it began.
#pragma once

#include <cstdint>

#include "transport/address.h"

namespace pccl::transport {

struct Traffic {
  uint64_t bytes_sent = 0;  // headers included
  uint64_t bytes_received = 0;
  uint64_t resent_frames = 0;
  uint64_t resent_bytes = 0;
  uint32_t replaced_sockets = 0;
  // Of sockets that are gone: see LinkState.
  uint64_t busy_us = 0;
  uint64_t full_us = 0;
  uint64_t delivered_bytes = 0;
  // For so long bytes came in, one a round trip after the other at the latest: the sender had
  // something under way all that time.
  uint64_t receiving_us = 0;
};

// What the kernel knows of a socket now.
struct LinkState {
  // For so long something was under way that the network had not delivered yet; the time for which
  // the reader took nothing is left out.
  uint64_t busy_us = 0;
  uint64_t full_us = 0;           // for so long there was more to send than it took
  uint64_t delivered_bytes = 0;   // that the other kernel has
  double round_trip_seconds = 0;  // 0: not measured
  double round_trip_seconds_min = 0;
  double delivery_bytes_per_second = 0;  // over its last round trip that was full; 0: not measured
  // More could have been under way, and a buffer was full: the reader's; the own one, as far as the
  // kernel can tell.
  uint64_t window_limited_us = 0;
  uint64_t buffer_limited_us = 0;
  uint64_t buffer_bytes = 0;  // of the own one, bookkeeping included
  uint64_t sent_segments = 0;
  uint64_t resent_segments = 0;
};

// Of one connection, as its member reports it.
struct LinkTraffic {
  MemberId to{};
  uint64_t bytes_sent = 0;
  uint64_t busy_us = 0;  // 0: memory, or nothing was sent
  uint64_t delivered_bytes = 0;
  uint64_t received_bytes = 0;
  uint64_t receiving_us = 0;
  uint64_t full_us = 0;                  // as in LinkState
  double delivery_bytes_per_second = 0;  // as in LinkState
  double round_trip_seconds = 0;
  double round_trip_seconds_min = 0;  // without what waits in queues
  uint32_t replaced_sockets = 0;
};

}  // namespace pccl::transport
