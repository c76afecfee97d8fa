// Proves a schedule without a network, by running it on sets of contributors instead of numbers.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "topology/schedule.h"

namespace pccl::topology {

enum class Collective : uint8_t {
  AllReduce,
  Broadcast,
  Reduce,
  AllGather,
  ReduceScatter,
  Gather,
  Scatter,
  AllToAll
};

struct CheckOptions {
  Collective collective = Collective::AllReduce;
  int32_t root = 0;                    // broadcast, reduce, gather, scatter
  std::vector<uint64_t> block_counts;  // elements of each block; empty for all_to_all
  // Links that may carry traffic; unset: all.
  std::function<bool(int32_t from, int32_t to)> allowed;
};

// nullopt if the schedule is right; else the first fault, in words (chunk, stage, rank).
//
// Checks: chunks tile every block exactly, none is empty; in a reducing chunk every rank's
// contribution reaches every core rank exactly once; in a moving chunk the core is the one rank
// that has the data; every rank that needs a block gets its final exactly once and after its sender
// has it; cores are powers of two of distinct ranks; up edges form a forest without circles that
// ends in the core; no rank sends up before its children can have reached it; nobody outside
// 0..world_size-1; no edge to itself; only allowed links. A rank may relay a final that it does not
// need itself.
std::optional<std::string> find_fault(const Schedule& schedule, const CheckOptions& options);

}  // namespace pccl::topology
