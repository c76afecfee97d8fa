// How fast an all_reduce can be on a network, whatever the schedule.
#pragma once

#include "topology/cost_model.h"

namespace pccl::topology {

// In bytes of the reduced vector a second.
struct Bounds {
  // Every set of ranks must hear of all others' contributions, and the others of its own: the whole
  // vector crosses every cut in both directions. The smallest cut, by max-flow.
  double cut = 0;
  // Each element needs P - 1 messages to be combined and P - 1 to be spread: what all ranks send
  // (or receive) together, by 2 (P - 1). Holds for schedules that send partial sums.
  double sum = 0;

  double least() const { return cut < sum ? cut : sum; }
};

// Source: Zhou and Sun, On the computation rate of All-Reduce, arXiv 2602.22482. 2 (P - 1)
// max-flows: 0.1 ms for 8 ranks, 20 ms for 32. Both are 0 if some rank can't reach another one, and
// infinite for one rank.
Bounds all_reduce_bounds(const Links& links);

}  // namespace pccl::topology
