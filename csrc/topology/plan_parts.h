// The shapes that planners are made of: even pieces, paths, stars and binomial trees. For planners
// only.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "topology/schedule.h"

namespace pccl::topology {

// Chunk boundaries fall on multiples of this where that leaves no piece empty: 64 elements of one
// byte or more are whole cache lines, so that no two chunks write to the same line.
inline constexpr uint64_t kPieceAlignment = 64;

struct Piece {
  uint64_t offset = 0;
  uint64_t count = 0;
};

// `count` elements in `parts` pieces, as even as the alignment allows; pieces may be empty.
std::vector<Piece> split(uint64_t count, int32_t parts);

// The chunk that covers all of `block`, made final at `core`.
Chunk whole_block(uint32_t block, uint64_t count, bool reduces, std::vector<int32_t> core);

// The path through all ranks that starts at position `first` of the closed circle `order`.
std::vector<Edge> path_edges(std::span<const int32_t> order, size_t first);

// Everyone to `root`, in rank order: contributions are combined in the same order everywhere.
std::vector<Edge> star_up(int32_t world_size, int32_t root);
// `root` to root + 1, root + 2, ...: roots that send at the same time hit different receivers.
std::vector<Edge> star_down(int32_t world_size, int32_t root);

// The binomial tree of `root`, in rounds: in the round of distance d (the largest first), ranks
// that have the value send it d further. A subtree is a contiguous range of ranks (counted from the
// root, modulo world_size), so that most edges are short where neighbours share a host.
std::vector<Edge> binomial_down(int32_t world_size, int32_t root);

// Edges of a tree given by parents, those near the root first. Among equals near ranks (counted
// upwards) are first, so that roots which send at the same time hit different receivers.
std::vector<Edge> tree_edges(const std::vector<int32_t>& parent, int32_t root);

// The same edges the other way round and in the opposite order: up becomes down and vice versa.
std::vector<Edge> reversed(const std::vector<Edge>& edges);

// Largest power of two that is at most `value`. Requires: value >= 1.
int32_t power_of_two_floor(int32_t value);

// Throw std::invalid_argument naming `planner` if the argument cannot be planned for.
void require_world_size(int32_t world_size, const std::string& planner);
void require_root(int32_t root, int32_t world_size, const std::string& planner);
void require_permutation(std::span<const int32_t> order, const std::string& planner);

}  // namespace pccl::topology
