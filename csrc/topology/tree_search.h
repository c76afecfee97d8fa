// The cheapest tree from a root to everybody, where every directed pair of ranks has a price.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pccl::topology {

// A pair that may not be used; prices are far below.
inline constexpr double kNoWay = 1e30;

struct PricedTree {
  std::vector<int32_t> parent;  // [rank]; -1 at the root
  double price = kNoWay;        // of all edges together; kNoWay or more: there is no such tree
};

// `prices[from * n + to]`, n x n. Every rank is a child or a grandchild of the root. An exact
// search is a facility location problem, which is hard; this one adds and drops inner ranks as long
// as that saves: O(n^2) a step, a few steps.
PricedTree cheapest_shallow_tree(const std::vector<double>& prices, size_t root, size_t n);

// Of any depth, exact: Chu and Liu, Edmonds, O(n^3).
PricedTree cheapest_tree(const std::vector<double>& prices, size_t root, size_t n);

}  // namespace pccl::topology
