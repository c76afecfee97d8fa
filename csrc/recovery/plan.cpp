#include "recovery/plan.h"

#include <algorithm>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/capacities.h"
#include "topology/planners.h"

namespace pccl::recovery {
namespace {

using topology::Chunk;
using topology::Edge;

// Finals that several survivors hold are sent by all of them, in pieces no smaller than this.
constexpr uint64_t kPieceElementsMin = 16 << 10;

struct Piece {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// Every place where some survivor's holdings change.
std::vector<uint64_t> boundaries(const RecoveryRequest& request) {
  std::vector<uint64_t> all{0, request.element_count};
  for (const Survivor& survivor : request.survivors) {
    for (const FinalMap::Range& range : survivor.finals.ranges()) {
      all.push_back(range.begin);
      all.push_back(range.end);
    }
  }
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

// Walks through the ranges of one survivor in step with ascending pieces.
class Cursor {
 public:
  explicit Cursor(const FinalMap& map) : ranges_(map.ranges()) {}
  // The range that covers `begin`, null if none. Requires: ascending calls.
  const FinalMap::Range* at(uint64_t begin) {
    while (next_ < ranges_.size() && ranges_[next_].end <= begin) ++next_;
    const bool covers = next_ < ranges_.size() && ranges_[next_].begin <= begin;
    return covers ? &ranges_[next_] : nullptr;
  }

 private:
  const std::vector<FinalMap::Range>& ranges_;
  size_t next_ = 0;
};

// One run of elements with the same holders.
struct Held {
  Piece piece;
  std::vector<int32_t> holders;  // ranks
  std::vector<int32_t> lacking;
};

std::vector<Held> survey(const RecoveryRequest& request, FinalMap& origin) {
  std::vector<Cursor> cursors;
  cursors.reserve(request.survivors.size());
  for (const Survivor& survivor : request.survivors) cursors.emplace_back(survivor.finals);
  const std::vector<uint64_t> edges = boundaries(request);
  std::vector<Held> all;
  for (size_t i = 0; i + 1 < edges.size(); ++i) {
    Held held{{edges[i], edges[i + 1]}, {}, {}};
    const FinalMap::Range* first = nullptr;
    for (size_t s = 0; s < cursors.size(); ++s) {
      const FinalMap::Range* range = cursors[s].at(edges[i]);
      (range != nullptr ? held.holders : held.lacking).push_back(request.survivors[s].rank);
      if (first == nullptr) first = range;
    }
    if (first != nullptr) origin.add({edges[i], edges[i + 1], first->quorum_id, first->weight});
    if (!all.empty() && all.back().holders == held.holders) {
      all.back().piece.end = held.piece.end;
    } else {
      all.push_back(std::move(held));
    }
  }
  return all;
}

// The holders share the work of telling those who lack it.
void add_moves(const Held& held, std::vector<Chunk>& chunks) {
  const uint64_t count = held.piece.end - held.piece.begin;
  const uint64_t parts =
      std::clamp<uint64_t>(count / kPieceElementsMin, 1, uint64_t{held.holders.size()});
  for (uint64_t part = 0; part < parts; ++part) {
    Chunk chunk;
    chunk.block = kBlockFinals;
    chunk.offset = held.piece.begin + count * part / parts;
    chunk.count = held.piece.begin + count * (part + 1) / parts - chunk.offset;
    // Pieces of different runs start at different holders, by their place in the tensor.
    const int32_t source = held.holders[(chunks.size() + part) % held.holders.size()];
    chunk.core = {source};
    for (const int32_t rank : held.lacking) chunk.down.push_back({source, rank});
    chunks.push_back(std::move(chunk));
  }
}

// The same where only some pairs may talk: who lacks them gets them from the nearest holder, by way
// of others that lack them. Each holder has a tree of its own.
void add_moves_along(const topology::Links& links, const Held& held, std::vector<Chunk>& chunks) {
  std::vector<Chunk> trees;
  std::vector<size_t> tree_of(static_cast<size_t>(links.world_size));
  std::vector<int32_t> reached = held.holders;
  for (const int32_t holder : held.holders) {
    tree_of[static_cast<size_t>(holder)] = trees.size();
    Chunk chunk;
    chunk.block = kBlockFinals;
    chunk.offset = held.piece.begin;
    chunk.count = held.piece.end - held.piece.begin;
    chunk.core = {holder};
    trees.push_back(std::move(chunk));
  }
  std::vector<int32_t> lacking = held.lacking;
  for (size_t next = 0; next < reached.size(); ++next) {
    const int32_t from = reached[next];
    const size_t tree = tree_of[static_cast<size_t>(from)];
    std::erase_if(lacking, [&](int32_t to) {
      if (!links.connects(from, to)) return false;
      trees[tree].down.push_back({from, to});
      tree_of[static_cast<size_t>(to)] = tree;
      reached.push_back(to);
      return true;
    });
  }
  if (!lacking.empty()) {
    throw std::invalid_argument("no way over the graph from rank " +
                                std::to_string(held.holders.front()) + " to rank " +
                                std::to_string(lacking.front()));
  }
  for (Chunk& chunk : trees) {
    if (!chunk.down.empty()) chunks.push_back(std::move(chunk));
  }
}

// Plans one all_reduce of all gaps as if they lay side by side, then cuts its chunks where the gaps
// end.
void add_reductions(const RecoveryRequest& request, const std::vector<Piece>& gaps,
                    topology::Schedule& schedule) {
  uint64_t total = 0;
  for (const Piece& gap : gaps) total += gap.end - gap.begin;
  std::vector<int32_t> ranks;
  ranks.reserve(request.survivors.size());
  for (const Survivor& survivor : request.survivors) ranks.push_back(survivor.rank);
  const topology::Links links = topology::links_among(request.links, ranks);
  topology::Routes found;
  if (links.is_measured) found = topology::quick_routes(links);
  const topology::Routes* routes = links.is_measured ? &found : nullptr;
  const topology::Schedule dense =
      request.is_coded
          ? topology::choose_coded_all_reduce(links, total, "auto", routes)
          : topology::choose_all_reduce(links, total, request.element_bytes, "auto", routes);
  const auto rank_of = [&request](int32_t index) {
    return request.survivors[static_cast<size_t>(index)].rank;
  };
  schedule.algorithm = dense.algorithm;
  for (const Chunk& planned : dense.chunks) {
    Chunk chunk = planned;
    chunk.block = kBlockInput;
    for (int32_t& rank : chunk.core) rank = rank_of(rank);
    for (std::vector<Edge>* edges : {&chunk.up, &chunk.down}) {
      for (Edge& edge : *edges) edge = {rank_of(edge.from), rank_of(edge.to)};
    }
    uint64_t gap_offset = 0;
    for (const Piece& gap : gaps) {
      const uint64_t gap_count = gap.end - gap.begin;
      const uint64_t begin = std::max(planned.offset, gap_offset);
      const uint64_t end = std::min(planned.offset + planned.count, gap_offset + gap_count);
      if (begin < end) {
        chunk.offset = gap.begin + (begin - gap_offset);
        chunk.count = end - begin;
        schedule.chunks.push_back(chunk);
      }
      gap_offset += gap_count;
    }
  }
}

}  // namespace

RecoveryPlan plan_recovery(const RecoveryRequest& request) {
  RecoveryPlan plan;
  plan.schedule.algorithm = "recovery";
  plan.schedule.world_size = request.world_size;
  std::vector<Held> runs = survey(request, plan.origin);
  std::vector<Piece> gaps;
  for (const Held& held : runs) {
    if (held.piece.begin < held.piece.end && held.holders.empty()) gaps.push_back(held.piece);
  }
  if (request.is_uniform && !gaps.empty()) {
    plan.starts_over = true;
    plan.origin.clear();
    runs.clear();
    gaps = {{0, request.element_count}};
  }
  uint64_t missing = 0;
  for (const Piece& gap : gaps) missing += gap.end - gap.begin;
  if (!request.can_reduce && missing > 0) {
    plan.elements_lost = missing;
    return plan;
  }
  const bool is_sparse = topology::has_gaps(request.links);
  for (const Held& held : runs) {
    if (held.holders.empty() || held.lacking.empty()) continue;
    plan.elements_moved += held.piece.end - held.piece.begin;
    if (is_sparse) {
      add_moves_along(request.links, held, plan.schedule.chunks);
    } else {
      add_moves(held, plan.schedule.chunks);
    }
  }
  plan.elements_reduced = missing;
  if (missing > 0) add_reductions(request, gaps, plan.schedule);
  return plan;
}

}  // namespace pccl::recovery
