#include "topology/sites.h"

#include <algorithm>
#include <map>
#include <tuple>
#include <utility>

#include "topology/plan_parts.h"

namespace pccl::topology {
namespace {

constexpr double kStepMin = 3;

// A pair is as slow as its slower direction.
double slowness(const Links& links, int32_t left, int32_t right) {
  return std::max(links.at(left, right).seconds_per_byte, links.at(right, left).seconds_per_byte);
}

struct Join {
  double slowness;
  int32_t left;
  int32_t right;
};

// The tree of the fastest links (Kruskal), in the order in which they join.
std::vector<Join> fastest_joins(const Links& links) {
  std::vector<Join> pairs;
  std::vector<int32_t> group;
  for (int32_t left = 0; left < links.world_size; ++left) {
    group.push_back(left);
    for (int32_t right = left + 1; right < links.world_size; ++right) {
      pairs.push_back({slowness(links, left, right), left, right});
    }
  }
  std::stable_sort(pairs.begin(), pairs.end(),
                   [](const Join& a, const Join& b) { return a.slowness < b.slowness; });
  std::vector<Join> joins;
  for (const Join& pair : pairs) {
    const int32_t left = group[static_cast<size_t>(pair.left)];
    const int32_t right = group[static_cast<size_t>(pair.right)];
    if (left == right) continue;
    std::replace(group.begin(), group.end(), right, left);
    joins.push_back(pair);
  }
  return joins;
}

using Sites = std::map<int32_t, std::vector<int32_t>>;

// In each site the leader is the member at place `shift`, in the root's the root itself.
TreePair site_tree(const Sites& sites, const std::vector<int32_t>& site_of, int32_t root,
                   size_t shift) {
  TreePair tree;
  tree.root = root;
  std::vector<Edge> inner;
  for (const auto& [site, members] : sites) {
    const bool is_own = site == site_of[static_cast<size_t>(root)];
    const int32_t leader = is_own ? root : members[shift % members.size()];
    if (!is_own) tree.down.push_back({root, leader});
    for (const int32_t rank : members) {
      if (rank != leader) inner.push_back({leader, rank});
    }
  }
  tree.down.insert(tree.down.end(), inner.begin(), inner.end());
  tree.up = reversed(tree.down);
  return tree;
}

bool is_possible(const TreePair& tree, const Links& links) {
  return std::all_of(tree.down.begin(), tree.down.end(), [&links](const Edge& edge) {
    return links.connects(edge.from, edge.to) && links.connects(edge.to, edge.from);
  });
}

}  // namespace

std::vector<int32_t> find_sites(const Links& links) {
  const std::vector<Join> joins = fastest_joins(links);
  size_t end = joins.size();
  double largest = kStepMin;
  for (size_t next = 1; next < joins.size(); ++next) {
    const double step = joins[next].slowness / joins[next - 1].slowness;
    if (step < largest) continue;
    largest = step;
    end = next;
  }
  std::vector<int32_t> site(static_cast<size_t>(links.world_size));
  for (int32_t rank = 0; rank < links.world_size; ++rank) site[static_cast<size_t>(rank)] = rank;
  for (size_t next = 0; next < end; ++next) {
    const auto [low, high] = std::minmax(site[static_cast<size_t>(joins[next].left)],
                                         site[static_cast<size_t>(joins[next].right)]);
    std::replace(site.begin(), site.end(), int32_t{high}, int32_t{low});
  }
  std::map<int32_t, int32_t> numbers;
  for (int32_t& rank : site) {
    const auto number = static_cast<int32_t>(numbers.size());
    rank = numbers.emplace(rank, number).first->second;
  }
  return site;
}

std::vector<TreePair> pack_sites(const Links& links) {
  const std::vector<int32_t> site_of = find_sites(links);
  Sites sites;
  size_t largest = 0;
  for (int32_t rank = 0; rank < links.world_size; ++rank) {
    std::vector<int32_t>& members = sites[site_of[static_cast<size_t>(rank)]];
    members.push_back(rank);
    largest = std::max(largest, members.size());
  }
  std::vector<TreePair> trees;
  if (sites.size() == 1 || largest == 1) return trees;
  for (int32_t root = 0; root < links.world_size; ++root) {
    // As many leaders in turn as keep the number of trees near 4 a rank.
    for (size_t shift = 0; shift < std::min<size_t>(largest, 4); ++shift) {
      TreePair tree = site_tree(sites, site_of, root, shift + static_cast<size_t>(root));
      if (is_possible(tree, links)) trees.push_back(std::move(tree));
    }
  }
  set_rates(trees, capacities(links));
  std::erase_if(trees, [](const TreePair& tree) { return tree.rate <= 0; });
  return trees;
}

}  // namespace pccl::topology
