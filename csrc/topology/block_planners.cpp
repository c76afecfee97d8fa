// Planners of collectives with one block a rank or a pair: all_gather, reduce_scatter, all_to_all.
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/plan_parts.h"
#include "topology/planners.h"

namespace pccl::topology {
namespace {

// One chunk a block, made final at the rank of its number; blocks without elements have none.
Schedule one_chunk_a_block(const char* algorithm, std::span<const uint64_t> block_counts,
                           bool reduces) {
  const auto world_size = static_cast<int32_t>(block_counts.size());
  Schedule schedule{.algorithm = algorithm, .world_size = world_size, .chunks = {}};
  for (int32_t rank = 0; rank < world_size; ++rank) {
    const auto block = static_cast<uint32_t>(rank);
    if (block_counts[block] == 0) continue;
    schedule.chunks.push_back(whole_block(block, block_counts[block], reduces, {rank}));
  }
  return schedule;
}

// Throws unless `order` names every rank that has a block; returns each rank's place in it.
std::vector<size_t> positions_in(std::span<const int32_t> order, size_t block_count,
                                 const std::string& planner) {
  require_permutation(order, planner);
  if (order.size() != block_count) {
    throw std::invalid_argument(planner + ": " + std::to_string(block_count) + " blocks for " +
                                std::to_string(order.size()) + " ranks");
  }
  std::vector<size_t> positions(order.size());
  for (size_t position = 0; position < order.size(); ++position) {
    positions[static_cast<size_t>(order[position])] = position;
  }
  return positions;
}

}  // namespace

Schedule plan_all_gather_ring(std::span<const int32_t> order,
                              std::span<const uint64_t> block_counts) {
  const auto positions = positions_in(order, block_counts.size(), "plan_all_gather_ring");
  Schedule schedule = one_chunk_a_block("ring", block_counts, false);
  for (Chunk& chunk : schedule.chunks) chunk.down = path_edges(order, positions[chunk.block]);
  return schedule;
}

Schedule plan_all_gather_direct(std::span<const uint64_t> block_counts) {
  require_world_size(static_cast<int32_t>(block_counts.size()), "plan_all_gather_direct");
  Schedule schedule = one_chunk_a_block("direct", block_counts, false);
  for (Chunk& chunk : schedule.chunks) {
    chunk.down = star_down(schedule.world_size, chunk.core.front());
  }
  return schedule;
}

Schedule plan_all_gather_doubling(std::span<const uint64_t> block_counts) {
  require_world_size(static_cast<int32_t>(block_counts.size()), "plan_all_gather_doubling");
  Schedule schedule = one_chunk_a_block("doubling", block_counts, false);
  for (Chunk& chunk : schedule.chunks) {
    chunk.down = binomial_down(schedule.world_size, chunk.core.front());
  }
  return schedule;
}

Schedule plan_reduce_scatter_ring(std::span<const int32_t> order,
                                  std::span<const uint64_t> block_counts) {
  const auto positions = positions_in(order, block_counts.size(), "plan_reduce_scatter_ring");
  Schedule schedule = one_chunk_a_block("ring", block_counts, true);
  for (Chunk& chunk : schedule.chunks) chunk.up = path_edges(order, positions[chunk.block] + 1);
  return schedule;
}

Schedule plan_reduce_scatter_direct(std::span<const uint64_t> block_counts) {
  require_world_size(static_cast<int32_t>(block_counts.size()), "plan_reduce_scatter_direct");
  Schedule schedule = one_chunk_a_block("direct", block_counts, true);
  for (Chunk& chunk : schedule.chunks) {
    chunk.up = star_up(schedule.world_size, chunk.core.front());
  }
  return schedule;
}

Schedule plan_reduce_scatter_halving(std::span<const uint64_t> block_counts) {
  require_world_size(static_cast<int32_t>(block_counts.size()), "plan_reduce_scatter_halving");
  Schedule schedule = one_chunk_a_block("halving", block_counts, true);
  for (Chunk& chunk : schedule.chunks) {
    chunk.up = reversed(binomial_down(schedule.world_size, chunk.core.front()));
  }
  return schedule;
}

Schedule plan_all_to_all_pairwise(int32_t world_size) {
  require_world_size(world_size, "plan_all_to_all_pairwise");
  Schedule schedule{.algorithm = "pairwise", .world_size = world_size, .chunks = {}};
  schedule.chunks.reserve(static_cast<size_t>(world_size) * static_cast<size_t>(world_size));
  for (int32_t step = 0; step < world_size; ++step) {
    for (int32_t from = 0; from < world_size; ++from) {
      const int32_t to = (from + step) % world_size;
      const auto block = static_cast<uint32_t>(from) * static_cast<uint32_t>(world_size) +
                         static_cast<uint32_t>(to);
      Chunk chunk = whole_block(block, Chunk::kWholeBlock, false, {from});
      if (from != to) chunk.down.push_back({from, to});
      schedule.chunks.push_back(std::move(chunk));
    }
  }
  return schedule;
}

}  // namespace pccl::topology
