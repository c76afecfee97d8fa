// How a call between hosts is cut into segments, and how much of it may be under way.
//
// What is under way of a chunk is bounded by its window: the receiver grants what it has memory
// for. Too little leaves long paths empty. Too much lets flows of TCP that got the larger part of a
// line run ahead, and in the end a few slow ones are left that don't fill it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "collectives/collective_operation.h"
#include "collectives/rank_plan.h"
#include "topology/cost_model.h"

namespace pccl {

class CallCuts {
 public:
  CallCuts() = default;  // nothing is measured
  CallCuts(std::shared_ptr<const topology::Links> links, int32_t rank);

  // Requires: call.plan. `shares_lines`: a rank sends to several others. What must be alike on all
  // ranks depends on the links and the plan alone.
  void cut(CollectiveCall& call, bool shares_lines) const;

 private:
  std::vector<uint32_t> windows_from(const CollectiveCall& call) const;

  std::shared_ptr<const topology::Links> links_;  // null: nothing is measured
  int32_t rank_ = 0;
  uint32_t segment_bytes_ = UINT32_MAX;  // at most
  double window_bytes_ = 0;              // of all chunks of a call
};

}  // namespace pccl
