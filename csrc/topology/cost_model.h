// Predicts how long a schedule takes, from the same data that the executor runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "topology/schedule.h"

namespace pccl::topology {

// What one link costs (LogGP without the small letters).
struct LinkCost {
  double latency_seconds = 0;   // one way, one small message, wake-up included
  double seconds_per_byte = 0;  // of one transfer alone on the link
};

// All directed links among `world_size` ranks, and what one rank can do at most.
struct Links {
  int32_t world_size = 0;
  std::vector<LinkCost> cost;           // [from * world_size + to]
  double rank_seconds_per_byte = 0;     // all links of one rank together; sending and receiving
                                        // do not slow each other down
  double rank_seconds_per_message = 0;  // CPU for one message at one end
  double reduce_seconds_per_byte = 0;   // combining one received byte
  const LinkCost& at(int32_t from, int32_t to) const {
    return cost[static_cast<size_t>(from) * static_cast<size_t>(world_size) +
                static_cast<size_t>(to)];
  }
};

// Every link alike; the rank's own costs are those of host_links.
Links uniform_links(int32_t world_size, LinkCost cost);
// Ranks with the same host number reach each other by memory, the others by TCP; costs are the
// measured defaults.
Links host_links(const std::vector<int32_t>& host_of_rank);

struct Cost {
  double seconds = 0;
  int32_t steps = 0;               // transfers on the longest dependent path, however many segments
  uint64_t bytes_sent_max = 0;     // by the busiest rank
  uint64_t messages_sent_max = 0;  // by the busiest rank; one a segment
};

// How long `schedule` takes; the model is explained in cost_model.cpp. Equal on every machine with
// IEEE doubles. `block_counts` resolves Chunk::kWholeBlock (all_to_all); empty where no chunk uses
// it. Requires: find_fault() finds nothing in the schedule. Throws std::invalid_argument on links
// of another world size, segments of no bytes, or a missing block count.
//
// Takes about 0.1 us a transfer: 1 us for a ring of 4 ranks, 1 ms for one of 64.
Cost estimate(const Schedule& schedule, const Links& links, uint64_t element_bytes,
              uint64_t segment_bytes, const std::vector<uint64_t>& block_counts = {});

}  // namespace pccl::topology
