// Planners of all_reduce: one block, in which every rank ends with the combination of all.
#include <utility>

#include "topology/double_tree.h"
#include "topology/plan_parts.h"
#include "topology/planners.h"

namespace pccl::topology {
namespace {

Chunk reducing_chunk(const Piece& piece, std::vector<int32_t> core) {
  Chunk chunk = whole_block(0, piece.count, true, std::move(core));
  chunk.offset = piece.offset;
  return chunk;
}

// Recursive halving among 2^k ranks, seen from the piece that ends at `owner`: in the step of
// distance d (the largest first) every rank that still holds a partial result of the piece and
// differs from the owner in bit d sends it to the rank that differs only there, and is out.
// The surplus ranks 2^k, 2^k + 1, ... fold theirs into 0, 1, ... before.
std::vector<Edge> halving_up(int32_t world_size, int32_t owner) {
  const int32_t power = power_of_two_floor(world_size);
  std::vector<Edge> edges;
  edges.reserve(static_cast<size_t>(world_size) - 1);
  for (int32_t rank = power; rank < world_size; ++rank) edges.push_back({rank, rank - power});
  for (int32_t distance = power / 2; distance > 0; distance /= 2) {
    // Ranks that agree with the owner in all bits from `distance` up.
    const int32_t receivers_begin = owner & ~(distance - 1);
    for (int32_t rank = receivers_begin; rank < receivers_begin + distance; ++rank) {
      edges.push_back({rank ^ distance, rank});
    }
  }
  return edges;
}

// 0, 4, 2, 6, 1, 5, 3, 7 for 8: every prefix spreads evenly over the halves, quarters, ...
int32_t bits_reversed(int32_t index, int32_t power) {
  int32_t result = 0;
  for (int32_t bit = 1; bit < power; bit *= 2) {
    result = 2 * result + ((index & bit) != 0);
  }
  return result;
}

}  // namespace

Schedule plan_all_reduce_doubling(int32_t world_size, uint64_t count) {
  require_world_size(world_size, "plan_all_reduce_doubling");
  Schedule schedule{.algorithm = "doubling", .world_size = world_size, .chunks = {}};
  if (count == 0) return schedule;
  const int32_t power = power_of_two_floor(world_size);
  Chunk chunk = whole_block(0, count, true, {});
  for (int32_t rank = 0; rank < power; ++rank) chunk.core.push_back(rank);
  for (int32_t rank = power; rank < world_size; ++rank) chunk.up.push_back({rank, rank - power});
  chunk.down = reversed(chunk.up);
  schedule.chunks.push_back(std::move(chunk));
  return schedule;
}

Schedule plan_all_reduce_exchange(int32_t world_size, uint64_t count) {
  require_world_size(world_size, "plan_all_reduce_exchange");
  Schedule schedule{.algorithm = "exchange", .world_size = world_size, .chunks = {}};
  if (count == 0) return schedule;
  Chunk chunk = whole_block(0, count, true, {});
  for (int32_t rank = 0; rank < world_size; ++rank) chunk.core.push_back(rank);
  chunk.exchanges_at_once = world_size > 1;
  schedule.chunks.push_back(std::move(chunk));
  return schedule;
}

Schedule plan_all_reduce_halving_doubling(int32_t world_size, uint64_t count) {
  require_world_size(world_size, "plan_all_reduce_halving_doubling");
  Schedule schedule{.algorithm = "halving_doubling", .world_size = world_size, .chunks = {}};
  const int32_t power = power_of_two_floor(world_size);
  const std::vector<Piece> pieces = split(count, power);
  for (int32_t index = 0; index < power; ++index) {
    // A rank can send the half that it gives away at once, the other half only after it heard of
    // it. In this order every second chunk is of the first kind, on every rank: there is always
    // something to send, and the second step starts while the first is still under way.
    const int32_t owner = bits_reversed(index, power);
    const Piece& piece = pieces[static_cast<size_t>(owner)];
    if (piece.count == 0) continue;
    Chunk chunk = reducing_chunk(piece, {owner});
    chunk.up = halving_up(world_size, owner);
    chunk.down = reversed(chunk.up);
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

Schedule plan_all_reduce_ring(std::span<const int32_t> order, uint64_t count) {
  require_permutation(order, "plan_all_reduce_ring");
  const auto world_size = static_cast<int32_t>(order.size());
  Schedule schedule{.algorithm = "ring", .world_size = world_size, .chunks = {}};
  const std::vector<Piece> pieces = split(count, world_size);
  for (size_t position = 0; position < order.size(); ++position) {
    if (pieces[position].count == 0) continue;
    Chunk chunk = reducing_chunk(pieces[position], {order[position]});
    chunk.up = path_edges(order, position + 1);
    chunk.down = path_edges(order, position);
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

Schedule plan_all_reduce_double_binary_tree(int32_t world_size, uint64_t count) {
  require_world_size(world_size, "plan_all_reduce_double_binary_tree");
  Schedule schedule{.algorithm = "double_binary_tree", .world_size = world_size, .chunks = {}};
  const std::vector<Piece> pieces = split(count, world_size == 1 ? 1 : 2);
  const std::vector<Tree> trees = double_tree(world_size);
  for (size_t half = 0; half < pieces.size(); ++half) {
    if (pieces[half].count == 0) continue;
    Chunk chunk = reducing_chunk(pieces[half], {trees[half].root});
    chunk.up = reversed(trees[half].down);
    chunk.down = trees[half].down;
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

Schedule plan_all_reduce_direct(int32_t world_size, uint64_t count) {
  require_world_size(world_size, "plan_all_reduce_direct");
  Schedule schedule{.algorithm = "direct", .world_size = world_size, .chunks = {}};
  const std::vector<Piece> pieces = split(count, world_size);
  for (int32_t owner = 0; owner < world_size; ++owner) {
    const Piece& piece = pieces[static_cast<size_t>(owner)];
    if (piece.count == 0) continue;
    Chunk chunk = reducing_chunk(piece, {owner});
    chunk.up = star_up(world_size, owner);
    chunk.down = star_down(world_size, owner);
    schedule.chunks.push_back(std::move(chunk));
  }
  return schedule;
}

}  // namespace pccl::topology
