// Graphs of members that may talk to each other, and networks cut down to such a graph.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "topology/cost_model.h"
#include "topology/schedule.h"

namespace pccl::topology {

// Undirected, each edge once, from < to, ascending.
using Graph = std::vector<Edge>;

Graph ring_graph(int32_t world_size);
// Everybody with `center` only.
Graph star_graph(int32_t world_size, int32_t center);
// Rank r with r + 1, r + 2, r + 4, ... (modulo world_size).
Graph exponential_graph(int32_t world_size);
// Ranks whose numbers differ in one bit. Requires: world_size is a power of two.
Graph hypercube_graph(int32_t world_size);
// As square as world_size allows, row by row; a torus is closed in both directions.
Graph grid_graph(int32_t world_size, bool is_torus);
// A ring with the `degree` nearest neighbours, each edge moved to a random end with `probability`.
// Source: Watts and Strogatz, Nature 1998.
Graph watts_strogatz_graph(int32_t world_size, int32_t degree, double probability, uint64_t seed);
// Everybody has `degree` neighbours, drawn at random: an expander, nearly always. Connected.
// Requires: world_size * degree is even, degree < world_size.
Graph random_regular_graph(int32_t world_size, int32_t degree, uint64_t seed);

// The best of 12 random regular graphs on these links, by the rate that trees reach on it.
Graph best_regular_graph(const Links& links, int32_t degree, uint64_t seed);

// By name: ring, star, exponential, hypercube, grid, torus, small_world, regular (of `degree`).
// Throws std::invalid_argument on an unknown name, with the list, or if there is none of that size.
Graph graph_by_name(std::string_view name, int32_t world_size, int32_t degree, uint64_t seed);

// These links without those that are not in `graph`.
Links links_of_graph(const Links& links, const Graph& graph);

// These links without pairs of which neither accepts connections: [rank]. Once a connection exists
// it carries traffic in both directions.
Links links_of_accepting(const Links& links, const std::vector<bool>& accepts);

}  // namespace pccl::topology
