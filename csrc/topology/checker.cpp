#include "topology/checker.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <string_view>
#include <tuple>

namespace pccl::topology {
namespace {

using Fault = std::optional<std::string>;

std::string rank_name(int32_t rank) { return "rank " + std::to_string(rank); }

bool is_reducing(Collective collective) {
  return collective == Collective::AllReduce || collective == Collective::Reduce ||
         collective == Collective::ReduceScatter;
}

size_t block_count_of(Collective collective, int32_t world_size) {
  const auto ranks = static_cast<size_t>(world_size);
  switch (collective) {
    case Collective::AllReduce:
    case Collective::Broadcast:
    case Collective::Reduce:
      return 1;
    case Collective::AllGather:
    case Collective::ReduceScatter:
    case Collective::Gather:
    case Collective::Scatter:
      return ranks;
    case Collective::AllToAll:
      return ranks * ranks;
  }
  return 0;
}

// Sets of ranks, one per rank: whose contributions its partial result holds.
class Contributors {
 public:
  explicit Contributors(int32_t world_size)
      : ranks_(static_cast<size_t>(world_size)), words_((ranks_ + 63) / 64) {}

  // Every rank holds its own contribution.
  void reset() {
    bits_.assign(ranks_ * words_, 0);
    for (size_t rank = 0; rank < ranks_; ++rank) {
      bits_[rank * words_ + rank / 64] = uint64_t{1} << (rank % 64);
    }
  }

  // Adds `from`'s set to `to`'s; returns a rank that is in both, or -1.
  int32_t merge(int32_t from, int32_t to) {
    const size_t source = static_cast<size_t>(from) * words_;
    const size_t target = static_cast<size_t>(to) * words_;
    for (size_t word = 0; word < words_; ++word) {
      const uint64_t both = bits_[source + word] & bits_[target + word];
      if (both != 0) return static_cast<int32_t>(word * 64) + std::countr_zero(both);
      bits_[target + word] |= bits_[source + word];
    }
    return -1;
  }

  // `right` gets the set of `left`.
  void copy(int32_t left, int32_t right) {
    const auto source = bits_.begin() + static_cast<std::ptrdiff_t>(left) * stride();
    std::copy(source, source + stride(),
              bits_.begin() + static_cast<std::ptrdiff_t>(right) * stride());
  }

  // Two ranks that exchange their sets; returns a rank that is in both, or -1.
  int32_t exchange(int32_t left, int32_t right) {
    const int32_t twice = merge(left, right);
    if (twice < 0) copy(right, left);
    return twice;
  }

  // The lowest rank that is not in the set of `rank`, or -1.
  int32_t missing(int32_t rank) const {
    for (size_t other = 0; other < ranks_; ++other) {
      const uint64_t word = bits_[static_cast<size_t>(rank) * words_ + other / 64];
      if ((word >> (other % 64) & 1) == 0) return static_cast<int32_t>(other);
    }
    return -1;
  }

 private:
  std::ptrdiff_t stride() const { return static_cast<std::ptrdiff_t>(words_); }

  size_t ranks_;
  size_t words_;
  std::vector<uint64_t> bits_;  // [rank][word]
};

class Checker {
 public:
  Checker(const Schedule& schedule, const CheckOptions& options)
      : schedule_(schedule), options_(options), contributors_(schedule.world_size) {}

  Fault run() {
    if (Fault fault = check_tiling()) return fault;
    for (size_t index = 0; index < schedule_.chunks.size(); ++index) {
      const Chunk& chunk = schedule_.chunks[index];
      Fault fault = check_core(chunk);
      if (!fault) fault = check_edges(chunk.up, "up");
      if (!fault) fault = check_edges(chunk.down, "down");
      if (!fault) fault = chunk.reduces ? run_up(chunk) : check_source(chunk);
      if (!fault && chunk.reduces) fault = run_exchange(chunk);
      if (!fault) fault = run_down(chunk);
      if (fault) return place(index) + *fault;
    }
    return std::nullopt;
  }

 private:
  std::string place(size_t index) const {
    return "chunk " + std::to_string(index) + " (block " +
           std::to_string(schedule_.chunks[index].block) + "): ";
  }

  // Every element of every block is in exactly one chunk.
  Fault check_tiling() const {
    const bool is_whole = options_.collective == Collective::AllToAll;
    const size_t blocks = block_count_of(options_.collective, schedule_.world_size);
    std::vector<size_t> order;
    for (size_t index = 0; index < schedule_.chunks.size(); ++index) {
      const Chunk& chunk = schedule_.chunks[index];
      if (chunk.block >= blocks) return place(index) + "no such block";
      if (chunk.count == 0) return place(index) + "is empty";
      if (is_whole != (chunk.count == Chunk::kWholeBlock)) {
        return place(index) + "chunks are whole blocks in all_to_all, and only there";
      }
      order.push_back(index);
    }
    std::sort(order.begin(), order.end(), [this](size_t left, size_t right) {
      const Chunk& a = schedule_.chunks[left];
      const Chunk& b = schedule_.chunks[right];
      return std::tie(a.block, a.offset, left) < std::tie(b.block, b.offset, right);
    });
    size_t next = 0;
    for (size_t block = 0; block < blocks; ++block) {
      const uint64_t count = is_whole ? Chunk::kWholeBlock : options_.block_counts[block];
      if (Fault fault = check_block(block, count, order, next)) return fault;
    }
    return std::nullopt;
  }

  // `next` is the place in `order` of the block's first chunk, and then of the next block's.
  Fault check_block(size_t block, uint64_t count, const std::vector<size_t>& order,
                    size_t& next) const {
    uint64_t end = 0;
    for (; next < order.size() && schedule_.chunks[order[next]].block == block; ++next) {
      const Chunk& chunk = schedule_.chunks[order[next]];
      if (chunk.offset != end) {
        return place(order[next]) + "begins at element " + std::to_string(chunk.offset) + ", but " +
               std::to_string(end) +
               " is the next: " + (chunk.offset > end ? "a gap" : "an overlap");
      }
      if (chunk.count > count - end) {
        return place(order[next]) + std::to_string(chunk.count) + " elements from element " +
               std::to_string(end) + " on, but the block has " + std::to_string(count);
      }
      end += chunk.count;
    }
    if (end == count) return std::nullopt;
    return "block " + std::to_string(block) + ": a gap, elements " + std::to_string(end) + " to " +
           std::to_string(count) + " are in no chunk";
  }

  bool is_rank(int32_t rank) const { return rank >= 0 && rank < schedule_.world_size; }
  bool is_core(const Chunk& chunk, int32_t rank) const {
    return std::find(chunk.core.begin(), chunk.core.end(), rank) != chunk.core.end();
  }

  Fault check_core(const Chunk& chunk) const {
    if (chunk.reduces != is_reducing(options_.collective)) {
      return chunk.reduces ? "reduces, but the collective moves"
                           : "moves, but the collective reduces";
    }
    if (chunk.exchanges_at_once ? chunk.core.size() < 2 || !chunk.reduces
                                : !std::has_single_bit(chunk.core.size())) {
      return "core: " + std::to_string(chunk.core.size()) + " ranks, not " +
             (chunk.exchanges_at_once ? "several that reduce" : "a power of two");
    }
    std::vector<bool> seen(static_cast<size_t>(schedule_.world_size));
    for (const int32_t rank : chunk.core) {
      if (!is_rank(rank)) return "core: " + rank_name(rank) + " is out of range";
      if (seen[static_cast<size_t>(rank)]) return "core: " + rank_name(rank) + " stands twice";
      seen[static_cast<size_t>(rank)] = true;
    }
    return std::nullopt;
  }

  Fault check_edges(const std::vector<Edge>& edges, std::string_view stage) const {
    for (const Edge& edge : edges) {
      std::string_view wrong;
      if (!is_rank(edge.from) || !is_rank(edge.to)) {
        wrong = "is out of range";
      } else if (edge.from == edge.to) {
        wrong = "leads to itself";
      } else if (!is_allowed(edge.from, edge.to)) {
        wrong = "uses a forbidden link";
      }
      if (wrong.empty()) continue;
      return std::string(stage) + ": edge from " + rank_name(edge.from) + " to " +
             rank_name(edge.to) + " " + std::string(wrong);
    }
    return std::nullopt;
  }

  bool is_allowed(int32_t from, int32_t to) const {
    return !options_.allowed || options_.allowed(from, to);
  }

  // A moving chunk starts at the one rank that has the data.
  Fault check_source(const Chunk& chunk) const {
    int32_t source = options_.root;
    if (options_.collective == Collective::AllGather || options_.collective == Collective::Gather) {
      source = static_cast<int32_t>(chunk.block);
    } else if (options_.collective == Collective::AllToAll) {
      source = static_cast<int32_t>(chunk.block / static_cast<uint32_t>(schedule_.world_size));
    }
    if (chunk.core.size() != 1)
      return "core: a moving chunk has one core rank, " + rank_name(source);
    if (chunk.core.front() != source) {
      return "core: " + rank_name(chunk.core.front()) + ", but " + rank_name(source) +
             " has the data";
    }
    if (!chunk.up.empty()) {
      return "up: " + rank_name(chunk.up.front().from) + " contributes to a chunk that only moves";
    }
    return std::nullopt;
  }

  Fault run_up(const Chunk& chunk) {
    contributors_.reset();
    parent_.assign(static_cast<size_t>(schedule_.world_size), kNone);
    for (const Edge& edge : chunk.up) {
      int32_t& parent = parent_[static_cast<size_t>(edge.from)];
      if (is_core(chunk, edge.from)) return "up: core " + rank_name(edge.from) + " sends away";
      if (parent != kNone) {
        return "up: " + rank_name(edge.from) + " sends twice, to " + rank_name(parent) + " and " +
               rank_name(edge.to) + ": its contribution counts twice";
      }
      if (parent_[static_cast<size_t>(edge.to)] != kNone) {
        return "up: " + rank_name(edge.to) + " has sent before it hears from " +
               rank_name(edge.from) + (leads_to(edge.to, edge.from) ? ": a circle" : "");
      }
      parent = edge.to;
      const int32_t twice = contributors_.merge(edge.from, edge.to);
      if (twice >= 0) return "up: contribution of " + rank_name(twice) + " counts twice";
    }
    for (int32_t rank = 0; rank < schedule_.world_size; ++rank) {
      if (parent_[static_cast<size_t>(rank)] == kNone && !is_core(chunk, rank)) {
        return "up: contribution of " + rank_name(rank) + " is missing, it sends to nobody";
      }
    }
    return std::nullopt;
  }

  // Whether the up edges run so far lead from one rank to the other. They form a forest.
  bool leads_to(int32_t from, int32_t to) const {
    while (from != kNone && from != to) from = parent_[static_cast<size_t>(from)];
    return from == to;
  }

  Fault run_exchange(const Chunk& chunk) {
    if (Fault fault = chunk.exchanges_at_once ? exchange_at_once(chunk) : exchange_in_rounds(chunk))
      return fault;
    for (const int32_t rank : chunk.core) {
      const int32_t missing = contributors_.missing(rank);
      if (missing < 0) continue;
      return "contribution of " + rank_name(missing) + " is missing at core " + rank_name(rank);
    }
    return std::nullopt;
  }

  Fault exchange_in_rounds(const Chunk& chunk) {
    for (size_t bit = 1; bit < chunk.core.size(); bit *= 2) {
      for (size_t position = 0; position < chunk.core.size(); ++position) {
        if ((position & bit) != 0) continue;
        const int32_t left = chunk.core[position];
        const int32_t right = chunk.core[position ^ bit];
        if (Fault fault = check_pair(left, right)) return fault;
        if (Fault fault = counts_twice(contributors_.exchange(left, right))) return fault;
      }
    }
    return std::nullopt;
  }

  Fault exchange_at_once(const Chunk& chunk) {
    const int32_t first = chunk.core.front();
    for (size_t right = 1; right < chunk.core.size(); ++right) {
      for (size_t left = 0; left < right; ++left) {
        if (Fault fault = check_pair(chunk.core[left], chunk.core[right])) return fault;
      }
      if (Fault fault = counts_twice(contributors_.merge(chunk.core[right], first))) return fault;
    }
    for (const int32_t rank : chunk.core) contributors_.copy(first, rank);
    return std::nullopt;
  }

  Fault check_pair(int32_t left, int32_t right) const {
    if (is_allowed(left, right) && is_allowed(right, left)) return std::nullopt;
    return "exchange: " + rank_name(left) + " and " + rank_name(right) + " use a forbidden link";
  }

  static Fault counts_twice(int32_t rank) {
    if (rank < 0) return std::nullopt;
    return "exchange: contribution of " + rank_name(rank) + " counts twice";
  }

  Fault run_down(const Chunk& chunk) {
    has_final_.assign(static_cast<size_t>(schedule_.world_size), false);
    for (const int32_t rank : chunk.core) has_final_[static_cast<size_t>(rank)] = true;
    for (const Edge& edge : chunk.down) {
      if (!has_final_[static_cast<size_t>(edge.from)]) {
        return "down: " + rank_name(edge.from) + " sends to " + rank_name(edge.to) +
               " before it has the value";
      }
      if (has_final_[static_cast<size_t>(edge.to)]) {
        return "down: " + rank_name(edge.to) + " gets the value twice, here from " +
               rank_name(edge.from);
      }
      has_final_[static_cast<size_t>(edge.to)] = true;
    }
    for (int32_t rank = 0; rank < schedule_.world_size; ++rank) {
      if (!has_final_[static_cast<size_t>(rank)] && needs(rank, chunk.block)) {
        return "down: " + rank_name(rank) + " needs the value and does not get it";
      }
    }
    return std::nullopt;
  }

  bool needs(int32_t rank, uint32_t block) const {
    switch (options_.collective) {
      case Collective::AllReduce:
      case Collective::Broadcast:
      case Collective::AllGather:
        return true;
      case Collective::Reduce:
      case Collective::Gather:
        return rank == options_.root;
      case Collective::ReduceScatter:
      case Collective::Scatter:
        return static_cast<uint32_t>(rank) == block;
      case Collective::AllToAll:
        return static_cast<uint32_t>(rank) == block % static_cast<uint32_t>(schedule_.world_size);
    }
    return true;
  }

  static constexpr int32_t kNone = -1;

  const Schedule& schedule_;
  const CheckOptions& options_;
  // Of the chunk at hand:
  Contributors contributors_;
  std::vector<int32_t> parent_;  // [rank] where it sent up; kNone: it did not yet
  std::vector<bool> has_final_;  // [rank]
};

}  // namespace

std::optional<std::string> find_fault(const Schedule& schedule, const CheckOptions& options) {
  if (schedule.world_size < 1) {
    return "world_size is " + std::to_string(schedule.world_size) + ", not positive";
  }
  if (options.root < 0 || options.root >= schedule.world_size) {
    return "options: root " + std::to_string(options.root) + " is out of range";
  }
  const bool is_whole = options.collective == Collective::AllToAll;
  const size_t blocks = is_whole ? 0 : block_count_of(options.collective, schedule.world_size);
  if (options.block_counts.size() != blocks) {
    return "options: " + std::to_string(options.block_counts.size()) + " block counts, not " +
           std::to_string(blocks);
  }
  return Checker(schedule, options).run();
}

}  // namespace pccl::topology
