// The model. A schedule is a graph of values (what one rank holds of one chunk at one stage) and
// transfers between them. A value is complete when all transfers into it have arrived; then the
// transfers out of it start. Three things take turns, each one transfer at a time, in the order in
// which transfers become ready: the sending side of a rank, its receiving side, and a link.
//
// Segments are pipelined: every value has two times, when its first segment is there (`head`) and
// when its last is (`tail`). A transfer starts at the head of its source and ends when the slowest
// of sender, link and receiver has done its bytes, yet never before the source's tail plus the time
// of one more segment. So a path of h hops costs h latencies, h segments, and the bytes once, over
// the slowest hop.
//
// Links that were measured have a model of their own (topology/fluid_cost.h).
//
// Left out on purpose: links share no switch, and a receiver that is booked for a late sender does
// not take an earlier one in between. Good enough to rank algorithms, not to promise seconds.
#include "topology/cost_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <queue>
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/fluid_cost.h"

namespace pccl::topology {
namespace {

constexpr int32_t kNone = -1;

// Times are whole picoseconds in a double. Products are rounded before they are added, so a
// compiler cannot fuse the two, and ranks with different CPUs compute the same bits and choose
// alike.
double picoseconds(double seconds) { return std::round(seconds * 1e12); }

struct Value {
  double head = 0;
  double tail = 0;
  int32_t waits_for = 0;  // transfers that have not arrived
  int32_t steps = 0;      // transfers on the longest path to here
  int32_t first_out = kNone;
};

struct Transfer {
  int32_t from = 0;  // ranks; alike where a rank merely keeps its own value for the next round
  int32_t to = 0;
  int32_t source = 0;  // values
  int32_t target = 0;
  int32_t next_out = kNone;  // another transfer out of `source`
  uint64_t bytes = 0;
  bool combines = false;
};

struct Graph {
  std::vector<Value> values;
  std::vector<Transfer> transfers;
};

// Turns chunks into values and transfers, one after the other.
class GraphBuilder {
 public:
  explicit GraphBuilder(int32_t world_size) : value_of_(static_cast<size_t>(world_size), kNone) {}

  void add(const Chunk& chunk, uint64_t bytes) {
    for (const Edge& edge : chunk.up) connect(edge, value(edge.from), value(edge.to), bytes, true);
    for (const std::vector<Edge>& round : exchange_rounds(chunk)) add_round(chunk, round, bytes);
    // A rank that sent up gets a new value: the final one.
    for (const Edge& edge : chunk.up) value_of_[static_cast<size_t>(edge.from)] = kNone;
    for (const Edge& edge : chunk.down) {
      connect(edge, value(edge.from), value(edge.to), bytes, false);
    }
    for (const int32_t rank : touched_) value_of_[static_cast<size_t>(rank)] = kNone;
    touched_.clear();
  }

  Graph take() { return std::move(graph_); }

 private:
  void add_round(const Chunk& chunk, const std::vector<Edge>& round, uint64_t bytes) {
    std::map<int32_t, int32_t> before;
    for (const int32_t rank : chunk.core) before[rank] = value(rank);
    for (const int32_t rank : chunk.core) value_of_[static_cast<size_t>(rank)] = kNone;
    for (const int32_t rank : chunk.core)
      connect({rank, rank}, before[rank], value(rank), 0, false);
    for (const Edge& edge : round) connect(edge, before[edge.from], value(edge.to), bytes, true);
  }

  int32_t value(int32_t rank) {
    int32_t& index = value_of_[static_cast<size_t>(rank)];
    if (index == kNone) {
      index = static_cast<int32_t>(graph_.values.size());
      graph_.values.emplace_back();
      touched_.push_back(rank);
    }
    return index;
  }

  void connect(Edge edge, int32_t source, int32_t target, uint64_t bytes, bool combines) {
    int32_t& first_out = graph_.values[static_cast<size_t>(source)].first_out;
    const int32_t next_out = first_out;
    first_out = static_cast<int32_t>(graph_.transfers.size());
    graph_.transfers.push_back({edge.from, edge.to, source, target, next_out, bytes, combines});
    ++graph_.values[static_cast<size_t>(target)].waits_for;
  }

  Graph graph_;
  std::vector<int32_t> value_of_;  // [rank], of the chunk and stage at hand
  std::vector<int32_t> touched_;
};

// Runs the transfers of a graph in the order in which they become ready.
class Simulation {
 public:
  Simulation(Graph graph, const Links& links, uint64_t segment_bytes)
      : values_(std::move(graph.values)),
        transfers_(std::move(graph.transfers)),
        links_(links),
        segment_bytes_(segment_bytes),
        message_(picoseconds(links.rank_seconds_per_message)),
        ranks_(static_cast<size_t>(links.world_size)),
        link_free_(links.cost.size()) {}

  Cost run() {
    for (const Value& value : values_) {
      if (value.waits_for == 0) complete(value);
    }
    while (!ready_.empty()) {
      const int32_t index = ready_.top().transfer;
      ready_.pop();
      carry(transfers_[static_cast<size_t>(index)]);
    }
    for (const Rank& rank : ranks_) {
      cost_.bytes_sent_max = std::max(cost_.bytes_sent_max, rank.bytes_sent);
      cost_.messages_sent_max = std::max(cost_.messages_sent_max, rank.messages_sent);
    }
    cost_.seconds = last_ * 1e-12;
    return cost_;
  }

 private:
  struct Rank {
    double send_free = 0;
    double receive_free = 0;
    uint64_t bytes_sent = 0;
    uint64_t messages_sent = 0;
  };

  struct Work {
    double messages;
    double send;
    double receive;
    double link;
    double reduce;
  };

  struct Ready {
    double time;
    // Among equals, near ranks (counted upwards) go first: everyone starts with another receiver,
    // as connections that are served in turn would.
    int32_t distance;
    int32_t transfer;
    bool operator<(const Ready& other) const {  // std::priority_queue takes the largest
      if (time != other.time) return time > other.time;
      if (distance != other.distance) return distance > other.distance;
      return transfer > other.transfer;
    }
  };

  // Adds the transfers out of `value` to those that are ready.
  void complete(const Value& value) {
    last_ = std::max(last_, value.tail);
    cost_.steps = std::max(cost_.steps, value.steps);
    for (int32_t index = value.first_out; index != kNone;) {
      const Transfer& transfer = transfers_[static_cast<size_t>(index)];
      int32_t distance = transfer.to - transfer.from;
      if (distance < 0) distance += links_.world_size;
      ready_.push({value.head, distance, index});
      index = transfer.next_out;
    }
  }

  void carry(const Transfer& transfer) {
    const Value& source = values_[static_cast<size_t>(transfer.source)];
    if (transfer.from == transfer.to) {
      arrive(transfer.target, source.head, source.tail, source.steps);
      return;
    }
    Rank& sender = ranks_[static_cast<size_t>(transfer.from)];
    Rank& receiver = ranks_[static_cast<size_t>(transfer.to)];
    const size_t link =
        static_cast<size_t>(transfer.from) * ranks_.size() + static_cast<size_t>(transfer.to);
    double& link_free = link_free_[link];
    const double latency = picoseconds(links_.cost[link].latency_seconds);
    const uint64_t segments = std::max<uint64_t>(
        1, transfer.bytes / segment_bytes_ + (transfer.bytes % segment_bytes_ != 0));
    const Work all = work(transfer, link, segments, transfer.bytes);
    const Work segment = work(transfer, link, 1, std::min(transfer.bytes, segment_bytes_));

    const double send = std::max(source.head, sender.send_free);
    sender.send_free = send + all.messages + all.send;
    const double wire = std::max(send + segment.messages, link_free);
    link_free = wire + all.link;
    const double sent_head = std::max(send + segment.messages + segment.send, wire + segment.link);
    const double sent_tail =
        std::max({sender.send_free, link_free,
                  source.tail + segment.messages + std::max(segment.send, segment.link)});
    // The receiver works along from the first byte on; what is left to do after the last byte of a
    // segment is to notice and to combine that segment.
    const double receive = std::max(wire + latency, receiver.receive_free);
    receiver.receive_free = receive + all.messages + all.receive + all.reduce;
    const double after = latency + segment.messages + segment.reduce;
    const double head =
        std::max(receive + segment.messages + segment.receive + segment.reduce, sent_head + after);
    const double tail = std::max(receiver.receive_free, sent_tail + after);
    sender.bytes_sent += transfer.bytes;
    sender.messages_sent += segments;
    arrive(transfer.target, head, tail, source.steps + 1);
  }

  // How long `messages` of together `bytes` keep each part of the way busy.
  Work work(const Transfer& transfer, size_t link, uint64_t messages, uint64_t bytes) const {
    const auto byte_count = static_cast<double>(bytes);
    return {
        .messages = std::round(static_cast<double>(messages) * message_),
        .send = picoseconds(byte_count * links_.send_seconds_per_byte(transfer.from)),
        .receive = picoseconds(byte_count * links_.receive_seconds_per_byte(transfer.to)),
        .link = picoseconds(byte_count * links_.cost[link].seconds_per_byte),
        .reduce = transfer.combines ? picoseconds(byte_count * links_.reduce_seconds_per_byte) : 0,
    };
  }

  void arrive(int32_t value_index, double head, double tail, int32_t steps) {
    Value& value = values_[static_cast<size_t>(value_index)];
    value.head = std::max(value.head, head);
    value.tail = std::max(value.tail, tail);
    value.steps = std::max(value.steps, steps);
    if (--value.waits_for == 0) complete(value);
  }

  std::vector<Value> values_;
  std::vector<Transfer> transfers_;
  const Links& links_;
  const uint64_t segment_bytes_;
  const double message_;
  std::vector<Rank> ranks_;
  std::vector<double> link_free_;  // [from * world_size + to]
  std::priority_queue<Ready> ready_;
  double last_ = 0;
  Cost cost_;
};

uint64_t bytes_of(const Chunk& chunk, uint64_t element_bytes,
                  const std::vector<uint64_t>& block_counts) {
  if (chunk.count != Chunk::kWholeBlock) return chunk.count * element_bytes;
  if (chunk.block < block_counts.size()) return block_counts[chunk.block] * element_bytes;
  throw std::invalid_argument("estimate: block " + std::to_string(chunk.block) +
                              " is sent whole, but only " + std::to_string(block_counts.size()) +
                              " block counts are given");
}

}  // namespace

Cost estimate(const Schedule& schedule, const Links& links, uint64_t element_bytes,
              uint64_t segment_bytes, const std::vector<uint64_t>& block_counts) {
  const auto world_size = static_cast<size_t>(std::max(links.world_size, 0));
  if (schedule.world_size != links.world_size || links.cost.size() != world_size * world_size) {
    throw std::invalid_argument("estimate: a schedule for " + std::to_string(schedule.world_size) +
                                " ranks and links for " + std::to_string(links.world_size));
  }
  if (segment_bytes == 0) throw std::invalid_argument("estimate: segment_bytes is 0");
  std::vector<uint64_t> bytes;
  bytes.reserve(schedule.chunks.size());
  for (const Chunk& chunk : schedule.chunks) {
    bytes.push_back(bytes_of(chunk, element_bytes, block_counts));
  }
  if (links.is_measured) return fluid_cost(schedule, links, bytes, segment_bytes);
  GraphBuilder builder(links.world_size);
  for (size_t index = 0; index < bytes.size(); ++index) {
    builder.add(schedule.chunks[index], bytes[index]);
  }
  return Simulation(builder.take(), links, segment_bytes).run();
}

}  // namespace pccl::topology
