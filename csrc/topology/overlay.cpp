#include "topology/overlay.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <set>
#include <stdexcept>
#include <utility>

namespace pccl::topology {
namespace {

constexpr std::string_view kNames =
    "ring, star, exponential, hypercube, grid, torus, small_world:DEGREE:SEED, "
    "regular:DEGREE:SEED, or edges \"0-1,1-2\"";
constexpr int32_t kDegree = 4;

struct Named {
  std::string name;
  bool is_drawn = false;  // it has a degree and a seed
  int32_t degree = kDegree;
  uint64_t seed = 0;
};

[[noreturn]] void refuse(std::string_view text, const std::string& why) {
  throw std::invalid_argument("graph: \"" + std::string(text.substr(0, 80)) + "\": " + why);
}

std::vector<std::string_view> parts_of(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(separator, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

template <typename Number>
Number number_of(std::string_view part, std::string_view text) {
  Number number = 0;
  const auto [end, error] = std::from_chars(part.data(), part.data() + part.size(), number);
  if (error != std::errc() || end != part.data() + part.size() || number < 0)
    refuse(text, "\"" + std::string(part) + "\" is no number; expected " + std::string(kNames));
  return number;
}

bool is_list(std::string_view text) { return !text.empty() && text[0] >= '0' && text[0] <= '9'; }

Graph edges_of(std::string_view text) {
  std::set<std::pair<int32_t, int32_t>> pairs;
  for (const std::string_view edge : parts_of(text, ',')) {
    const std::vector<std::string_view> ends = parts_of(edge, '-');
    if (ends.size() != 2) refuse(text, "\"" + std::string(edge) + "\" is no edge like \"0-1\"");
    const auto from = number_of<int32_t>(ends[0], text);
    const auto to = number_of<int32_t>(ends[1], text);
    if (from == to) refuse(text, "edge " + std::string(edge) + " joins a rank with itself");
    pairs.emplace(std::minmax(from, to));
  }
  Graph graph;
  for (const auto& [from, to] : pairs) graph.push_back({from, to});
  return graph;
}

Named named(std::string_view text) {
  const std::vector<std::string_view> parts = parts_of(text, ':');
  Named graph{.name = std::string(parts[0])};
  graph.is_drawn = graph.name == "small_world" || graph.name == "regular";
  // Every name that there is has a graph of four ranks.
  try {
    graph_by_name(graph.name, 4, 2, 0);
  } catch (const std::invalid_argument&) {
    refuse(text, "expected " + std::string(kNames));
  }
  if (parts.size() > (graph.is_drawn ? 3 : 1)) refuse(text, "it has too many parts");
  if (parts.size() > 1) graph.degree = number_of<int32_t>(parts[1], text);
  if (parts.size() > 2) graph.seed = number_of<uint64_t>(parts[2], text);
  if (graph.degree < 2) refuse(text, "a degree below 2 does not connect its ranks");
  return graph;
}

std::vector<std::vector<int32_t>> neighbours_of(int32_t world_size, const Graph& graph) {
  std::vector<std::vector<int32_t>> neighbours(static_cast<size_t>(world_size));
  for (const Edge& edge : graph) {
    neighbours[static_cast<size_t>(edge.from)].push_back(edge.to);
    neighbours[static_cast<size_t>(edge.to)].push_back(edge.from);
  }
  for (auto& list : neighbours) std::sort(list.begin(), list.end());
  return neighbours;
}

// Breadth first from rank 0: each rank reached, with the one that it was reached from.
std::vector<Edge> reached_from_first(int32_t world_size, const Graph& graph) {
  const auto neighbours = neighbours_of(world_size, graph);
  std::vector<bool> is_reached(static_cast<size_t>(world_size));
  std::vector<Edge> reached{{0, 0}};
  is_reached[0] = true;
  for (size_t next = 0; next < reached.size(); ++next) {
    const int32_t from = reached[next].to;
    for (const int32_t to : neighbours[static_cast<size_t>(from)]) {
      if (is_reached[static_cast<size_t>(to)]) continue;
      is_reached[static_cast<size_t>(to)] = true;
      reached.push_back({from, to});
    }
  }
  return reached;
}

// The same graph with its ranks in the order in which they are reached: each but the first has a
// neighbour before it. Members come and go at the end of the ranks.
Graph in_order(int32_t world_size, const Graph& graph) {
  std::vector<int32_t> place(static_cast<size_t>(world_size));
  int32_t next = 0;
  for (const Edge& edge : reached_from_first(world_size, graph))
    place[static_cast<size_t>(edge.to)] = next++;
  Graph result;
  for (const Edge& edge : graph) {
    const auto [from, to] =
        std::minmax(place[static_cast<size_t>(edge.from)], place[static_cast<size_t>(edge.to)]);
    result.push_back({from, to});
  }
  return result;
}

Graph every_pair(int32_t world_size) {
  Graph graph;
  for (int32_t from = 0; from < world_size; ++from) {
    for (int32_t to = from + 1; to < world_size; ++to) graph.push_back({from, to});
  }
  return graph;
}

Graph drawn(const Named& graph, int32_t world_size) {
  const bool is_odd = world_size % 2 == 1 && graph.degree % 2 == 1;
  const int32_t degree = graph.name == "regular" && is_odd ? graph.degree + 1 : graph.degree;
  if (degree >= world_size - 1) return every_pair(world_size);
  return in_order(world_size, graph_by_name(graph.name, world_size, degree, graph.seed));
}

Graph without_deaf_pairs(const Graph& graph, const std::vector<bool>& accepts, int32_t hub) {
  std::set<std::pair<int32_t, int32_t>> pairs;
  for (const Edge& edge : graph) {
    const bool can_be =
        accepts[static_cast<size_t>(edge.from)] || accepts[static_cast<size_t>(edge.to)];
    if (can_be) {
      pairs.emplace(edge.from, edge.to);
    } else {
      pairs.emplace(std::minmax(edge.from, hub));
      pairs.emplace(std::minmax(edge.to, hub));
    }
  }
  Graph result;
  for (const auto& [from, to] : pairs) result.push_back({from, to});
  return result;
}

void require_in_list(std::string_view text, const Graph& graph, const std::vector<bool>& accepts) {
  const auto world_size = static_cast<int32_t>(accepts.size());
  for (const Edge& edge : graph) {
    const std::string name =
        "edge " + std::to_string(edge.from) + "-" + std::to_string(edge.to) + " ";
    if (edge.to >= world_size)
      refuse(text, name + "names rank " + std::to_string(edge.to) + ", and there are " +
                       std::to_string(world_size) + " ranks");
    if (!accepts[static_cast<size_t>(edge.from)] && !accepts[static_cast<size_t>(edge.to)])
      refuse(text, name + "joins two members that only connect outwards");
  }
}

}  // namespace

std::string canonical_graph(std::string_view text) {
  if (text.empty()) return {};
  std::string result;
  if (is_list(text)) {
    for (const Edge& edge : edges_of(text)) {
      if (!result.empty()) result += ',';
      result += std::to_string(edge.from) + '-' + std::to_string(edge.to);
    }
    return result;
  }
  const Named graph = named(text);
  result = graph.name;
  if (graph.is_drawn)
    result += ':' + std::to_string(graph.degree) + ':' + std::to_string(graph.seed);
  return result;
}

std::string shown_graph(const std::string& canonical) {
  constexpr size_t kShown = 96;
  if (canonical.size() <= kShown) return canonical;
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a
  for (const char c : canonical) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
  return canonical.substr(0, kShown / 2) + "... (" + std::to_string(canonical.size()) +
         " characters, hash " + std::to_string(hash) + ")";
}

bool fits_any_size(std::string_view graph) { return !is_list(graph) && graph != "hypercube"; }

std::optional<Graph> overlay_graph(std::string_view text, const std::vector<bool>& accepts) {
  const auto world_size = static_cast<int32_t>(accepts.size());
  const auto first = std::find(accepts.begin(), accepts.end(), true);
  const bool all_accept = std::find(accepts.begin(), accepts.end(), false) == accepts.end();
  if (text.empty() && all_accept) return std::nullopt;
  if (world_size < 2) return Graph{};
  if (first == accepts.end()) refuse(text, "every member only connects outwards");
  Graph graph;
  if (is_list(text)) {
    graph = edges_of(text);
    require_in_list(text, graph, accepts);
  } else if (text.empty()) {
    graph = every_pair(world_size);
  } else {
    const Named wanted = named(text);
    graph = wanted.is_drawn ? drawn(wanted, world_size)
                            : graph_by_name(wanted.name, world_size, wanted.degree, wanted.seed);
  }
  if (!all_accept) {
    const auto hub = static_cast<int32_t>(first - accepts.begin());
    graph = without_deaf_pairs(graph, accepts, hub);
  }
  std::vector<bool> is_reached(accepts.size());
  for (const Edge& edge : reached_from_first(world_size, graph))
    is_reached[static_cast<size_t>(edge.to)] = true;
  const auto lost = std::find(is_reached.begin(), is_reached.end(), false);
  if (lost != is_reached.end())
    refuse(text,
           "it does not connect rank 0 with rank " + std::to_string(lost - is_reached.begin()));
  return graph;
}

std::vector<std::vector<int32_t>> spanning_tree(int32_t world_size, const Graph& graph) {
  Graph tree;
  for (const Edge& edge : reached_from_first(world_size, graph)) {
    if (edge.from != edge.to) tree.push_back(edge);
  }
  return neighbours_of(world_size, tree);
}

}  // namespace pccl::topology
