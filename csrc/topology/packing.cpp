#include "topology/packing.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <utility>

#include "topology/plan_parts.h"
#include "topology/simplex.h"
#include "topology/tree_search.h"

namespace pccl::topology {
namespace {

// Of the linear programs of one packing together: about a second on one core.
constexpr uint64_t kWorkMax = 1'000'000'000;

// A chunk each; 56 trees fill the links of 8 ranks exactly, where all links differ.
constexpr size_t kTreesMax = 256;

// Of the bound; more is not worth more trees.
constexpr double kEnough = 0.999;

// Where many links are alike the program can stand still for a few rounds before it gets better.
constexpr int32_t kRoundsWithoutGainMax = 8;

// How often a tree uses each constraint, once for each edge. [k]: constraint, times
std::vector<std::pair<size_t, double>> usage_of(const TreePair& tree, const Capacities& capacity) {
  std::map<size_t, double> times;
  for (const auto* edges : {&tree.up, &tree.down}) {
    for (const Edge& edge : *edges) {
      const auto from = static_cast<size_t>(edge.from);
      const auto to = static_cast<size_t>(edge.to);
      times[capacity.link(from, to)] += 1;
      times[capacity.out(from)] += 1;
      times[capacity.in(to)] += 1;
    }
  }
  return {times.begin(), times.end()};
}

// Finds trees where weights say how scarce each constraint is.
class TreeFinder {
 public:
  // `unit`: a rate, by which capacities are scaled.
  TreeFinder(const Capacities& capacity, bool is_shallow, double unit)
      : capacity_(capacity), is_shallow_(is_shallow), unit_(unit), n_(capacity.world_size) {}

  struct Found {
    TreePair tree;
    double price = kNoWay;
  };

  void set_weights(const std::vector<double>& weights) {
    down_.assign(n_ * n_, kNoWay);
    up_.assign(n_ * n_, kNoWay);
    for (size_t from = 0; from < n_; ++from) {
      const double out = share(weights, capacity_.out(from));
      for (size_t to = 0; to < n_; ++to) {
        const size_t link = capacity_.link(from, to);
        if (capacity_.of[link] <= 0) continue;
        const double price = share(weights, link) + out + share(weights, capacity_.in(to));
        down_[from * n_ + to] = price;
        up_[to * n_ + from] = price;
      }
    }
  }

  Found cheapest(size_t root) const {
    const PricedTree up = search(up_, root);
    const PricedTree down = search(down_, root);
    Found found;
    if (up.price >= kNoWay || down.price >= kNoWay) return found;
    found.price = up.price + down.price;
    found.tree.root = static_cast<int32_t>(root);
    found.tree.down = tree_edges(down.parent, found.tree.root);
    found.tree.up = reversed(tree_edges(up.parent, found.tree.root));
    return found;
  }

 private:
  double share(const std::vector<double>& weights, size_t constraint) const {
    return weights[constraint] * (unit_ / capacity_.of[constraint]);
  }

  PricedTree search(const std::vector<double>& prices, size_t root) const {
    return is_shallow_ ? cheapest_shallow_tree(prices, root, n_) : cheapest_tree(prices, root, n_);
  }

  const Capacities& capacity_;
  const bool is_shallow_;
  const double unit_;
  const size_t n_;
  std::vector<double> down_;  // [from * n + to]: price of an edge
  std::vector<double> up_;    // [to * n + from]
};

// Trees without doubles, by what they are.
class TreeSet {
 public:
  // Adds to the rate of the tree; true if it is a new one.
  bool add(TreePair tree) {
    std::vector<int32_t> key = {tree.root};
    for (const auto* edges : {&tree.up, &tree.down}) {
      for (const Edge& edge : *edges) key.insert(key.end(), {edge.from, edge.to});
    }
    const auto [place, is_new] = index_.emplace(std::move(key), trees_.size());
    if (is_new) {
      trees_.push_back(std::move(tree));
    } else {
      trees_[place->second].rate += tree.rate;
    }
    return is_new;
  }

  // The `count` fastest, the one found first among equals.
  std::vector<TreePair> fastest(size_t count) const {
    std::vector<TreePair> trees = trees_;
    std::stable_sort(trees.begin(), trees.end(), [](const TreePair& left, const TreePair& right) {
      return left.rate > right.rate;
    });
    trees.resize(std::min(trees.size(), count));
    return trees;
  }

 private:
  std::map<std::vector<int32_t>, size_t> index_;
  std::vector<TreePair> trees_;
};

// What the narrowest constraint lets a tree have; what it uses becomes dearer by up to `step`.
double use_up(const std::vector<std::pair<size_t, double>>& usage, const Capacities& capacity,
              double step, std::vector<double>& weights) {
  double rate = kNoWay;
  for (const auto& [constraint, times] : usage) {
    rate = std::min(rate, capacity.of[constraint] / times);
  }
  for (const auto& [constraint, times] : usage) {
    weights[constraint] *= 1 + step * (rate * times / capacity.of[constraint]);
  }
  return rate;
}

// Multiplicative weights: the cheapest tree gets as much as its narrowest constraint carries, and
// what it used becomes dearer by up to kStep. Ends when the cheapest tree is dear.
TreeSet find_candidates(const Capacities& capacity, bool is_shallow, double unit) {
  constexpr double kStep = 0.3;
  constexpr double kStart = 1e-9;
  const size_t n = capacity.world_size;
  TreeSet candidates;
  std::vector<double> weights(capacity.of.size(), kStart);
  TreeFinder finder(capacity, is_shallow, unit);
  finder.set_weights(weights);
  // No tree is cheaper than this.
  double least = kNoWay;
  for (size_t root = 0; root < n; ++root) least = std::min(least, finder.cheapest(root).price);
  // Root by root, one tree at a time while there are nearly cheapest ones: where trees of all roots
  // cost the same, no rank gets all of the work.
  for (; least < 1; least *= 1 + kStep) {
    for (bool is_found = true; is_found;) {
      is_found = false;
      for (size_t root = 0; root < n; ++root) {
        TreeFinder::Found found = finder.cheapest(root);
        if (found.price >= std::min(1.0, least * (1 + kStep))) continue;
        is_found = true;
        found.tree.rate = use_up(usage_of(found.tree, capacity), capacity, kStep, weights);
        finder.set_weights(weights);
        candidates.add(std::move(found.tree));
      }
    }
  }
  return candidates;
}

// set_rates, which also returns how scarce each constraint is: [constraint], 0 where it is not.
std::vector<double> solve_rates(std::vector<TreePair>& trees, const Capacities& capacity,
                                double unit, uint64_t& work) {
  std::map<size_t, size_t> row_of;
  std::vector<std::vector<std::pair<size_t, double>>> usages;
  for (const TreePair& tree : trees) {
    usages.push_back(usage_of(tree, capacity));
    for (const auto& [constraint, times] : usages.back()) row_of.emplace(constraint, row_of.size());
  }
  if (row_of.empty()) {  // one rank: no edges
    for (TreePair& tree : trees) tree.rate = 1;
    return std::vector<double>(capacity.of.size());
  }
  std::vector<double> a(row_of.size() * trees.size());
  for (size_t column = 0; column < trees.size(); ++column) {
    for (const auto& [constraint, times] : usages[column]) {
      a[row_of[constraint] * trees.size() + column] = times * (unit / capacity.of[constraint]);
    }
  }
  const SimplexResult result = largest_sum(std::move(a), row_of.size(), trees.size(), work);
  work -= std::min(work, result.work);
  // Rounding is made good for: the fullest constraint is exactly full.
  std::vector<double> load(capacity.of.size());
  for (size_t column = 0; column < trees.size(); ++column) {
    trees[column].rate = result.x[column] * unit;
    for (const auto& [constraint, times] : usages[column]) {
      load[constraint] += trees[column].rate * times;
    }
  }
  double fullest = 0;
  for (const auto& [constraint, row] : row_of) {
    fullest = std::max(fullest, load[constraint] / capacity.of[constraint]);
  }
  if (fullest > 0) {
    for (TreePair& tree : trees) tree.rate /= fullest;
  }
  std::vector<double> weights(capacity.of.size());
  for (const auto& [constraint, row] : row_of) weights[constraint] = result.prices[row];
  return weights;
}

double unit_of(const Capacities& capacity) {
  return *std::max_element(capacity.of.begin(), capacity.of.end());
}

// At most `count` of them, those that are worth most, without those that are worth nothing.
void keep_fastest(std::vector<TreePair>& trees, size_t count) {
  std::stable_sort(trees.begin(), trees.end(), [](const TreePair& left, const TreePair& right) {
    return left.rate > right.rate;
  });
  const double least = 1e-4 * total_rate(trees);
  while (!trees.empty() && (trees.size() > count || trees.back().rate < least)) trees.pop_back();
}

std::vector<TreePair> stars(const Capacities& capacity) {
  const auto n = static_cast<int32_t>(capacity.world_size);
  std::vector<TreePair> trees;
  for (int32_t root = 0; root < n; ++root) {
    const auto center = static_cast<size_t>(root);
    bool reaches_all = true;
    for (size_t rank = 0; rank < capacity.world_size; ++rank) {
      reaches_all =
          reaches_all && (rank == center || (capacity.of[capacity.link(center, rank)] > 0 &&
                                             capacity.of[capacity.link(rank, center)] > 0));
    }
    if (reaches_all) trees.push_back({root, star_up(n, root), star_down(n, root), 0});
  }
  return trees;
}

}  // namespace

void set_rates(std::vector<TreePair>& trees, const Capacities& capacity) {
  uint64_t work = kWorkMax;
  if (!trees.empty()) solve_rates(trees, capacity, unit_of(capacity), work);
}

double total_rate(const std::vector<TreePair>& trees) {
  double sum = 0;
  for (const TreePair& tree : trees) sum += tree.rate;
  return sum;
}

double packed_rate(const Capacities& capacity) {
  const std::vector<TreePair> trees =
      find_candidates(capacity, false, unit_of(capacity)).fastest(SIZE_MAX);
  std::vector<double> load(capacity.of.size());
  for (const TreePair& tree : trees) {
    for (const auto& [constraint, times] : usage_of(tree, capacity)) {
      load[constraint] += tree.rate * times;
    }
  }
  double fullest = 0;
  for (size_t constraint = 0; constraint < load.size(); ++constraint) {
    if (load[constraint] > 0) {
      fullest = std::max(fullest, load[constraint] / capacity.of[constraint]);
    }
  }
  return fullest > 0 ? total_rate(trees) / fullest : 0;
}

std::vector<TreePair> pack_stars(const Capacities& capacity) {
  std::vector<TreePair> trees = stars(capacity);
  set_rates(trees, capacity);
  return trees;
}

std::vector<TreePair> pack_trees(const Capacities& capacity, const PackingOptions& options) {
  std::vector<TreePair> trees = pack_stars(capacity);
  if (!trees.empty() && options.enough > 0 && total_rate(trees) >= kEnough * options.enough) {
    keep_fastest(trees, trees.size());
    return trees;
  }
  const size_t n = capacity.world_size;
  const size_t trees_max = std::max(4 * n, std::min<size_t>(n * n, kTreesMax));
  const double unit = options.enough > 0 ? options.enough : unit_of(capacity);
  TreeSet pool;
  for (const TreePair& star : trees) pool.add(star);
  for (TreePair& tree : find_candidates(capacity, options.is_shallow, unit).fastest(trees_max)) {
    if (pool.add(tree)) trees.push_back(std::move(tree));
  }
  if (trees.empty()) return trees;
  uint64_t work = kWorkMax;
  std::vector<double> weights = solve_rates(trees, capacity, unit, work);
  // What is scarce prices the trees that would help: columns of the linear program, made where they
  // are needed. What the last program left unused goes.
  TreeFinder finder(capacity, options.is_shallow, unit);
  double last_gain_at = 0;
  int32_t rounds_without_gain = 0;
  while (work > kWorkMax / 2 && total_rate(trees) < kEnough * options.enough) {
    const bool has_gained = total_rate(trees) > last_gain_at * (1 + 1e-4);
    if (has_gained) last_gain_at = total_rate(trees);
    rounds_without_gain = has_gained ? 0 : rounds_without_gain + 1;
    if (rounds_without_gain > kRoundsWithoutGainMax) break;
    keep_fastest(trees, trees.size());
    for (double& weight : weights) weight += 1e-7;
    finder.set_weights(weights);
    bool is_better = false;
    for (size_t root = 0; root < n; ++root) {
      TreeFinder::Found found = finder.cheapest(root);
      if (found.price > 1 - 1e-4 || !pool.add(found.tree)) continue;
      trees.push_back(std::move(found.tree));
      is_better = true;
    }
    if (!is_better) break;
    weights = solve_rates(trees, capacity, unit, work);
  }
  keep_fastest(trees, trees.size());
  if (trees.size() > trees_max) {
    keep_fastest(trees, trees_max);
    set_rates(trees, capacity);
    keep_fastest(trees, trees_max);
  }
  return trees;
}

}  // namespace pccl::topology
