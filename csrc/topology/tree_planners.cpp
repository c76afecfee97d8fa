// Planners of all_reduce over links that differ: weighted stars and packed trees.
#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/bounds.h"
#include "topology/capacities.h"
#include "topology/plan_parts.h"
#include "topology/planners.h"
#include "topology/ring_search.h"
#include "topology/sites.h"

namespace pccl::topology {
namespace {

// The groups of elements that codecs scale together are at most this long.
constexpr uint64_t kCodecElements = 256;
// Rounding to whole units costs a tree at most 1 / this of its share, on the average.
constexpr uint64_t kUnitsPerTree = 16;

constexpr int32_t kDeepRanksMax = 16;

// `count` elements by `weights`, to whole units; the largest remainders get what is left over.
std::vector<uint64_t> share_out(uint64_t count, const std::vector<double>& weights) {
  const uint64_t shares = weights.size();
  uint64_t unit = 1;
  for (const uint64_t longer : {kPieceAlignment, kCodecElements}) {
    if (count / longer >= kUnitsPerTree * shares) unit = longer;
  }
  const uint64_t units = count / unit + (count % unit != 0);
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  std::vector<uint64_t> result(shares);
  std::vector<double> remainders(shares);
  uint64_t given = 0;
  for (size_t index = 0; index < shares; ++index) {
    const double exact = static_cast<double>(units) * (weights[index] / sum);
    result[index] = std::min(static_cast<uint64_t>(exact), units - given);
    remainders[index] = exact - static_cast<double>(result[index]);
    given += result[index];
  }
  std::vector<size_t> order(shares);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&remainders](size_t left, size_t right) {
    return remainders[left] > remainders[right];
  });
  for (size_t next = 0; given < units; next = (next + 1) % shares, ++given) ++result[order[next]];
  // The partial unit is the end of the block, so it falls to the last share.
  uint64_t left = count;
  for (uint64_t& share : result) {
    share = std::min(share * unit, left);
    left -= share;
  }
  return result;
}

}  // namespace

bool has_gaps(const Links& links) {
  for (int32_t from = 0; from < links.world_size; ++from) {
    for (int32_t to = 0; to < links.world_size; ++to) {
      if (from != to && !links.connects(from, to)) return true;
    }
  }
  return false;
}

Routes quick_routes(const Links& links) {
  require_world_size(links.world_size, "quick_routes");
  require_connected(links, "quick_routes");
  Routes routes;
  routes.quickest = {quickest_tree(links)};
  routes.stars = pack_stars(capacities(links));
  routes.trees = routes.stars.empty() ? routes.quickest : routes.stars;
  return routes;
}

Routes find_routes(const Links& links) {
  require_world_size(links.world_size, "find_routes");
  const Capacities capacity = capacities(links);
  require_connected(links, "find_routes");
  Routes routes;
  if (links.world_size == 1) {
    const std::vector<TreePair> alone = {{0, {}, {}, 1}};
    return {alone, alone, {}, {0}, alone, alone};
  }
  routes.stars = pack_stars(capacity);
  const double bound = all_reduce_bounds(links).least();
  routes.trees = pack_trees(capacity, {.is_shallow = true, .enough = bound});
  // Among many ranks of a full mesh more depth gains little, and takes seconds to find.
  const double shallow_rate = total_rate(routes.trees);
  if (shallow_rate < 0.98 * bound && (has_gaps(links) || links.world_size <= kDeepRanksMax)) {
    std::vector<TreePair> deep = pack_trees(capacity, {.is_shallow = false, .enough = bound});
    if (total_rate(deep) > 1.02 * shallow_rate) routes.trees = std::move(deep);
  }
  routes.sites = pack_sites(links);
  routes.ring = bottleneck_ring(links);
  routes.rings = pack_rings(links);
  routes.quickest = {quickest_tree(links)};
  return routes;
}

void keep_ring(const Links& links, std::span<const int32_t> ring, Routes& routes) {
  constexpr double kFaster = 1.2;
  if (ring.size() != routes.ring.size() || ring.empty()) return;
  const auto slowest = [&links](std::span<const int32_t> order) {
    double result = 0;
    for (size_t at = 0; at < order.size(); ++at) {
      const int32_t next = order[(at + 1) % order.size()];
      result = std::max(result, links.at(order[at], next).seconds_per_byte);
    }
    return result;
  };
  if (slowest(ring) <= kFaster * slowest(routes.ring)) routes.ring.assign(ring.begin(), ring.end());
}

Schedule plan_all_reduce_trees(std::string_view algorithm, int32_t world_size,
                               std::span<const TreePair> trees, uint64_t count) {
  require_world_size(world_size, "plan_all_reduce_trees");
  Schedule schedule{.algorithm = std::string(algorithm), .world_size = world_size, .chunks = {}};
  if (trees.empty()) {
    throw std::invalid_argument(schedule.algorithm + ": these links have no such trees");
  }
  std::vector<double> weights;
  for (const TreePair& tree : trees) weights.push_back(tree.rate);
  const std::vector<uint64_t> shares = share_out(count, weights);
  uint64_t offset = 0;
  for (size_t index = 0; index < trees.size(); ++index) {
    if (shares[index] == 0) continue;
    Chunk chunk = whole_block(0, shares[index], true, {trees[index].root});
    chunk.offset = offset;
    chunk.up = trees[index].up;
    chunk.down = trees[index].down;
    offset += shares[index];
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

}  // namespace pccl::topology
