// Predicts how long a schedule takes, from the same data that the executor runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "topology/schedule.h"

namespace pccl::topology {

// What one link costs (LogGP without the small letters).
struct LinkCost {
  double latency_seconds = 0;   // one way, one small message, wake-up included
  double seconds_per_byte = 0;  // of one transfer alone on the link; kNoLink: may carry nothing
};

inline constexpr double kNoLink = std::numeric_limits<double>::infinity();

// All directed links among `world_size` ranks, and what one rank can do at most.
struct Links {
  int32_t world_size = 0;
  std::vector<LinkCost> cost;           // [from * world_size + to]
  double rank_seconds_per_byte = 0;     // all links of one rank together; sending and receiving
                                        // do not slow each other down
  double rank_seconds_per_message = 0;  // CPU for one message at one end
  double reduce_seconds_per_byte = 0;   // combining one received byte
  // What all links of a rank carry together, if that is less: [rank], or empty.
  std::vector<double> out_seconds_per_byte;
  std::vector<double> in_seconds_per_byte;
  // The figures are those of this network and no defaults: schedules are made to measure.
  bool is_measured = false;

  bool connects(int32_t from, int32_t to) const {
    return from != to && at(from, to).seconds_per_byte < kNoLink;
  }
  double send_seconds_per_byte(int32_t rank) const { return capped(out_seconds_per_byte, rank); }
  double receive_seconds_per_byte(int32_t rank) const { return capped(in_seconds_per_byte, rank); }
  const LinkCost& at(int32_t from, int32_t to) const {
    return cost[static_cast<size_t>(from) * static_cast<size_t>(world_size) +
                static_cast<size_t>(to)];
  }

 private:
  double capped(const std::vector<double>& caps, int32_t rank) const {
    const double cap = caps.empty() ? 0 : caps[static_cast<size_t>(rank)];
    return cap > rank_seconds_per_byte ? cap : rank_seconds_per_byte;
  }
};

// Every link alike; the rank's own costs are those of host_links.
Links uniform_links(int32_t world_size, LinkCost cost);
// Ranks with the same host number reach each other by memory, the others by TCP; costs are the
// measured defaults.
Links host_links(const std::vector<int32_t>& host_of_rank, bool is_one_machine = true);

// Figures of a network, in bytes a second and seconds. [from * world_size + to]: what a pair gets
// alone, 0 where it may carry nothing; its diagonal is not read. [rank]: what a rank sends and
// receives at most on all its links together; infinite: no cap.
struct Measurement {
  int32_t world_size = 0;
  std::vector<double> bytes_per_second;
  std::vector<double> latency_seconds;       // one way; empty: 0
  std::vector<double> out_bytes_per_second;  // empty: no caps
  std::vector<double> in_bytes_per_second;
};

// Throws std::invalid_argument that names the figure which is none: a wrong number of them, NaN, a
// negative one, a cap of 0.
Links measured_links(const Measurement& measurement);

// The links among some of the ranks, which are counted anew in this order.
Links links_among(const Links& all, std::span<const int32_t> ranks);

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
