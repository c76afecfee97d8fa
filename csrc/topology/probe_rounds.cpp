#include "topology/probe_rounds.h"

#include <algorithm>
#include <cstddef>
#include <utility>

namespace pccl::topology {
namespace {

// Whom `rank` meets in that round of a tournament of `count` players, an even number.
int32_t opponent(int32_t rank, int32_t round, int32_t count) {
  const int32_t turning = count - 1;
  if (rank == turning) return round;
  if (rank == round) return turning;
  return (2 * round - rank + 2 * turning) % turning;
}

}  // namespace

std::vector<ProbeRound> probe_rounds(const std::vector<bool>& missing, int32_t world_size,
                                     int32_t rank) {
  std::vector<ProbeRound> rounds;
  const auto is_missing = [&](int32_t from, int32_t to) {
    return missing[static_cast<size_t>(from) * static_cast<size_t>(world_size) +
                   static_cast<size_t>(to)];
  };
  const auto add = [&](ProbeRound round) {
    std::erase_if(round.to, [&](int32_t to) { return !is_missing(rank, to); });
    std::erase_if(round.from, [&](int32_t from) { return !is_missing(from, rank); });
    if (!round.to.empty() || !round.from.empty()) rounds.push_back(std::move(round));
  };
  const int32_t count = (world_size + 1) / 2 * 2;
  uint32_t number = 0;
  for (int32_t round = 0; round < count - 1; ++round, number += 2) {
    const int32_t other = opponent(rank, round, count);
    if (other >= world_size) continue;  // an odd one is left over
    const uint32_t sends = rank < other ? 0 : 1;
    add({number + sends, false, {other}, {}});
    add({number + 1 - sends, false, {}, {other}});
    if (rounds.size() >= 2 && rounds.back().number < rounds[rounds.size() - 2].number)
      std::swap(rounds.back(), rounds[rounds.size() - 2]);
  }
  std::vector<int32_t> others;
  for (int32_t other = 0; other < world_size; ++other) {
    if (other % 2 != rank % 2) others.push_back(other);
  }
  for (int32_t sender = 0; sender < 2; ++sender, ++number) {
    if (rank % 2 == sender) add({number, true, others, {}});
    if (rank % 2 != sender) add({number, true, {}, others});
  }
  return rounds;
}

}  // namespace pccl::topology
