// Planners of collectives other than all_reduce over links that may be missing.
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/capacities.h"
#include "topology/packing.h"
#include "topology/plan_parts.h"
#include "topology/planners.h"

namespace pccl::topology {
namespace {

// One chunk a block, up the tree of its rank, or down.
Schedule blocks_on_trees(const Links& links, std::span<const uint64_t> block_counts, bool reduces) {
  require_connected(links, "quickest_tree");
  if (block_counts.size() != static_cast<size_t>(links.world_size)) {
    throw std::invalid_argument("quickest_tree: " + std::to_string(block_counts.size()) +
                                " blocks for " + std::to_string(links.world_size) + " ranks");
  }
  Schedule schedule{.algorithm = "quickest_tree", .world_size = links.world_size, .chunks = {}};
  for (TreePair& tree : quickest_trees(links)) {
    const auto block = static_cast<uint32_t>(tree.root);
    if (block_counts[block] == 0) continue;
    Chunk chunk = whole_block(block, block_counts[block], reduces, {tree.root});
    (reduces ? chunk.up : chunk.down) = std::move(reduces ? tree.up : tree.down);
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

Schedule block_on_tree(const Links& links, int32_t root, uint64_t count, bool reduces) {
  require_root(root, links.world_size, "quickest_tree");
  std::vector<uint64_t> counts(static_cast<size_t>(links.world_size));
  counts[static_cast<size_t>(root)] = count;
  Schedule schedule = blocks_on_trees(links, counts, reduces);
  for (Chunk& chunk : schedule.chunks) chunk.block = 0;
  return schedule;
}

}  // namespace

Schedule plan_broadcast_quickest(const Links& links, int32_t root, uint64_t count) {
  return block_on_tree(links, root, count, false);
}

Schedule plan_reduce_quickest(const Links& links, int32_t root, uint64_t count) {
  return block_on_tree(links, root, count, true);
}

Schedule plan_all_gather_quickest(const Links& links, std::span<const uint64_t> block_counts) {
  return blocks_on_trees(links, block_counts, false);
}

Schedule plan_reduce_scatter_quickest(const Links& links, std::span<const uint64_t> block_counts) {
  return blocks_on_trees(links, block_counts, true);
}

}  // namespace pccl::topology
