// Two binary trees over the same ranks, such that each rank is an inner node in at most one.
//
// A tree that carries all bytes leaves the sending side of its leaves idle; with two trees, each
// carrying half, every rank is a leaf in one and works in the other.
// Source: Sanders, Speck, Traeff, Two-tree algorithms for full bandwidth broadcast, reduction and
// scan, Parallel Computing 2009.
#pragma once

#include <cstdint>
#include <vector>

#include "topology/schedule.h"

namespace pccl::topology {

struct Tree {
  int32_t root = 0;
  // From the root, level by level: a sender stands behind the edge that feeds it.
  std::vector<Edge> down;
};

// Two trees over 0..world_size-1, at most floor(log2 world_size) edges deep.
std::vector<Tree> double_tree(int32_t world_size);

}  // namespace pccl::topology
