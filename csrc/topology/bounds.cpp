#include "topology/bounds.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "topology/capacities.h"

namespace pccl::topology {
namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();

// Stands for "no limit", so that sums and quotients stay numbers.
constexpr double kFastest = 1e15;

// Maximal flow between two nodes by Dinic's algorithm: level graphs and blocking flows.
class FlowNetwork {
 public:
  explicit FlowNetwork(size_t node_count) : arcs_of_(node_count) {}

  void add_arc(size_t from, size_t to, double capacity) {
    if (capacity <= 0) return;
    arcs_of_[from].push_back(arcs_.size());
    arcs_.push_back({to, capacity, capacity});
    arcs_of_[to].push_back(arcs_.size());
    arcs_.push_back({from, 0, 0});
    tolerance_ = std::max(tolerance_, capacity * 1e-12);
  }

  double max_flow(size_t source, size_t target) {
    for (Arc& arc : arcs_) arc.left = arc.capacity;
    double flow = 0;
    while (find_levels(source, target)) {
      next_.assign(arcs_of_.size(), 0);
      for (double pushed = kInfinite; pushed > 0;) {
        pushed = push(source, target, kInfinite);
        flow += pushed;
      }
    }
    return flow;
  }

 private:
  struct Arc {
    size_t to;
    double capacity;
    double left;
  };

  bool find_levels(size_t source, size_t target) {
    level_.assign(arcs_of_.size(), -1);
    level_[source] = 0;
    std::vector<size_t> queue = {source};
    for (size_t head = 0; head < queue.size(); ++head) {
      for (const size_t index : arcs_of_[queue[head]]) {
        const Arc& arc = arcs_[index];
        if (arc.left <= tolerance_ || level_[arc.to] >= 0) continue;
        level_[arc.to] = level_[queue[head]] + 1;
        queue.push_back(arc.to);
      }
    }
    return level_[target] >= 0;
  }

  // One path's flow along ascending levels, at most `limit`. The depth is at most the node count.
  // NOLINTNEXTLINE(misc-no-recursion)
  double push(size_t node, size_t target, double limit) {
    if (node == target) return limit;
    for (size_t& next = next_[node]; next < arcs_of_[node].size(); ++next) {
      const size_t index = arcs_of_[node][next];
      Arc& arc = arcs_[index];
      if (arc.left <= tolerance_ || level_[arc.to] != level_[node] + 1) continue;
      const double pushed = push(arc.to, target, std::min(limit, arc.left));
      if (pushed <= 0) continue;
      arc.left -= pushed;
      arcs_[index ^ 1].left += pushed;
      return pushed;
    }
    return 0;
  }

  std::vector<std::vector<size_t>> arcs_of_;  // [node]; arc 2 k + 1 is the way back of arc 2 k
  std::vector<Arc> arcs_;
  std::vector<int32_t> level_;
  std::vector<size_t> next_;
  double tolerance_ = 0;
};

// Each rank is three nodes: all it receives passes from `in` to `core`, all it sends from `core` to
// `out`.
double smallest_cut(const Capacities& capacity) {
  const size_t ranks = capacity.world_size;
  FlowNetwork network(3 * ranks);
  for (size_t rank = 0; rank < ranks; ++rank) {
    network.add_arc(ranks + rank, rank, capacity.of[capacity.in(rank)]);
    network.add_arc(rank, 2 * ranks + rank, capacity.of[capacity.out(rank)]);
    for (size_t to = 0; to < ranks; ++to) {
      network.add_arc(2 * ranks + rank, ranks + to, capacity.of[capacity.link(rank, to)]);
    }
  }
  // A cut parts rank 0 from somebody.
  double smallest = kInfinite;
  for (size_t rank = 1; rank < ranks; ++rank) {
    smallest = std::min({smallest, network.max_flow(0, rank), network.max_flow(rank, 0)});
  }
  return smallest;
}

double total(const Capacities& capacity, bool sends) {
  double sum = 0;
  for (size_t rank = 0; rank < capacity.world_size; ++rank) {
    double links = 0;
    for (size_t other = 0; other < capacity.world_size; ++other) {
      links += capacity.of[sends ? capacity.link(rank, other) : capacity.link(other, rank)];
    }
    sum += std::min(links, capacity.of[sends ? capacity.out(rank) : capacity.in(rank)]);
  }
  return sum;
}

double rate(double seconds_per_byte) {
  return seconds_per_byte * kFastest > 1 ? 1 / seconds_per_byte : kFastest;
}

}  // namespace

Capacities capacities(const Links& links) {
  const auto ranks = static_cast<size_t>(std::max(links.world_size, 0));
  if (links.cost.size() != ranks * ranks) {
    throw std::invalid_argument("capacities: " + std::to_string(links.cost.size()) +
                                " links among " + std::to_string(links.world_size) + " ranks");
  }
  Capacities capacity{.world_size = ranks, .of = std::vector<double>(ranks * (ranks + 2))};
  for (int32_t rank = 0; rank < links.world_size; ++rank) {
    const auto from = static_cast<size_t>(rank);
    capacity.of[capacity.out(from)] = rate(links.send_seconds_per_byte(rank));
    capacity.of[capacity.in(from)] = rate(links.receive_seconds_per_byte(rank));
    for (int32_t to = 0; to < links.world_size; ++to) {
      if (!links.connects(rank, to)) continue;
      capacity.of[capacity.link(from, static_cast<size_t>(to))] =
          rate(std::max({links.at(rank, to).seconds_per_byte, links.send_seconds_per_byte(rank),
                         links.receive_seconds_per_byte(to)}));
    }
  }
  return capacity;
}

void require_connected(const Links& links, const std::string& planner) {
  // Everybody is reached from rank 0, and reaches it.
  for (const bool forwards : {true, false}) {
    std::vector<int32_t> reached = {0};
    std::vector<bool> seen(static_cast<size_t>(links.world_size));
    seen[0] = true;
    for (size_t head = 0; head < reached.size(); ++head) {
      for (int32_t rank = 0; rank < links.world_size; ++rank) {
        const bool is_next =
            forwards ? links.connects(reached[head], rank) : links.connects(rank, reached[head]);
        if (!is_next || seen[static_cast<size_t>(rank)]) continue;
        seen[static_cast<size_t>(rank)] = true;
        reached.push_back(rank);
      }
    }
    for (int32_t rank = 0; rank < links.world_size; ++rank) {
      if (seen[static_cast<size_t>(rank)]) continue;
      throw std::invalid_argument(
          planner + ": the links are not connected, there is no way from rank " +
          std::to_string(forwards ? 0 : rank) + " to rank " + std::to_string(forwards ? rank : 0));
    }
  }
}

Bounds all_reduce_bounds(const Links& links) {
  const Capacities capacity = capacities(links);
  if (capacity.world_size < 2) return {kInfinite, kInfinite};
  const double messages = 2 * static_cast<double>(capacity.world_size - 1);
  Bounds bounds;
  bounds.cut = smallest_cut(capacity);
  bounds.sum = std::min(total(capacity, true), total(capacity, false)) / messages;
  if (bounds.cut <= 0) bounds.sum = 0;
  return bounds;
}

}  // namespace pccl::topology
