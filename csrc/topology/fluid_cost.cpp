#include "topology/fluid_cost.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

namespace pccl::topology {
namespace {

// What reaches a rank along the slowest path of a chunk: of its first segment.
struct Arrival {
  double seconds = 0;      // latencies, and the bytes on every hop
  double slowest_hop = 0;  // of them the bytes on the slowest hop
  int32_t steps = 0;
  double total() const { return seconds - slowest_hop; }
};

class FluidCost {
 public:
  FluidCost(const Links& links, uint64_t segment_bytes)
      : links_(links),
        segment_bytes_(segment_bytes),
        ranks_(static_cast<size_t>(links.world_size)),
        sent_(ranks_),
        received_(ranks_),
        carried_(ranks_ * ranks_) {}

  void add(const Chunk& chunk, uint64_t bytes) {
    std::vector<Arrival> arrivals(ranks_);
    for (const Edge& edge : chunk.up) pass(edge, bytes, arrivals, arrivals);
    for (const std::vector<Edge>& round : exchange_rounds(chunk)) {
      const std::vector<Arrival> before = arrivals;
      for (const Edge& edge : round) pass(edge, bytes, before, arrivals);
    }
    // What went up says nothing about when the final comes down.
    std::vector<Arrival> finals(ranks_);
    for (const int32_t rank : chunk.core) {
      finals[static_cast<size_t>(rank)] = arrivals[static_cast<size_t>(rank)];
    }
    for (const Edge& edge : chunk.down) pass(edge, bytes, finals, finals);
    for (const auto* reached : {&arrivals, &finals}) {
      for (const Arrival& arrival : *reached) {
        longest_ = std::max(longest_, arrival.total());
        cost_.steps = std::max(cost_.steps, arrival.steps);
      }
    }
  }

  Cost result() {
    double busiest = 0;
    for (size_t from = 0; from < ranks_; ++from) {
      const auto rank = static_cast<int32_t>(from);
      busiest = std::max({busiest, seconds(sent_[from], links_.send_seconds_per_byte(rank)),
                          seconds(received_[from], links_.receive_seconds_per_byte(rank))});
      cost_.bytes_sent_max = std::max(cost_.bytes_sent_max, sent_[from].bytes);
      cost_.messages_sent_max = std::max(cost_.messages_sent_max, sent_[from].messages);
      for (size_t to = 0; to < ranks_; ++to) {
        const Load& load = carried_[from * ranks_ + to];
        if (load.bytes == 0) continue;
        const LinkCost& link = links_.at(rank, static_cast<int32_t>(to));
        busiest = std::max(busiest, static_cast<double>(load.bytes) * link.seconds_per_byte);
      }
    }
    // Whole picoseconds, as in the other model.
    cost_.seconds = std::round((busiest + longest_) * 1e12) * 1e-12;
    return cost_;
  }

 private:
  struct Load {
    uint64_t bytes = 0;
    uint64_t messages = 0;
  };

  double seconds(const Load& load, double seconds_per_byte) const {
    return static_cast<double>(load.bytes) * seconds_per_byte +
           static_cast<double>(load.messages) * links_.rank_seconds_per_message;
  }

  void pass(const Edge& edge, uint64_t bytes, const std::vector<Arrival>& before,
            std::vector<Arrival>& after) {
    const auto from = static_cast<size_t>(edge.from);
    const auto to = static_cast<size_t>(edge.to);
    const uint64_t messages = bytes / segment_bytes_ + (bytes % segment_bytes_ != 0);
    for (Load* load : {&sent_[from], &received_[to], &carried_[from * ranks_ + to]}) {
      load->bytes += bytes;
      load->messages += messages;
    }
    const LinkCost& link = links_.at(edge.from, edge.to);
    const double hop = static_cast<double>(std::min(bytes, segment_bytes_)) *
                       std::max({link.seconds_per_byte, links_.send_seconds_per_byte(edge.from),
                                 links_.receive_seconds_per_byte(edge.to)});
    Arrival arrival = before[from];
    arrival.seconds += link.latency_seconds + 2 * links_.rank_seconds_per_message + hop;
    arrival.slowest_hop = std::max(arrival.slowest_hop, hop);
    ++arrival.steps;
    Arrival& place = after[to];
    const int32_t steps = std::max(place.steps, arrival.steps);
    if (arrival.total() > place.total()) place = arrival;
    place.steps = steps;
  }

  const Links& links_;
  const uint64_t segment_bytes_;
  const size_t ranks_;
  std::vector<Load> sent_;
  std::vector<Load> received_;
  std::vector<Load> carried_;  // [from * ranks + to]
  double longest_ = 0;
  Cost cost_;
};

}  // namespace

Cost fluid_cost(const Schedule& schedule, const Links& links, std::span<const uint64_t> bytes,
                uint64_t segment_bytes) {
  FluidCost cost(links, segment_bytes);
  for (size_t index = 0; index < bytes.size(); ++index) {
    cost.add(schedule.chunks[index], bytes[index]);
  }
  return cost.result();
}

}  // namespace pccl::topology
