#include "topology/graphs.h"

#include <algorithm>
#include <bit>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/packing.h"
#include "topology/plan_parts.h"
#include "topology/random_numbers.h"

namespace pccl::topology {
namespace {

// Sorted, without doubles and edges to oneself.
Graph tidy(const Graph& edges) {
  std::set<std::pair<int32_t, int32_t>> pairs;
  for (const Edge& edge : edges) {
    if (edge.from != edge.to) pairs.emplace(std::minmax(edge.from, edge.to));
  }
  Graph graph;
  for (const auto& [from, to] : pairs) graph.push_back({from, to});
  return graph;
}

bool is_connected(int32_t world_size, const Graph& graph) {
  std::vector<int32_t> group(static_cast<size_t>(world_size));
  for (int32_t rank = 0; rank < world_size; ++rank) group[static_cast<size_t>(rank)] = rank;
  for (const Edge& edge : graph) {
    const int32_t merged = group[static_cast<size_t>(edge.to)];
    std::replace(group.begin(), group.end(), merged, group[static_cast<size_t>(edge.from)]);
  }
  return std::all_of(group.begin(), group.end(), [&group](int32_t g) { return g == group[0]; });
}

// One attempt of the pairing model: loose ends, `degree` a rank, are joined at random; joins that
// are none (to itself, a second time) swap ends with others until all are good.
Graph paired_at_random(int32_t world_size, int32_t degree, RandomNumbers& random) {
  std::vector<int32_t> ends;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    for (int32_t end = 0; end < degree; ++end) ends.push_back(rank);
  }
  const auto count = static_cast<int32_t>(ends.size());
  for (int32_t last = count - 1; last > 0; --last) {
    std::swap(ends[static_cast<size_t>(last)], ends[static_cast<size_t>(random.below(last + 1))]);
  }
  for (int32_t attempt = 0; attempt < 100 * count; ++attempt) {
    Graph edges;
    for (size_t end = 0; end + 1 < ends.size(); end += 2)
      edges.push_back({ends[end], ends[end + 1]});
    if (tidy(edges).size() == edges.size()) return tidy(edges);
    std::set<std::pair<int32_t, int32_t>> seen;
    for (size_t edge = 0; edge < edges.size(); ++edge) {
      const bool is_new = seen.emplace(std::minmax(edges[edge].from, edges[edge].to)).second;
      if (is_new && edges[edge].from != edges[edge].to) continue;
      std::swap(ends[2 * edge], ends[static_cast<size_t>(random.below(count))]);
    }
  }
  return {};
}

int32_t rows_of(int32_t world_size) {
  int32_t rows = 1;
  for (int32_t candidate = 1; candidate * candidate <= world_size; ++candidate) {
    if (world_size % candidate == 0) rows = candidate;
  }
  return rows;
}

}  // namespace

Graph ring_graph(int32_t world_size) {
  require_world_size(world_size, "ring_graph");
  Graph edges;
  for (int32_t rank = 0; rank < world_size; ++rank)
    edges.push_back({rank, (rank + 1) % world_size});
  return tidy(edges);
}

Graph star_graph(int32_t world_size, int32_t center) {
  require_root(center, world_size, "star_graph");
  Graph edges;
  for (int32_t rank = 0; rank < world_size; ++rank) edges.push_back({center, rank});
  return tidy(edges);
}

Graph exponential_graph(int32_t world_size) {
  require_world_size(world_size, "exponential_graph");
  Graph edges;
  for (int32_t distance = 1; distance < world_size; distance *= 2) {
    for (int32_t rank = 0; rank < world_size; ++rank) {
      edges.push_back({rank, (rank + distance) % world_size});
    }
  }
  return tidy(edges);
}

Graph hypercube_graph(int32_t world_size) {
  require_world_size(world_size, "hypercube_graph");
  if (!std::has_single_bit(static_cast<uint32_t>(world_size))) {
    throw std::invalid_argument("hypercube_graph: " + std::to_string(world_size) +
                                " ranks, not a power of two");
  }
  Graph edges;
  for (int32_t bit = 1; bit < world_size; bit *= 2) {
    for (int32_t rank = 0; rank < world_size; ++rank) edges.push_back({rank, rank ^ bit});
  }
  return tidy(edges);
}

Graph grid_graph(int32_t world_size, bool is_torus) {
  require_world_size(world_size, "grid_graph");
  const int32_t rows = rows_of(world_size);
  const int32_t columns = world_size / rows;
  Graph edges;
  for (int32_t row = 0; row < rows; ++row) {
    for (int32_t column = 0; column < columns; ++column) {
      const int32_t rank = row * columns + column;
      if (is_torus || column + 1 < columns) {
        edges.push_back({rank, row * columns + (column + 1) % columns});
      }
      if (is_torus || row + 1 < rows) edges.push_back({rank, (row + 1) % rows * columns + column});
    }
  }
  return tidy(edges);
}

Graph watts_strogatz_graph(int32_t world_size, int32_t degree, double probability, uint64_t seed) {
  require_world_size(world_size, "watts_strogatz_graph");
  constexpr int32_t kAttempts = 100;
  for (int32_t attempt = 0; attempt < kAttempts; ++attempt) {
    RandomNumbers random(seed * kAttempts + static_cast<uint64_t>(attempt));
    Graph edges;
    for (int32_t distance = 1; distance <= std::max(1, degree / 2); ++distance) {
      for (int32_t rank = 0; rank < world_size; ++rank) {
        const bool is_moved = random.happens(probability);
        const int32_t moved = random.below(world_size);
        edges.push_back({rank, is_moved ? moved : (rank + distance) % world_size});
      }
    }
    edges = tidy(edges);
    if (is_connected(world_size, edges)) return edges;
  }
  throw std::invalid_argument("watts_strogatz_graph: no connected graph of " +
                              std::to_string(world_size) + " ranks was found");
}

Graph random_regular_graph(int32_t world_size, int32_t degree, uint64_t seed) {
  require_world_size(world_size, "random_regular_graph");
  if (degree < 1 || degree >= world_size || world_size % 2 * (degree % 2) != 0) {
    throw std::invalid_argument("random_regular_graph: no graph of " + std::to_string(world_size) +
                                " ranks with " + std::to_string(degree) + " neighbours each");
  }
  RandomNumbers random(seed);
  for (int32_t attempt = 0; attempt < 100; ++attempt) {
    Graph graph = paired_at_random(world_size, degree, random);
    if (!graph.empty() && is_connected(world_size, graph)) return graph;
  }
  throw std::invalid_argument("random_regular_graph: no connected graph of " +
                              std::to_string(world_size) + " ranks with " + std::to_string(degree) +
                              " neighbours each was found");
}

Graph best_regular_graph(const Links& links, int32_t degree, uint64_t seed) {
  constexpr uint64_t kSamples = 12;
  Graph best;
  double best_rate = -1;
  for (uint64_t sample = 0; sample < kSamples; ++sample) {
    Graph graph = random_regular_graph(links.world_size, degree, seed * kSamples + sample);
    const double rate = packed_rate(capacities(links_of_graph(links, graph)));
    if (rate <= best_rate) continue;
    best = std::move(graph);
    best_rate = rate;
  }
  return best;
}

Graph graph_by_name(std::string_view name, int32_t world_size, int32_t degree, uint64_t seed) {
  if (name == "ring") return ring_graph(world_size);
  if (name == "star") return star_graph(world_size, 0);
  if (name == "exponential") return exponential_graph(world_size);
  if (name == "hypercube") return hypercube_graph(world_size);
  if (name == "grid") return grid_graph(world_size, false);
  if (name == "torus") return grid_graph(world_size, true);
  if (name == "small_world") return watts_strogatz_graph(world_size, degree, 0.3, seed);
  if (name == "regular") return random_regular_graph(world_size, degree, seed);
  throw std::invalid_argument("unknown graph \"" + std::string(name) +
                              "\"; there are: ring, star, exponential, hypercube, grid, torus, "
                              "small_world, regular");
}

Links links_of_graph(const Links& links, const Graph& graph) {
  Links result = links;
  for (LinkCost& cost : result.cost) cost.seconds_per_byte = kNoLink;
  const auto ranks = static_cast<size_t>(links.world_size);
  for (const Edge& edge : graph) {
    if (edge.from < 0 || edge.to < 0 || edge.from >= links.world_size ||
        edge.to >= links.world_size) {
      throw std::invalid_argument("links_of_graph: the edge between " + std::to_string(edge.from) +
                                  " and " + std::to_string(edge.to) + " is not within " +
                                  std::to_string(links.world_size) + " ranks");
    }
    for (const auto& [from, to] : {std::pair(edge.from, edge.to), std::pair(edge.to, edge.from)}) {
      result.cost[static_cast<size_t>(from) * ranks + static_cast<size_t>(to)] = links.at(from, to);
    }
  }
  return result;
}

Links links_of_accepting(const Links& links, const std::vector<bool>& accepts) {
  if (accepts.size() != static_cast<size_t>(links.world_size)) {
    throw std::invalid_argument("links_of_accepting: " + std::to_string(accepts.size()) +
                                " words on " + std::to_string(links.world_size) + " ranks");
  }
  Graph graph;
  for (int32_t from = 0; from < links.world_size; ++from) {
    for (int32_t to = from + 1; to < links.world_size; ++to) {
      if (accepts[static_cast<size_t>(from)] || accepts[static_cast<size_t>(to)]) {
        graph.push_back({from, to});
      }
    }
  }
  return links_of_graph(links, graph);
}

}  // namespace pccl::topology
