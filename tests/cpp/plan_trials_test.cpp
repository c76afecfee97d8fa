// Algorithms on trial, by calls that took a given time.
#include "topology/plan_trials.h"

#include <doctest/doctest.h>

#include <string_view>
#include <vector>

using namespace pccl::topology;

namespace {

constexpr PlanTrials::Kind kKind{.bytes = 64 << 20};

// As four ranks tell of one call, of which one has waited for the others.
std::vector<RankFigures> told(std::string_view algorithm, double seconds,
                              PlanTrials::Kind kind = kKind) {
  std::vector<RankFigures> figures(4, RankFigures(4));
  for (size_t rank = 0; rank < 4; ++rank) {
    const double waited = rank == 0 ? 3 : 0;
    set_last_call(
        figures[rank], rank,
        {PlanTrials::label(kind, algorithm), static_cast<uint32_t>(1e6 * (seconds + waited))});
  }
  return figures;
}

PlanTrials after_a_ring(double seconds) {
  PlanTrials trials;
  trials.learn(told("ring", seconds));
  return trials;
}

}  // namespace

TEST_CASE("what was never tried is taken as the model likes it") {
  const PlanTrials trials = after_a_ring(2);
  CHECK(trials.choose(kKind, "ring") == "ring");
  CHECK(trials.choose(kKind, "direct") == "direct");
}

TEST_CASE("what takes longer goes again after three calls, and after two if it takes far longer") {
  for (const double seconds : {2.4, 6.0}) {
    PlanTrials trials = after_a_ring(2);
    const int32_t calls = seconds > 3 ? PlanTrials::kBadCalls : PlanTrials::kCalls;
    for (int32_t call = 0; call < calls; ++call) {
      CHECK(trials.choose(kKind, "direct") == "direct");
      CHECK(trials.learn(told("direct", seconds)) == (call + 1 == calls));
    }
    CHECK(trials.choose(kKind, "direct") == "ring");
    CHECK(trials.choose(kKind, "packed_trees") == "packed_trees");
  }
}

TEST_CASE("what is as fast stays, and others are held against it") {
  PlanTrials trials = after_a_ring(2);
  trials.learn(told("direct", 1));
  CHECK(trials.choose(kKind, "direct") == "direct");
  CHECK(trials.choose(kKind, "ring") == "ring");
  for (int32_t call = 0; call < PlanTrials::kBadCalls; ++call) trials.learn(told("ring", 2));
  CHECK(trials.choose(kKind, "ring") == "direct");
}

TEST_CASE("what failed is tried again when links have changed, and after a while") {
  PlanTrials trials = after_a_ring(2);
  for (int32_t call = 0; call < PlanTrials::kBadCalls; ++call) trials.learn(told("direct", 6));
  PlanTrials changed = trials;
  bool is_other = false;
  for (int32_t call = 0; call < 4; ++call) is_other = changed.learn(told("ring", 8)) || is_other;
  CHECK(is_other);
  CHECK(changed.choose(kKind, "direct") == "direct");

  int32_t calls = 0;
  while (trials.choose(kKind, "direct") == "ring") {
    trials.learn(told("ring", 2));
    REQUIRE(++calls <= 64);
  }
  CHECK(calls == 64);
  // It fails once more, and rests for twice as long.
  for (int32_t call = 0; call < PlanTrials::kBadCalls; ++call) trials.learn(told("direct", 6));
  for (calls = 0; trials.choose(kKind, "direct") == "ring"; ++calls) {
    trials.learn(told("ring", 2));
    REQUIRE(calls <= 128);
  }
  CHECK(calls == 128);
}

TEST_CASE("other sizes, and calls with a codec, are other calls") {
  PlanTrials trials = after_a_ring(2);
  for (int32_t call = 0; call < PlanTrials::kBadCalls; ++call) trials.learn(told("direct", 6));
  CHECK(trials.choose({.bytes = 8 << 20}, "direct") == "direct");
  CHECK(trials.choose({.bytes = kKind.bytes, .is_coded = true}, "direct") == "direct");
  CHECK(trials.choose({.bytes = kKind.bytes + 1000}, "direct") == "ring");
}

TEST_CASE("ranks that lie, or tell of other calls, change little") {
  PlanTrials trials = after_a_ring(2);
  std::vector<RankFigures> lie = told("direct", 1);
  set_last_call(lie[3], 3, {last_call(lie[3], 3).label, 1});
  trials.learn(lie);  // a second, not a microsecond
  for (int32_t call = 0; call < PlanTrials::kBadCalls; ++call) trials.learn(told("ring", 1.04));
  CHECK(trials.choose(kKind, "direct") == "direct");
  CHECK(trials.choose(kKind, "ring") == "ring");

  std::vector<RankFigures> other = told("direct", 100);
  set_last_call(other[2], 2, {PlanTrials::label(kKind, "rings"), 1});
  for (int32_t call = 0; call < 2 * PlanTrials::kCalls; ++call) CHECK_FALSE(trials.learn(other));
  CHECK(trials.choose(kKind, "direct") == "direct");
  std::vector<RankFigures> unknown = told("no such", 100);
  CHECK_FALSE(trials.learn(unknown));
  for (size_t rank = 0; rank < 4; ++rank) set_last_call(unknown[rank], rank, {0xffffffff, 1});
  CHECK_FALSE(trials.learn(unknown));
}
