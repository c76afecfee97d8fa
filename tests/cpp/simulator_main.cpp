// Runs many seeds: simulator [--seeds N] [--first SEED] [--members M] [--mutation K] [--log]
//
// Prints every violation with its seed and exits with 1; `--log` with one seed prints its events.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "simulator.h"

using namespace simulator;

namespace {

constexpr const char* kUsage =
    "usage: simulator [--seeds N] [--first SEED] [--members M] [--mutation K] [--large] [--log]\n"
    "  M 0: 3 to 8 members, by seed\n";

}  // namespace

int main(int count, char** arguments) {
  uint64_t seeds = 1000;
  uint64_t first = 1;
  int members = 0;
  Options options;
  for (int i = 1; i < count; ++i) {
    const std::string name = arguments[i];
    if (name == "--log") {
      options.keeps_log = true;
    } else if (name == "--large") {
      options.is_large = true;
      options.fault_seconds = 5;
      options.calm_seconds = 20;
    } else if (i + 1 < count && name == "--seeds") {
      seeds = std::strtoull(arguments[++i], nullptr, 10);
    } else if (i + 1 < count && name == "--first") {
      first = std::strtoull(arguments[++i], nullptr, 10);
    } else if (i + 1 < count && name == "--members") {
      members = static_cast<int>(std::strtol(arguments[++i], nullptr, 10));
    } else if (i + 1 < count && name == "--mutation") {
      options.mutation =
          static_cast<Mutation>(std::strtol(arguments[++i], nullptr, 10) % kMutationCount);
    } else {
      std::fputs(kUsage, stderr);
      return 2;
    }
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  Result all;
  uint64_t violations = 0;
  uint64_t stuck = 0;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    options.seed = seed;
    options.members = members != 0 ? members : static_cast<int>(3 + seed % 6);
    const Result result = simulate(options);
    for (const std::string& line : result.log) std::printf("%s\n", line.c_str());
    if (!result.violation.empty()) {
      std::printf("%s\n", result.violation.c_str());
      ++violations;
    }
    all.events += result.events;
    all.quorums += result.quorums;
    all.operations += result.operations;
    all.recovered += result.recovered;
    all.kills += result.kills;
    all.crashes += result.crashes;
    all.takeovers += result.takeovers;
    stuck += result.was_stuck_rightly;
  }
  std::printf(
      "%llu seeds: %llu violations; %llu events, %llu quorums, %llu operations (%llu recovered), "
      "%llu kills, %llu coordinator crashes, %llu takeovers; %llu seeds with too few left\n",
      static_cast<unsigned long long>(seeds), static_cast<unsigned long long>(violations),
      static_cast<unsigned long long>(all.events), static_cast<unsigned long long>(all.quorums),
      static_cast<unsigned long long>(all.operations),
      static_cast<unsigned long long>(all.recovered), static_cast<unsigned long long>(all.kills),
      static_cast<unsigned long long>(all.crashes), static_cast<unsigned long long>(all.takeovers),
      static_cast<unsigned long long>(stuck));
  return violations == 0 ? 0 : 1;
}
