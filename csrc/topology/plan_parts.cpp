#include "topology/plan_parts.h"

#include <algorithm>
#include <bit>
#include <stdexcept>
#include <utility>

namespace pccl::topology {

std::vector<Piece> split(uint64_t count, int32_t parts) {
  const auto part_count = static_cast<uint64_t>(parts);
  const uint64_t unit = count / part_count >= kPieceAlignment ? kPieceAlignment : 1;
  // The last unit may be a partial one, which falls to the last piece.
  const uint64_t units = count / unit + (count % unit != 0);
  const uint64_t units_each = units / part_count;
  const uint64_t pieces_with_more = units % part_count;
  std::vector<Piece> pieces(part_count);
  uint64_t begin = 0;
  for (uint64_t part = 0; part < part_count; ++part) {
    // The longer pieces come last, so that the partial unit shortens one of them.
    const uint64_t piece_units = units_each + (part >= part_count - pieces_with_more);
    const uint64_t end = part + 1 == part_count ? count : begin + piece_units * unit;
    pieces[part] = {.offset = begin, .count = end - begin};
    begin = end;
  }
  return pieces;
}

std::vector<std::vector<Edge>> exchange_rounds(const Chunk& chunk) {
  std::vector<std::vector<Edge>> rounds;
  const size_t size = chunk.core.size();
  if (chunk.exchanges_at_once) {
    std::vector<Edge>& all = rounds.emplace_back();
    for (const int32_t from : chunk.core) {
      for (const int32_t to : chunk.core) {
        if (from != to) all.push_back({from, to});
      }
    }
    return rounds;
  }
  for (size_t bit = 1; bit < size; bit *= 2) {
    std::vector<Edge>& round = rounds.emplace_back();
    for (size_t position = 0; position < size; ++position) {
      round.push_back({chunk.core[position], chunk.core[position ^ bit]});
    }
  }
  return rounds;
}

Chunk whole_block(uint32_t block, uint64_t count, bool reduces, std::vector<int32_t> core) {
  Chunk chunk;
  chunk.block = block;
  chunk.count = count;
  chunk.reduces = reduces;
  chunk.core = std::move(core);
  return chunk;
}

std::vector<Edge> path_edges(std::span<const int32_t> order, size_t first) {
  std::vector<Edge> edges;
  edges.reserve(order.size() - 1);
  for (size_t step = 0; step + 1 < order.size(); ++step) {
    const size_t from = (first + step) % order.size();
    edges.push_back({order[from], order[(from + 1) % order.size()]});
  }
  return edges;
}

std::vector<Edge> star_up(int32_t world_size, int32_t root) {
  std::vector<Edge> edges;
  edges.reserve(static_cast<size_t>(world_size) - 1);
  for (int32_t rank = 0; rank < world_size; ++rank) {
    if (rank != root) edges.push_back({rank, root});
  }
  return edges;
}

std::vector<Edge> star_down(int32_t world_size, int32_t root) {
  std::vector<Edge> edges;
  edges.reserve(static_cast<size_t>(world_size) - 1);
  for (int32_t distance = 1; distance < world_size; ++distance) {
    edges.push_back({root, (root + distance) % world_size});
  }
  return edges;
}

std::vector<Edge> binomial_down(int32_t world_size, int32_t root) {
  std::vector<Edge> edges;
  edges.reserve(static_cast<size_t>(world_size) - 1);
  // Positions count from the root; the multiples of 2 * distance have the value before the round.
  for (int32_t distance = power_of_two_floor(world_size); distance > 0; distance /= 2) {
    for (int32_t position = 0; position + distance < world_size; position += 2 * distance) {
      edges.push_back({(root + position) % world_size, (root + position + distance) % world_size});
    }
  }
  return edges;
}

std::vector<Edge> tree_edges(const std::vector<int32_t>& parent, int32_t root) {
  const auto n = static_cast<int32_t>(parent.size());
  std::vector<Edge> edges;
  edges.reserve(parent.size() - 1);
  std::vector<int32_t> reached = {root};
  for (size_t head = 0; head < reached.size(); ++head) {
    for (int32_t distance = 1; distance < n; ++distance) {
      const int32_t rank = (reached[head] + distance) % n;
      if (rank == root || parent[static_cast<size_t>(rank)] != reached[head]) continue;
      edges.push_back({reached[head], rank});
      reached.push_back(rank);
    }
  }
  return edges;
}

std::vector<Edge> reversed(const std::vector<Edge>& edges) {
  std::vector<Edge> result;
  result.reserve(edges.size());
  for (auto edge = edges.rbegin(); edge != edges.rend(); ++edge) {
    result.push_back({edge->to, edge->from});
  }
  return result;
}

int32_t power_of_two_floor(int32_t value) {
  return static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(value)));
}

void require_world_size(int32_t world_size, const std::string& planner) {
  // 2^16 ranks: the blocks of an all_to_all, one a pair, are counted in 32 bits.
  constexpr int32_t kWorldSizeMax = 1 << 16;
  if (world_size >= 1 && world_size <= kWorldSizeMax) return;
  throw std::invalid_argument(planner + ": world_size is " + std::to_string(world_size) +
                              ", not in 1.." + std::to_string(kWorldSizeMax));
}

void require_root(int32_t root, int32_t world_size, const std::string& planner) {
  require_world_size(world_size, planner);
  if (root >= 0 && root < world_size) return;
  throw std::invalid_argument(planner + ": root " + std::to_string(root) + " is not in 0.." +
                              std::to_string(world_size - 1));
}

void require_permutation(std::span<const int32_t> order, const std::string& planner) {
  require_world_size(static_cast<int32_t>(order.size()), planner);
  std::vector<int32_t> sorted(order.begin(), order.end());
  std::sort(sorted.begin(), sorted.end());
  for (size_t rank = 0; rank < sorted.size(); ++rank) {
    if (sorted[rank] == static_cast<int32_t>(rank)) continue;
    throw std::invalid_argument(planner + ": the order of " + std::to_string(order.size()) +
                                " ranks is no permutation, rank " + std::to_string(rank) +
                                " or a lower one is missing or double");
  }
}

}  // namespace pccl::topology
