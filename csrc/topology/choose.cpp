// The choice among planners: plan every candidate, keep the one that the cost model likes best.
#include <algorithm>
#include <array>
#include <functional>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "topology/capacities.h"
#include "topology/planners.h"

namespace pccl::topology {
namespace {

// Names of parts of Routes.
constexpr std::array<std::string_view, 4> kTreeAlgorithms = {"packed_trees", "rings",
                                                             "hierarchical", "quickest_tree"};

// Of an exchange at once over links that were not measured.
constexpr uint64_t kBlindBytesMax = 4 << 10;

struct Candidate {
  std::string_view algorithm;
  std::function<Schedule()> plan;
  bool is_for_auto = true;  // of the first candidate always
};

// The first edge of `schedule` over a link that does not exist.
std::optional<Edge> missing_link(const Schedule& schedule, const Links& links) {
  for (const Chunk& chunk : schedule.chunks) {
    for (const auto* edges : {&chunk.up, &chunk.down}) {
      for (const Edge& edge : *edges) {
        if (!links.connects(edge.from, edge.to)) return edge;
      }
    }
    for (const std::vector<Edge>& round : exchange_rounds(chunk)) {
      for (const Edge& edge : round) {
        if (!links.connects(edge.from, edge.to)) return edge;
      }
    }
  }
  return std::nullopt;
}

Schedule choose_by_name(const std::vector<Candidate>& candidates, std::string_view algorithm,
                        const Links& links, const std::string& operation) {
  std::string names = "auto";
  for (const Candidate& candidate : candidates) {
    names.append(", ").append(candidate.algorithm);
    if (candidate.algorithm != algorithm) continue;
    Schedule schedule = candidate.plan();
    if (const auto edge = missing_link(schedule, links)) {
      throw std::invalid_argument(operation + ": algorithm \"" + std::string(algorithm) +
                                  "\" needs a link from rank " + std::to_string(edge->from) +
                                  " to rank " + std::to_string(edge->to) +
                                  ", which does not exist");
    }
    return schedule;
  }
  throw std::invalid_argument(operation + ": unknown algorithm \"" + std::string(algorithm) +
                              "\"; there are: " + names);
}

// The candidate named `algorithm`, or for "auto" the cheapest; of equals the one listed first.
Schedule choose(const std::vector<Candidate>& candidates, std::string_view algorithm,
                const Links& links, uint64_t element_bytes, const std::string& operation) {
  if (algorithm != "auto") return choose_by_name(candidates, algorithm, links, operation);
  Schedule best;
  double best_seconds = 0;
  for (const Candidate& candidate : candidates) {
    if (!candidate.is_for_auto) continue;
    Schedule schedule = candidate.plan();
    const double seconds = estimate(schedule, links, element_bytes, kSegmentBytesAssumed).seconds;
    if (best.world_size == 0 || seconds < best_seconds) {
      best = std::move(schedule);
      best_seconds = seconds;
    }
  }
  if (links.is_measured && missing_link(best, links)) {
    throw std::invalid_argument(operation + ": no algorithm does without links that do not exist");
  }
  return best;
}

bool needs_routes(std::string_view algorithm) {
  return std::find(kTreeAlgorithms.begin(), kTreeAlgorithms.end(), algorithm) !=
         kTreeAlgorithms.end();
}

// Whether latency outweighs what a few messages more cost a rank. Within a machine ranks share its
// cores, which the cost model does not know.
bool has_long_links(const Links& links) {
  constexpr double kLongSeconds = 50e-6;
  return std::any_of(links.cost.begin(), links.cost.end(),
                     [](const LinkCost& cost) { return cost.latency_seconds >= kLongSeconds; });
}

void require_blocks(const Links& links, std::span<const uint64_t> block_counts,
                    const char* operation) {
  if (block_counts.size() == static_cast<size_t>(std::max(links.world_size, 0))) return;
  throw std::invalid_argument(std::string(operation) + ": " + std::to_string(block_counts.size()) +
                              " blocks for " + std::to_string(links.world_size) + " ranks");
}

}  // namespace

std::vector<int32_t> ring_order(const Links& links) {
  const auto world_size = static_cast<size_t>(std::max(links.world_size, 0));
  if (links.cost.size() != world_size * world_size) {
    throw std::invalid_argument("ring_order: " + std::to_string(links.cost.size()) +
                                " links among " + std::to_string(links.world_size) + " ranks");
  }
  std::vector<int32_t> order(world_size);
  std::iota(order.begin(), order.end(), 0);
  // Not a weighted sum: a ring is pipelined, so its slowest link counts, and only then latency.
  const auto is_cheaper = [&links](int32_t from, int32_t left, int32_t right) {
    const LinkCost& a = links.at(from, left);
    const LinkCost& b = links.at(from, right);
    if (a.seconds_per_byte != b.seconds_per_byte) return a.seconds_per_byte < b.seconds_per_byte;
    if (a.latency_seconds != b.latency_seconds) return a.latency_seconds < b.latency_seconds;
    return left < right;
  };
  for (size_t next = 1; next < order.size(); ++next) {
    size_t nearest = next;
    for (size_t other = next + 1; other < order.size(); ++other) {
      if (is_cheaper(order[next - 1], order[other], order[nearest])) nearest = other;
    }
    std::swap(order[next], order[nearest]);
  }
  return order;
}

Schedule choose_all_reduce(const Links& links, uint64_t count, uint64_t element_bytes,
                           std::string_view algorithm, const Routes* routes) {
  const int32_t world_size = links.world_size;
  const bool is_measured = links.is_measured || routes != nullptr;
  Routes found;
  if (routes == nullptr && (links.is_measured || needs_routes(algorithm))) {
    found = find_routes(links);
    routes = &found;
  }
  const auto trees = [=](const char* name, std::vector<TreePair> Routes::*packed) {
    return Candidate{
        name, [=] { return plan_all_reduce_trees(name, world_size, routes->*packed, count); },
        is_measured && !(routes->*packed).empty()};
  };
  const auto direct = [=] { return plan_all_reduce_direct(world_size, count); };
  const auto ring = [=, &links] {
    const bool has_ring = routes != nullptr && !routes->ring.empty();
    return plan_all_reduce_ring(has_ring ? routes->ring : ring_order(links), count);
  };
  const auto halving_doubling = [=] { return plan_all_reduce_halving_doubling(world_size, count); };
  const bool is_small = element_bytes == 0 || count <= kExchangeBytesMax / element_bytes;
  // Links that nobody has measured may be slow, and it sends the most bytes.
  const bool is_smallest = links.is_measured ? is_small : count * element_bytes <= kBlindBytesMax;
  const auto doubling = [=] {
    return is_small ? plan_all_reduce_doubling(world_size, count) : halving_doubling();
  };
  std::vector<Candidate> candidates = {
      {"direct", direct},
      {"ring", ring},
      {"halving_doubling", halving_doubling},
      {"doubling", doubling, is_small},
      {"exchange",
       [=] { return is_small ? plan_all_reduce_exchange(world_size, count) : direct(); },
       is_smallest && has_long_links(links)},
      {"double_binary_tree",
       [=] { return plan_all_reduce_double_binary_tree(world_size, count); }}};
  if (is_measured && !routes->stars.empty()) candidates[0] = trees("direct", &Routes::stars);
  candidates.push_back(trees("packed_trees", &Routes::trees));
  candidates.push_back(trees("rings", &Routes::rings));
  candidates.push_back(trees("hierarchical", &Routes::sites));
  candidates.push_back(trees("quickest_tree", &Routes::quickest));
  return choose(candidates, algorithm, links, element_bytes, "all_reduce");
}

namespace {

// What a codec encodes together begins at multiples of it: quantization::block_elements().
constexpr uint64_t kTileElements = 256;

// Boundaries of chunks moved down to those of tiles. A tensor that is encoded already can be cut
// only there.
Schedule in_whole_tiles(Schedule schedule, uint64_t count) {
  for (Chunk& chunk : schedule.chunks) {
    const uint64_t end = chunk.offset + chunk.count;
    const uint64_t last = end == count ? count : end / kTileElements * kTileElements;
    chunk.offset = chunk.offset / kTileElements * kTileElements;
    chunk.count = last - chunk.offset;
  }
  std::erase_if(schedule.chunks, [](const Chunk& chunk) { return chunk.count == 0; });
  return schedule;
}

Schedule choose_coded(const Links& links, uint64_t count, std::string_view algorithm,
                      const Routes* routes) {
  // A codec of one byte, about.
  constexpr uint64_t kElementBytes = 1;
  if (algorithm == "doubling") algorithm = "halving_doubling";
  if (algorithm == "exchange") algorithm = "direct";
  if (algorithm != "auto") return choose_all_reduce(links, count, kElementBytes, algorithm, routes);
  std::vector<const char*> names = {"direct", "halving_doubling", "double_binary_tree"};
  if (has_gaps(links)) names = {"quickest_tree"};
  if (routes != nullptr && !routes->trees.empty()) names.push_back("packed_trees");
  if (routes != nullptr && !routes->sites.empty()) names.push_back("hierarchical");
  Schedule best;
  double best_seconds = 0;
  for (const char* name : names) {
    Schedule schedule = choose_all_reduce(links, count, kElementBytes, name, routes);
    const double seconds = estimate(schedule, links, kElementBytes, kSegmentBytesAssumed).seconds;
    if (best.world_size == 0 || seconds < best_seconds) {
      best = std::move(schedule);
      best_seconds = seconds;
    }
  }
  return best;
}

}  // namespace

Schedule choose_coded_all_reduce(const Links& links, uint64_t count, std::string_view algorithm,
                                 const Routes* routes) {
  return in_whole_tiles(choose_coded(links, count, algorithm, routes), count);
}
Schedule choose_broadcast(const Links& links, int32_t root, uint64_t count, uint64_t element_bytes,
                          std::string_view algorithm) {
  const int32_t world_size = links.world_size;
  return choose({{"binomial", [=] { return plan_broadcast_binomial(world_size, root, count); }},
                 {"double_binary_tree",
                  [=] { return plan_broadcast_double_binary_tree(world_size, root, count); }},
                 {"quickest_tree", [&] { return plan_broadcast_quickest(links, root, count); },
                  links.is_measured}},
                algorithm, links, element_bytes, "broadcast");
}

Schedule choose_reduce(const Links& links, int32_t root, uint64_t count, uint64_t element_bytes,
                       std::string_view algorithm) {
  const int32_t world_size = links.world_size;
  return choose({{"binomial", [=] { return plan_reduce_binomial(world_size, root, count); }},
                 {"double_binary_tree",
                  [=] { return plan_reduce_double_binary_tree(world_size, root, count); }},
                 {"quickest_tree", [&] { return plan_reduce_quickest(links, root, count); },
                  links.is_measured}},
                algorithm, links, element_bytes, "reduce");
}

Schedule choose_all_gather(const Links& links, std::span<const uint64_t> block_counts,
                           uint64_t element_bytes, std::string_view algorithm) {
  require_blocks(links, block_counts, "all_gather");
  return choose({{"direct", [=] { return plan_all_gather_direct(block_counts); }},
                 {"ring", [&] { return plan_all_gather_ring(ring_order(links), block_counts); }},
                 {"doubling", [=] { return plan_all_gather_doubling(block_counts); }},
                 {"quickest_tree", [&] { return plan_all_gather_quickest(links, block_counts); },
                  links.is_measured}},
                algorithm, links, element_bytes, "all_gather");
}

Schedule choose_reduce_scatter(const Links& links, std::span<const uint64_t> block_counts,
                               uint64_t element_bytes, std::string_view algorithm) {
  require_blocks(links, block_counts, "reduce_scatter");
  return choose(
      {{"direct", [=] { return plan_reduce_scatter_direct(block_counts); }},
       {"ring", [&] { return plan_reduce_scatter_ring(ring_order(links), block_counts); }},
       {"halving", [=] { return plan_reduce_scatter_halving(block_counts); }},
       {"quickest_tree", [&] { return plan_reduce_scatter_quickest(links, block_counts); },
        links.is_measured}},
      algorithm, links, element_bytes, "reduce_scatter");
}

}  // namespace pccl::topology
