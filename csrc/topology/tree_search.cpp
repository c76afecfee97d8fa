#include "topology/tree_search.h"

#include <algorithm>

namespace pccl::topology {
namespace {

// Which ranks stand between the root and the others, and what that costs.
class ShallowSearch {
 public:
  ShallowSearch(const std::vector<double>& prices, size_t root, size_t n)
      : prices_(prices), root_(root), n_(n), is_inner_(n), parent_(n), paid_(n) {
    assign();
  }

  PricedTree run() {
    // Each step saves something, so it ends; the bound is for rounding.
    for (size_t step = 0; step < 4 * n_; ++step) {
      if (!add_one() && !drop_one()) break;
    }
    PricedTree tree{std::vector<int32_t>(n_, -1), total()};
    for (size_t rank = 0; rank < n_; ++rank) {
      if (rank != root_) tree.parent[rank] = static_cast<int32_t>(parent_[rank]);
    }
    return tree;
  }

 private:
  double price(size_t from, size_t to) const { return prices_[from * n_ + to]; }

  double total() const {
    double sum = 0;
    for (size_t rank = 0; rank < n_; ++rank) sum += paid_[rank];
    return sum;
  }

  // Everybody to the cheapest of the root and the inner ranks.
  void assign() {
    for (size_t rank = 0; rank < n_; ++rank) {
      parent_[rank] = root_;
      paid_[rank] = rank == root_ ? 0 : price(root_, rank);
      if (rank == root_ || is_inner_[rank]) continue;
      for (size_t inner = 0; inner < n_; ++inner) {
        if (!is_inner_[inner] || price(inner, rank) >= paid_[rank]) continue;
        parent_[rank] = inner;
        paid_[rank] = price(inner, rank);
      }
    }
  }

  bool add_one() {
    size_t best = n_;
    double best_gain = 0;
    for (size_t inner = 0; inner < n_; ++inner) {
      if (inner == root_ || is_inner_[inner] || price(root_, inner) >= kNoWay) continue;
      double gain = paid_[inner] - price(root_, inner);
      for (size_t rank = 0; rank < n_; ++rank) {
        if (rank == inner || rank == root_ || is_inner_[rank]) continue;
        gain += std::max(0.0, paid_[rank] - price(inner, rank));
      }
      if (gain <= best_gain) continue;
      best = inner;
      best_gain = gain;
    }
    if (best == n_ || best_gain <= 1e-12 * total()) return false;
    is_inner_[best] = true;
    assign();
    return true;
  }

  bool drop_one() {
    const double before = total();
    for (size_t inner = 0; inner < n_; ++inner) {
      if (!is_inner_[inner]) continue;
      is_inner_[inner] = false;
      assign();
      if (total() < before * (1 - 1e-12)) return true;
      is_inner_[inner] = true;
    }
    assign();
    return false;
  }

  const std::vector<double>& prices_;
  const size_t root_;
  const size_t n_;
  std::vector<bool> is_inner_;
  std::vector<size_t> parent_;
  std::vector<double> paid_;  // for the edge to the parent
};

// One round of Edmonds' algorithm works on groups of ranks that were contracted before.
struct Arc {
  size_t from;
  size_t to;
  double price;
  size_t origin;  // index of the arc in the round before
};

// Indices of `arcs` that form the cheapest tree; empty if there is none. Each round contracts a
// circle, so the depth is below `nodes`.
// NOLINTNEXTLINE(misc-no-recursion)
std::vector<size_t> cheapest_arcs(const std::vector<Arc>& arcs, size_t nodes, size_t root) {
  const size_t none = arcs.size();
  std::vector<size_t> entering(nodes, none);
  for (size_t index = 0; index < arcs.size(); ++index) {
    const Arc& arc = arcs[index];
    if (arc.to == root || arc.from == arc.to) continue;
    size_t& best = entering[arc.to];
    if (best == none || arc.price < arcs[best].price) best = index;
  }
  // Walk up from everybody; who meets its own walk is in a circle.
  std::vector<size_t> group(nodes, none);
  std::vector<size_t> walk(nodes, none);
  size_t groups = 0;
  bool has_circle = false;
  for (size_t start = 0; start < nodes; ++start) {
    size_t node = start;
    while (node != root && walk[node] == none) {
      if (entering[node] == none) return {};
      walk[node] = start;
      node = arcs[entering[node]].from;
    }
    if (node == root || walk[node] != start || group[node] != none) continue;
    has_circle = true;
    for (size_t member = node; group[member] == none; member = arcs[entering[member]].from) {
      group[member] = groups;
    }
    ++groups;
  }
  std::vector<size_t> chosen;
  if (!has_circle) {
    for (size_t node = 0; node < nodes; ++node) {
      if (node != root) chosen.push_back(entering[node]);
    }
    return chosen;
  }
  std::vector<bool> is_circle(nodes);
  for (size_t node = 0; node < nodes; ++node) is_circle[node] = group[node] != none;
  for (size_t& name : group) {
    if (name == none) name = groups++;
  }
  std::vector<Arc> contracted;
  for (size_t index = 0; index < arcs.size(); ++index) {
    const Arc& arc = arcs[index];
    if (group[arc.from] == group[arc.to]) continue;
    const double saved = is_circle[arc.to] ? arcs[entering[arc.to]].price : 0;
    contracted.push_back({group[arc.from], group[arc.to], arc.price - saved, index});
  }
  const std::vector<size_t> outer = cheapest_arcs(contracted, groups, group[root]);
  if (outer.empty() && groups > 1) return {};
  std::vector<bool> is_entered(nodes);
  for (const size_t index : outer) {
    chosen.push_back(contracted[index].origin);
    is_entered[arcs[chosen.back()].to] = true;
  }
  for (size_t node = 0; node < nodes; ++node) {
    if (is_circle[node] && !is_entered[node]) chosen.push_back(entering[node]);
  }
  return chosen;
}

}  // namespace

PricedTree cheapest_shallow_tree(const std::vector<double>& prices, size_t root, size_t n) {
  return ShallowSearch(prices, root, n).run();
}

PricedTree cheapest_tree(const std::vector<double>& prices, size_t root, size_t n) {
  std::vector<Arc> arcs;
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      const double price = prices[from * n + to];
      if (from != to && to != root && price < kNoWay) arcs.push_back({from, to, price, 0});
    }
  }
  PricedTree tree{std::vector<int32_t>(n, -1), 0};
  const std::vector<size_t> chosen = cheapest_arcs(arcs, n, root);
  if (chosen.size() + 1 != n) return {};
  for (const size_t index : chosen) {
    tree.parent[arcs[index].to] = static_cast<int32_t>(arcs[index].from);
    tree.price += arcs[index].price;
  }
  return tree;
}

}  // namespace pccl::topology
