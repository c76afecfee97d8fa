#include "topology/probe_rounds.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

namespace pccl::topology {
namespace {

using Link = std::pair<int32_t, int32_t>;

// How often each link is tried, by itself and shared. Checks what every set of rounds must keep to.
struct Tried {
  std::map<Link, int> alone;
  std::map<Link, int> shared;
  uint32_t rounds_alone = 0;

  Tried(const std::vector<bool>& missing, int32_t world_size) {
    std::map<std::pair<uint32_t, Link>, int> said;  // 1: by the sender, 2: by the receiver
    for (int32_t rank = 0; rank < world_size; ++rank) {
      uint32_t next = 0;
      for (const ProbeRound& round : probe_rounds(missing, world_size, rank)) {
        CHECK(round.number >= next);
        next = round.number + 1;
        CHECK(round.to.empty() != round.from.empty());
        if (!round.is_shared) {
          CHECK(round.to.size() + round.from.size() == 1);
          rounds_alone = std::max(rounds_alone, next);
        }
        for (const int32_t to : round.to) {
          ++(round.is_shared ? shared : alone)[{rank, to}];
          said[{round.number, {rank, to}}] |= 1;
        }
        for (const int32_t from : round.from) said[{round.number, {from, rank}}] |= 2;
      }
    }
    // Both ends mean the same round.
    for (const auto& [turn, ends] : said) CHECK(ends == 3);
  }
};

TEST_CASE("each missing link is tried once by itself, by ranks that send or receive") {
  for (int32_t world_size = 2; world_size <= 33; ++world_size) {
    CAPTURE(world_size);
    const auto n = static_cast<size_t>(world_size);
    std::vector<bool> missing(n * n, true);
    for (size_t rank = 0; rank < n; ++rank) missing[rank * n + rank] = false;
    const Tried tried(missing, world_size);
    CHECK(tried.alone.size() == n * (n - 1));
    for (const auto& [link, count] : tried.alone) CHECK(count == 1);
    for (const auto& [link, count] : tried.shared) CHECK(count == 1);
    CHECK(tried.shared.size() == 2 * (n / 2) * ((n + 1) / 2));
    CHECK(tried.rounds_alone == 2 * ((n + 1) / 2 * 2 - 1));
  }
}

TEST_CASE("links that are known are left out") {
  constexpr size_t kRanks = 5;
  std::vector<bool> missing(kRanks * kRanks);
  // All to and from rank 3, and one more.
  for (size_t rank = 0; rank < kRanks; ++rank) {
    missing[3 * kRanks + rank] = rank != 3;
    missing[rank * kRanks + 3] = rank != 3;
  }
  missing[0 * kRanks + 1] = true;
  const Tried tried(missing, kRanks);
  CHECK(tried.alone.size() == 9);
  CHECK(tried.alone.contains({0, 1}));
  CHECK_FALSE(tried.alone.contains({1, 0}));
}

}  // namespace
}  // namespace pccl::topology
