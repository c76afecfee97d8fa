// The graph that members name in their configuration: only its edges carry bytes.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "topology/graphs.h"

namespace pccl::topology {

// The one spelling of a graph: "regular:4:0", or edges "0-1,1-2", ascending. "" is every pair.
//   ring, star (all with rank 0), exponential, hypercube, grid, torus
//   small_world[:degree[:seed]], regular[:degree[:seed]]; degree 4 and seed 0 if none is named
// Throws std::invalid_argument on what is none of these, an edge from a rank to itself, or a degree
// below 2.
std::string canonical_graph(std::string_view text);

// What members tell each other of it: itself, or its beginning and a hash, at most 96 characters.
std::string shown_graph(const std::string& canonical);

// Whether it is one of any number of members. A list of edges, or a hypercube, is not.
bool fits_any_size(std::string_view graph);

// The edges among as many ranks as `accepts` has entries, which say who can be connected to; null:
// every pair. No edge joins two that accept nothing: where a named graph has one, both get an edge
// to the lowest rank that accepts. A degree is made one that this number of ranks has. In small
// worlds and regular graphs the first k ranks are connected, whatever k.
// Throws std::invalid_argument that names the fault: a rank that is not there, two ranks that are
// not connected, an edge in a list between two ranks that accept nothing.
std::optional<Graph> overlay_graph(std::string_view text, const std::vector<bool>& accepts);

// By rank: those beside it in a tree of edges of `graph`, the same for all. Requires: connected.
std::vector<std::vector<int32_t>> spanning_tree(int32_t world_size, const Graph& graph);

}  // namespace pccl::topology
