// Packs trees into a network: which trees an all_reduce uses, and how fast each may run, so that
// all of them together are as fast as the links allow.
//
// Only additions, multiplications and divisions of doubles, in a fixed order: the same figures give
// the same trees on every machine (CMakeLists.txt forbids fused multiply-adds).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "topology/capacities.h"
#include "topology/schedule.h"

namespace pccl::topology {

// Contributions go up to `root`, finals come down from it.
struct TreePair {
  int32_t root = 0;
  std::vector<Edge> up;    // senders behind all that they hear from
  std::vector<Edge> down;  // senders behind the edge that reaches them
  double rate = 0;         // bytes of the vector a second
};

// Sets the rates whose sum is the largest that `capacity` allows for these trees together: a linear
// program, solved by the simplex method. Trees that are not needed get 0.
void set_rates(std::vector<TreePair>& trees, const Capacities& capacity);

// Bytes of the vector a second: what all trees do together.
double total_rate(const std::vector<TreePair>& trees);

// One star a rank with links to and from all others, with the best rates: "direct" with weights, in
// which weak ranks own little or nothing.
std::vector<TreePair> pack_stars(const Capacities& capacity);

// The tree over which one message is everywhere first: up to the best root and down from it along
// the paths of least latency. Its rate is 1. Requires: the links are connected.
TreePair quickest_tree(const Links& links);
// Of each root: [rank].
std::vector<TreePair> quickest_trees(const Links& links);

struct PackingOptions {
  bool is_shallow = true;  // trees of depth two at most, else of any depth
  double enough = 0;       // bytes a second: a bound, beyond which nobody need look; 0: unknown
};

// Trees that use the network up, at most n^2, 256 or 4 n, whichever is less or, of the last, more.
// Multiplicative weights find candidates (each step takes the cheapest tree where used links have
// become dear; Garg and Koenemann, SIAM J. Comput. 2007), the linear program sets their rates.
// Empty if no tree exists (of that depth).
std::vector<TreePair> pack_trees(const Capacities& capacity, const PackingOptions& options);

// What such trees (of any depth) reach together, found in a tenth of the time and up to a few
// percent too low: to compare graphs. 0 if some rank can't reach another one.
double packed_rate(const Capacities& capacity);

}  // namespace pccl::topology
