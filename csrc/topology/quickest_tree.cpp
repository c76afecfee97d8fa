// One tree for small messages: least latency up to a root and down again.
#include <algorithm>

#include "topology/packing.h"
#include "topology/plan_parts.h"

namespace pccl::topology {
namespace {

// All shortest paths (Floyd and Warshall): P^3 steps.
struct Paths {
  size_t n = 0;
  std::vector<double> seconds;  // [from * n + to]
  std::vector<int32_t> next;    // the first rank on the way
  std::vector<int32_t> last;    // the rank before `to`
};

Paths shortest_paths(const Links& links) {
  const auto n = static_cast<size_t>(links.world_size);
  Paths paths{n, std::vector<double>(n * n, kNoLink), std::vector<int32_t>(n * n, -1),
              std::vector<int32_t>(n * n, -1)};
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      const auto sender = static_cast<int32_t>(from);
      const auto receiver = static_cast<int32_t>(to);
      if (!links.connects(sender, receiver)) continue;
      paths.seconds[from * n + to] =
          links.at(sender, receiver).latency_seconds + 2 * links.rank_seconds_per_message;
      paths.next[from * n + to] = receiver;
      paths.last[from * n + to] = sender;
    }
  }
  for (size_t via = 0; via < n; ++via) {
    for (size_t from = 0; from < n; ++from) {
      for (size_t to = 0; to < n; ++to) {
        const double detour = paths.seconds[from * n + via] + paths.seconds[via * n + to];
        if (from == to || detour >= paths.seconds[from * n + to]) continue;
        paths.seconds[from * n + to] = detour;
        paths.next[from * n + to] = paths.next[from * n + via];
        paths.last[from * n + to] = paths.last[via * n + to];
      }
    }
  }
  return paths;
}

TreePair tree_of(const Paths& paths, size_t center) {
  std::vector<int32_t> up(paths.n, -1);
  std::vector<int32_t> down(paths.n, -1);
  for (size_t rank = 0; rank < paths.n; ++rank) {
    if (rank == center) continue;
    up[rank] = paths.next[rank * paths.n + center];
    down[rank] = paths.last[center * paths.n + rank];
  }
  const auto root = static_cast<int32_t>(center);
  return {root, reversed(tree_edges(up, root)), tree_edges(down, root), 1};
}

}  // namespace

std::vector<TreePair> quickest_trees(const Links& links) {
  const Paths paths = shortest_paths(links);
  std::vector<TreePair> trees;
  trees.reserve(paths.n);
  for (size_t root = 0; root < paths.n; ++root) trees.push_back(tree_of(paths, root));
  return trees;
}

TreePair quickest_tree(const Links& links) {
  const Paths paths = shortest_paths(links);
  size_t best = 0;
  double best_seconds = kNoLink;
  for (size_t root = 0; root < paths.n; ++root) {
    double up = 0;
    double down = 0;
    for (size_t rank = 0; rank < paths.n; ++rank) {
      if (rank == root) continue;
      up = std::max(up, paths.seconds[rank * paths.n + root]);
      down = std::max(down, paths.seconds[root * paths.n + rank]);
    }
    if (up + down >= best_seconds) continue;
    best = root;
    best_seconds = up + down;
  }
  return tree_of(paths, best);
}

}  // namespace pccl::topology
