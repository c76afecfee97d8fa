// Planners of collectives with one root: broadcast, reduce, gather, scatter.
#include <utility>

#include "topology/double_tree.h"
#include "topology/plan_parts.h"
#include "topology/planners.h"

namespace pccl::topology {
namespace {

// Both halves of the block as moving chunks that leave `root` down the two trees, which span the
// other ranks: the root sends each byte once, to the roots of the trees.
std::vector<Chunk> broadcast_halves(int32_t world_size, int32_t root, uint64_t count) {
  if (count == 0) return {};
  if (world_size == 1) return {whole_block(0, count, false, {root})};
  const std::vector<Piece> pieces = split(count, 2);
  const std::vector<Tree> trees = double_tree(world_size - 1);
  const auto rank_of = [root, world_size](int32_t node) { return (root + 1 + node) % world_size; };
  std::vector<Chunk> chunks;
  for (size_t half = 0; half < 2; ++half) {
    if (pieces[half].count == 0) continue;
    Chunk chunk = whole_block(0, pieces[half].count, false, {root});
    chunk.offset = pieces[half].offset;
    chunk.down.push_back({root, rank_of(trees[half].root)});
    for (const Edge& edge : trees[half].down) {
      chunk.down.push_back({rank_of(edge.from), rank_of(edge.to)});
    }
    chunks.push_back(std::move(chunk));
  }
  return chunks;
}

// A broadcast run backwards is a reduction.
void turn_to_reduce(Chunk& chunk) {
  chunk.reduces = true;
  chunk.up = reversed(chunk.down);
  chunk.down.clear();
}

}  // namespace

Schedule plan_broadcast_binomial(int32_t world_size, int32_t root, uint64_t count) {
  require_root(root, world_size, "plan_broadcast_binomial");
  Schedule schedule{.algorithm = "binomial", .world_size = world_size, .chunks = {}};
  if (count == 0) return schedule;
  Chunk chunk = whole_block(0, count, false, {root});
  chunk.down = binomial_down(world_size, root);
  schedule.chunks.push_back(std::move(chunk));
  return schedule;
}

Schedule plan_broadcast_double_binary_tree(int32_t world_size, int32_t root, uint64_t count) {
  require_root(root, world_size, "plan_broadcast_double_binary_tree");
  return {.algorithm = "double_binary_tree",
          .world_size = world_size,
          .chunks = broadcast_halves(world_size, root, count)};
}

Schedule plan_reduce_binomial(int32_t world_size, int32_t root, uint64_t count) {
  Schedule schedule = plan_broadcast_binomial(world_size, root, count);
  for (Chunk& chunk : schedule.chunks) turn_to_reduce(chunk);
  return schedule;
}

Schedule plan_reduce_double_binary_tree(int32_t world_size, int32_t root, uint64_t count) {
  Schedule schedule = plan_broadcast_double_binary_tree(world_size, root, count);
  for (Chunk& chunk : schedule.chunks) turn_to_reduce(chunk);
  return schedule;
}

Schedule plan_gather_direct(int32_t root, std::span<const uint64_t> block_counts) {
  const auto world_size = static_cast<int32_t>(block_counts.size());
  require_root(root, world_size, "plan_gather_direct");
  Schedule schedule{.algorithm = "direct", .world_size = world_size, .chunks = {}};
  for (int32_t rank = 0; rank < world_size; ++rank) {
    const auto block = static_cast<uint32_t>(rank);
    if (block_counts[block] == 0) continue;
    Chunk chunk = whole_block(block, block_counts[block], false, {rank});
    if (rank != root) chunk.down.push_back({rank, root});
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

Schedule plan_scatter_direct(int32_t root, std::span<const uint64_t> block_counts) {
  const auto world_size = static_cast<int32_t>(block_counts.size());
  require_root(root, world_size, "plan_scatter_direct");
  Schedule schedule{.algorithm = "direct", .world_size = world_size, .chunks = {}};
  for (int32_t rank = 0; rank < world_size; ++rank) {
    const auto block = static_cast<uint32_t>(rank);
    if (block_counts[block] == 0) continue;
    Chunk chunk = whole_block(block, block_counts[block], false, {root});
    if (rank != root) chunk.down.push_back({root, rank});
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

}  // namespace pccl::topology
