// The protocol under faults, many seeds of it; and that planted bugs are found.
#include "simulator.h"

#include <doctest/doctest.h>

#include <cstdint>
#include <string>

#include "share.h"

namespace simulator {
namespace {

// The simulator is slower than what it drives, and its worlds are many.
uint64_t share(uint64_t seeds) {
  return pccl::test_divisor() > 1 ? pccl::share(pccl::share(seeds)) : seeds;
}
bool is_slow() { return share(100) < 100; }

Options options_for(uint64_t seed) {
  Options options;
  options.seed = seed;
  options.members = static_cast<int>(3 + seed % 6);
  return options;
}

TEST_CASE("no seed violates the protocol") {
  uint64_t operations = 0;
  uint64_t recovered = 0;
  for (uint64_t seed = 1; seed <= share(500); ++seed) {
    const Result result = simulate(options_for(seed));
    INFO(result.violation);
    REQUIRE(result.violation.empty());
    operations += result.operations;
    recovered += result.recovered;
  }
  CHECK(operations > 0);
  CHECK(recovered > 0);
}

TEST_CASE("seeds that once found something") {
  for (const uint64_t seed :
       {92,     219,    1385,   10177,  10215,   12337,   13315,   13361,   13499,   14708,  15234,
        15537,  11220,  17568,  18464,  18511,   19406,   20553,   30560,   379314,  381122, 405282,
        486497, 626660, 199036, 726265, 1004005, 1005064, 1005986, 1051835, 1608397, 2161051}) {
    const Result result = simulate(options_for(seed));
    INFO(result.violation);
    CHECK(result.violation.empty());
  }
}

TEST_CASE("a seed is the same run, event for event") {
  for (uint64_t seed = 1; seed <= 20; ++seed)
    CHECK(simulate(options_for(seed)).hash == simulate(options_for(seed)).hash);
  CHECK(simulate(options_for(1)).hash != simulate(options_for(2)).hash);
}

TEST_CASE("every planted bug is found") {
  if (is_slow()) return;  // it takes hundreds of seeds, and says nothing about memory or threads
  constexpr uint64_t kSeedsMax = 500;
  for (int number = 1; number < kMutationCount; ++number) {
    Options options;
    uint64_t seed = 1;
    for (; seed <= kSeedsMax; ++seed) {
      options = options_for(seed);
      options.mutation = static_cast<Mutation>(number);
      if (!simulate(options).violation.empty()) break;
    }
    MESSAGE(mutation_name(options.mutation), ": found by seed ", seed);
    CHECK_MESSAGE(seed <= kSeedsMax, mutation_name(options.mutation));
  }
}

TEST_CASE("a hundred members complete operations") {
  Options options;
  options.members = is_slow() ? 30 : 100;
  options.is_large = true;
  options.fault_seconds = 2;
  options.calm_seconds = 10;
  const Result result = simulate(options);
  INFO(result.violation);
  CHECK(result.violation.empty());
  CHECK(result.operations > 0);
}

}  // namespace
}  // namespace simulator
