#include "topology/double_tree.h"

#include "topology/plan_parts.h"

namespace pccl::topology {
namespace {

// The in-order binary tree over positions 1..world_size. The height of a position is its number of
// trailing zero bits: odd positions are leaves, and 2^h * odd has its children 2^(h-1) to the left
// and to the right. Where the tree is cut off on the right, the nearest lower position that exists
// takes the right child's place.
std::vector<Edge> in_order_down(int32_t world_size) {
  std::vector<Edge> edges;
  edges.reserve(static_cast<size_t>(world_size) - 1);
  const int32_t root = power_of_two_floor(world_size);
  for (int32_t bit = root; bit > 0; bit /= 2) {
    // All positions of this height, whose parents are higher and thus already fed.
    for (int64_t position = bit; position <= world_size; position += 2 * int64_t{bit}) {
      if (position == root) continue;
      const int64_t parent = (position ^ bit) | (2 * int64_t{bit});
      const auto child = static_cast<int32_t>(position);
      edges.push_back({parent <= world_size ? static_cast<int32_t>(parent) : child ^ bit, child});
    }
  }
  return edges;
}

}  // namespace

std::vector<Tree> double_tree(int32_t world_size) {
  const std::vector<Edge> shape = in_order_down(world_size);
  const int32_t root = power_of_two_floor(world_size);
  // Inner positions are even. In the first tree position p is rank p - 1, so inner ranks are odd.
  // In the second they must be even: mirrored where world_size is even, else shifted by one.
  const auto first = [](int32_t position) { return position - 1; };
  const auto second = [world_size](int32_t position) {
    return world_size % 2 == 0 ? world_size - position : position % world_size;
  };
  std::vector<Tree> trees(2);
  trees[0].root = first(root);
  trees[1].root = second(root);
  for (const Edge& edge : shape) {
    trees[0].down.push_back({first(edge.from), first(edge.to)});
    trees[1].down.push_back({second(edge.from), second(edge.to)});
  }
  return trees;
}

}  // namespace pccl::topology
