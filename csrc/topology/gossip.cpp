#include "topology/gossip.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

#include "topology/plan_parts.h"
#include "topology/random_numbers.h"

namespace pccl::topology {
namespace {

// Entries are set for some ranks; what is missing in a column stays with the rank itself.
class Builder {
 public:
  explicit Builder(int32_t world_size) : n_(static_cast<size_t>(world_size)), weights_(n_ * n_) {
    for (size_t rank = 0; rank < n_; ++rank) weights_[rank * n_ + rank] = 1;
  }

  // `to` takes `weight` of `from`'s value in place of its own.
  void take(int32_t to, int32_t from, double weight) {
    const auto row = static_cast<size_t>(to) * n_;
    weights_[row + static_cast<size_t>(from)] += weight;
    weights_[row + static_cast<size_t>(to)] -= weight;
  }

  void exchange(int32_t left, int32_t right, double weight) {
    take(left, right, weight);
    take(right, left, weight);
  }

  Mixing done() { return std::move(weights_); }

 private:
  size_t n_;
  Mixing weights_;
};

int32_t bits_of(int32_t value) {
  return static_cast<int32_t>(std::bit_width(static_cast<uint32_t>(value)));
}

Mixing shifts(int32_t world_size, const std::vector<int32_t>& distances, double weight_each) {
  Builder round(world_size);
  for (int32_t rank = 0; rank < world_size; ++rank) {
    for (const int32_t distance : distances) {
      round.take(rank, (rank + distance) % world_size, weight_each);
    }
  }
  return round.done();
}

std::vector<int32_t> powers_below(int32_t world_size) {
  std::vector<int32_t> powers;
  for (int32_t distance = 1; distance < world_size; distance *= 2) powers.push_back(distance);
  return powers;
}

Mixing random_pairs(int32_t world_size, uint64_t round, uint64_t seed) {
  RandomNumbers random(seed * 0x100000001b3 + round);
  std::vector<int32_t> order(static_cast<size_t>(world_size));
  std::iota(order.begin(), order.end(), 0);
  for (int32_t last = world_size - 1; last > 0; --last) {
    std::swap(order[static_cast<size_t>(last)], order[static_cast<size_t>(random.below(last + 1))]);
  }
  Builder builder(world_size);
  for (size_t place = 0; place + 1 < order.size(); place += 2) {
    builder.exchange(order[place], order[place + 1], 0.5);
  }
  return builder.done();
}

// A shift of 0 is none; it would be drawn once in P times.
int32_t drawn_shift(int32_t world_size, RandomNumbers& random) {
  return world_size == 1 ? 0 : 1 + random.below(world_size - 1);
}

Mixing equi_static(int32_t world_size, uint64_t seed) {
  RandomNumbers random(seed);
  const int32_t count = bits_of(world_size - 1) + 1;
  std::vector<int32_t> distances(static_cast<size_t>(count));
  for (int32_t& distance : distances) distance = drawn_shift(world_size, random);
  const double others = 1 - 1.0 / world_size;
  return shifts(world_size, distances, others / count);
}

// --- Base-(k + 1) graphs -------------------------------------------------------------------------

using Group = std::vector<int32_t>;

// Averages that run at the same time, on different ranks; rounds are made longer together.
struct Rounds {
  struct Pair {
    int32_t left;
    int32_t right;
    double weight;
  };
  std::vector<std::vector<Pair>> pairs;  // [round]

  void merge(const Rounds& other) {
    pairs.resize(std::max(pairs.size(), other.pairs.size()));
    for (size_t round = 0; round < other.pairs.size(); ++round) {
      pairs[round].insert(pairs[round].end(), other.pairs[round].begin(), other.pairs[round].end());
    }
  }
  void append(const Rounds& later) {
    pairs.insert(pairs.end(), later.pairs.begin(), later.pairs.end());
  }
};

// The factors of `size`, each at most `most`, the largest first; empty if a prime is larger.
std::vector<int32_t> factors_up_to(int32_t size, int32_t most) {
  std::vector<int32_t> factors;
  while (size > 1) {
    int32_t factor = std::min(size, most);
    while (factor > 1 && size % factor != 0) --factor;
    if (factor == 1) return {};
    factors.push_back(factor);
    size /= factor;
  }
  return factors;
}

// Ranks as digits of a number with these factors as bases: all that differ in one digit average.
// Requires: every prime factor of the group's size is at most partners + 1.
Rounds hypercube_rounds(const Group& group, int32_t partners) {
  Rounds rounds;
  size_t stride = 1;
  for (const int32_t factor : factors_up_to(static_cast<int32_t>(group.size()), partners + 1)) {
    std::vector<Rounds::Pair> pairs;
    for (size_t index = 0; index < group.size(); ++index) {
      const size_t digit = index / stride % static_cast<size_t>(factor);
      for (size_t further = 1; digit + further < static_cast<size_t>(factor); ++further) {
        pairs.push_back({group[index], group[index + further * stride], 1.0 / factor});
      }
    }
    rounds.pairs.push_back(std::move(pairs));
    stride *= static_cast<size_t>(factor);
  }
  return rounds;
}

// The group is cut into blocks, each of `parts` sets, whose length is the largest power of
// partners + 1 that still fits. At first all blocks find their means at the same time. Then, block
// by block, everybody behind a block meets one of every set of it, such that every set together,
// and therefore all that is behind the block together, has the mean; the sets then average inside
// while the next block goes on.
Rounds simple_base_rounds(const Group& group, int32_t partners) {
  const auto size = static_cast<int32_t>(group.size());
  Rounds rounds;
  std::vector<Rounds> meetings;
  for (int32_t begin = 0; begin < size;) {
    const int32_t left = size - begin;
    int32_t set = 1;
    while (set * (partners + 1) <= left) set *= partners + 1;
    const int32_t parts = left / set;
    const auto block = group.begin() + begin;
    rounds.merge(hypercube_rounds(Group(block, block + set * parts), partners));
    begin += set * parts;
    Rounds meeting;
    meeting.pairs.emplace_back();
    for (int32_t behind = begin; behind < size; ++behind) {
      for (int32_t part = 0; part < parts; ++part) {
        meeting.pairs[0].push_back({group[static_cast<size_t>(behind)],
                                    block[part * set + behind - begin],
                                    static_cast<double>(set) / left});
      }
    }
    Rounds inside;
    for (int32_t part = 0; part < parts; ++part) {
      inside.merge(hypercube_rounds(Group(block + part * set, block + (part + 1) * set), partners));
    }
    meeting.append(inside);
    if (begin < size) meetings.push_back(std::move(meeting));
  }
  const size_t first = rounds.pairs.size();
  for (size_t index = 0; index < meetings.size(); ++index) {
    Rounds delayed;
    delayed.pairs.resize(first + index);
    delayed.append(meetings[index]);
    rounds.merge(delayed);
  }
  return rounds;
}

Rounds shortest_base_rounds(int32_t world_size, int32_t partners) {
  Group all(static_cast<size_t>(world_size));
  std::iota(all.begin(), all.end(), 0);
  Rounds best = simple_base_rounds(all, partners);
  // Rows of a smooth length average inside, then columns do.
  for (int32_t columns = 2; columns <= world_size; ++columns) {
    if (world_size % columns != 0 || factors_up_to(columns, partners + 1).empty()) continue;
    const int32_t rows = world_size / columns;
    Rounds rounds;
    for (int32_t column = 0; column < columns; ++column) {
      Group group;
      for (int32_t row = 0; row < rows; ++row) group.push_back(row * columns + column);
      rounds.merge(simple_base_rounds(group, partners));
    }
    Rounds across;
    for (int32_t row = 0; row < rows; ++row) {
      const auto begin = all.begin() + row * columns;
      across.merge(hypercube_rounds(Group(begin, begin + columns), partners));
    }
    rounds.append(across);
    if (rounds.pairs.size() < best.pairs.size()) best = std::move(rounds);
  }
  return best;
}

// "base_2" to "base_5"; 0 if it is none of them.
int32_t base_partners(std::string_view graph) {
  const bool is_base = graph.size() == 6 && graph.substr(0, 5) == "base_";
  const int32_t partners = is_base ? graph[5] - '1' : 0;
  return partners >= 1 && partners <= 4 ? partners : 0;
}

[[noreturn]] void refuse(std::string_view graph) {
  throw std::invalid_argument(
      "gossip: unknown graph \"" + std::string(graph) +
      "\"; there are: ring, exponential, one_peer_exponential, base_2, "
      "base_3, base_4, base_5, random_pairs, equi_static, equi_dynamic, "
      "and star, hypercube, grid, torus, small_world, regular, or edges, as "
      "in pccl.Config.graph");
}

}  // namespace

std::vector<Mixing> base_rounds(int32_t world_size, int32_t partners) {
  require_world_size(world_size, "base_rounds");
  if (partners < 1)
    throw std::invalid_argument("base_rounds: " + std::to_string(partners) + " partners");
  std::vector<Mixing> result;
  for (const auto& pairs : shortest_base_rounds(world_size, partners).pairs) {
    Builder round(world_size);
    for (const Rounds::Pair& pair : pairs) round.exchange(pair.left, pair.right, pair.weight);
    result.push_back(round.done());
  }
  return result;
}

Mixing gossip_round(std::string_view graph, int32_t world_size, uint64_t round, uint64_t seed) {
  require_world_size(world_size, "gossip_round");
  if (world_size == 1) return {1};
  const std::vector<int32_t> powers = powers_below(world_size);
  if (graph == "ring") {
    return world_size == 2 ? shifts(2, {1}, 0.5) : shifts(world_size, {1, world_size - 1}, 1.0 / 3);
  }
  if (graph == "exponential") {
    return shifts(world_size, powers, 1 / static_cast<double>(powers.size() + 1));
  }
  if (graph == "one_peer_exponential") {
    return shifts(world_size, {powers[round % powers.size()]}, 0.5);
  }
  if (graph == "random_pairs") return random_pairs(world_size, round, seed);
  if (graph == "equi_static") return equi_static(world_size, seed);
  if (graph == "equi_dynamic") {
    RandomNumbers random(seed * 0x100000001b3 + round);
    return shifts(world_size, {drawn_shift(world_size, random)}, 0.5);
  }
  if (const int32_t partners = base_partners(graph)) {
    const std::vector<Mixing> rounds = base_rounds(world_size, partners);
    return rounds[round % rounds.size()];
  }
  refuse(graph);
}

uint64_t gossip_period(std::string_view graph, int32_t world_size) {
  require_world_size(world_size, "gossip_period");
  if (graph == "ring" || graph == "exponential" || graph == "equi_static") return 1;
  if (graph == "one_peer_exponential") {
    return std::max<uint64_t>(1, powers_below(world_size).size());
  }
  if (graph == "random_pairs" || graph == "equi_dynamic") return 0;
  if (const int32_t partners = base_partners(graph)) {
    return std::max<uint64_t>(1, base_rounds(world_size, partners).size());
  }
  refuse(graph);
}

}  // namespace pccl::topology
