#include "topology/ring_search.h"

#include <algorithm>
#include <numeric>
#include <span>
#include <utility>

#include "topology/plan_parts.h"

namespace pccl::topology {
namespace {

constexpr int32_t kExactMax = 12;

double slowness(const Links& links, int32_t from, int32_t to) {
  return links.at(from, to).seconds_per_byte;
}

// Held and Karp over subsets that begin at rank 0. `join` extends the cost of a path by an edge.
template <typename Join>
std::vector<int32_t> exact_ring(int32_t n, const Join& join, double& best) {
  const auto ranks = static_cast<size_t>(n);
  const size_t subsets = size_t{1} << (ranks - 1);  // of ranks 1..n-1
  std::vector<double> cost(subsets * ranks, kNoLink);
  std::vector<int32_t> before(subsets * ranks, -1);
  for (size_t subset = 1; subset < subsets; ++subset) {
    for (size_t last = 1; last < ranks; ++last) {
      const size_t bit = size_t{1} << (last - 1);
      if ((subset & bit) == 0) continue;
      double& here = cost[subset * ranks + last];
      if (subset == bit) here = join(0.0, 0, static_cast<int32_t>(last));
      for (size_t other = 1; other < ranks; ++other) {
        if (other == last || (subset >> (other - 1) & 1) == 0) continue;
        const double through = join(cost[(subset ^ bit) * ranks + other],
                                    static_cast<int32_t>(other), static_cast<int32_t>(last));
        if (through >= here) continue;
        here = through;
        before[subset * ranks + last] = static_cast<int32_t>(other);
      }
    }
  }
  best = kNoLink;
  int32_t end = -1;
  for (size_t last = 1; last < ranks; ++last) {
    const double closed = join(cost[(subsets - 1) * ranks + last], static_cast<int32_t>(last), 0);
    if (closed >= best) continue;
    best = closed;
    end = static_cast<int32_t>(last);
  }
  std::vector<int32_t> order;
  for (size_t subset = subsets - 1; end >= 0;) {
    order.push_back(end);
    const auto last = static_cast<size_t>(end);
    end = before[subset * ranks + last];
    subset ^= size_t{1} << (last - 1);
  }
  if (!order.empty()) order.push_back(0);
  std::reverse(order.begin(), order.end());
  return order;
}

std::vector<int32_t> exact_order(const Links& links) {
  double slowest = 0;
  const auto bottleneck = [&links](double cost, int32_t from, int32_t to) {
    return std::max(cost, slowness(links, from, to));
  };
  if (exact_ring(links.world_size, bottleneck, slowest).empty() || slowest >= kNoLink) return {};
  double latency = 0;
  return exact_ring(
      links.world_size,
      [&links, slowest](double cost, int32_t from, int32_t to) {
        return slowness(links, from, to) > slowest ? kNoLink
                                                   : cost + links.at(from, to).latency_seconds;
      },
      latency);
}

// A sum of high powers is ruled by its largest part, and still falls when a smaller one does.
class RingImprover {
 public:
  explicit RingImprover(const Links& links)
      : links_(links), ranks_(static_cast<size_t>(links.world_size)), penalty_(ranks_ * ranks_) {
    double fastest = kNoLink;
    for (const LinkCost& cost : links.cost) {
      if (cost.seconds_per_byte > 0) fastest = std::min(fastest, cost.seconds_per_byte);
    }
    for (size_t link = 0; link < penalty_.size(); ++link) {
      double power = std::min(links.cost[link].seconds_per_byte / fastest, kMissing);
      for (int32_t doubling = 0; doubling < 3; ++doubling) power *= power;
      penalty_[link] = power;
    }
  }

  // Takes a run of ranks out and puts it elsewhere, either way round, while that helps.
  std::vector<int32_t> improve(std::vector<int32_t> order) const {
    constexpr int32_t kPassesMax = 50;
    for (int32_t pass = 0; pass < kPassesMax; ++pass) {
      bool is_better = false;
      for (size_t length = 1; length + 1 < ranks_; length = length < 3 ? length + 1 : 2 * length) {
        for (size_t begin = 0; begin < ranks_; ++begin) is_better |= move_run(order, begin, length);
      }
      if (!is_better) break;
    }
    std::rotate(order.begin(), std::find(order.begin(), order.end(), 0), order.end());
    return order;
  }

  bool is_closed(const std::vector<int32_t>& order) const {
    for (size_t place = 0; place < ranks_; ++place) {
      if (!links_.connects(order[place], order[(place + 1) % ranks_])) return false;
    }
    return true;
  }

 private:
  static constexpr double kMissing = 1e30;  // its eighth power is finite

  double penalty(int32_t from, int32_t to) const {
    return penalty_[static_cast<size_t>(from) * ranks_ + static_cast<size_t>(to)];
  }

  double total(const std::vector<int32_t>& order) const {
    double sum = 0;
    for (size_t place = 0; place < ranks_; ++place) {
      sum += penalty(order[place], order[(place + 1) % ranks_]);
    }
    return sum;
  }

  bool move_run(std::vector<int32_t>& order, size_t begin, size_t length) const {
    std::rotate(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(begin), order.end());
    const auto run_end = order.begin() + static_cast<std::ptrdiff_t>(length);
    std::vector<int32_t> run(order.begin(), run_end);
    const std::vector<int32_t> rest(run_end, order.end());
    std::vector<int32_t> best = order;
    double best_total = total(order) * (1 - 1e-12);
    const double before = best_total;
    for (const bool is_turned : {false, true}) {
      if (is_turned) std::reverse(run.begin(), run.end());
      for (size_t place = 1; place <= rest.size(); ++place) {
        std::vector<int32_t> moved(rest.begin(), rest.begin() + static_cast<std::ptrdiff_t>(place));
        moved.insert(moved.end(), run.begin(), run.end());
        moved.insert(moved.end(), rest.begin() + static_cast<std::ptrdiff_t>(place), rest.end());
        const double sum = total(moved);
        if (sum >= best_total) continue;
        best = std::move(moved);
        best_total = sum;
      }
    }
    order = std::move(best);
    return best_total < before;
  }

  const Links& links_;
  const size_t ranks_;
  std::vector<double> penalty_;  // [from * ranks + to]
};

std::vector<int32_t> greedy_order(const Links& links) {
  std::vector<int32_t> order(static_cast<size_t>(links.world_size));
  std::iota(order.begin(), order.end(), 0);
  for (size_t next = 1; next < order.size(); ++next) {
    const auto fastest = std::min_element(order.begin() + static_cast<std::ptrdiff_t>(next),
                                          order.end(), [&](int32_t left, int32_t right) {
                                            return slowness(links, order[next - 1], left) <
                                                   slowness(links, order[next - 1], right);
                                          });
    std::iter_swap(order.begin() + static_cast<std::ptrdiff_t>(next), fastest);
  }
  return order;
}

void add_chains(std::span<const int32_t> order, std::vector<TreePair>& trees) {
  for (size_t position = 0; position < order.size(); ++position) {
    trees.push_back(
        {order[position], path_edges(order, position + 1), path_edges(order, position), 0});
  }
}

}  // namespace

std::vector<int32_t> bottleneck_ring(const Links& links) {
  if (links.world_size == 1) return {0};
  if (links.world_size <= kExactMax) return exact_order(links);
  const RingImprover improver(links);
  std::vector<int32_t> order = improver.improve(greedy_order(links));
  if (!improver.is_closed(order)) order.clear();
  return order;
}

std::vector<TreePair> pack_rings(const Links& links) {
  constexpr int32_t kRings = 3;
  std::vector<TreePair> trees;
  Links free = links;
  for (int32_t ring = 0; ring < kRings; ++ring) {
    std::vector<int32_t> order = bottleneck_ring(free);
    if (order.empty()) break;
    add_chains(order, trees);
    std::reverse(order.begin(), order.end());
    bool goes_back = links.world_size > 2;
    for (const Edge& edge : path_edges(order, 0)) goes_back &= links.connects(edge.from, edge.to);
    goes_back = goes_back && links.connects(order.back(), order.front());
    if (goes_back) add_chains(order, trees);
    for (size_t place = 0; place < order.size(); ++place) {
      const auto left = static_cast<size_t>(order[place]);
      const auto right = static_cast<size_t>(order[(place + 1) % order.size()]);
      free.cost[left * order.size() + right].seconds_per_byte = kNoLink;
      free.cost[right * order.size() + left].seconds_per_byte = kNoLink;
    }
    if (links.world_size <= 2) break;
  }
  set_rates(trees, capacities(links));
  std::erase_if(trees, [](const TreePair& tree) { return tree.rate <= 0; });
  return trees;
}

}  // namespace pccl::topology
