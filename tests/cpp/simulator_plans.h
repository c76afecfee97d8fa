// The plans of the simulated operations. They are kept, because every member asks for the same
// ones.
#pragma once

#include <cstdint>
#include <memory>

#include "recovery/plan.h"
#include "topology/schedule.h"

namespace simulator {

// All ranks plan alike: from the operation's number and the quorum's size.
std::shared_ptr<const pccl::topology::Schedule> plan(uint64_t operation, int32_t world_size,
                                                     uint64_t count);
// The last few: all survivors make the same ones, of a few operations by turns.
pccl::recovery::RecoveryPlan plan_again(pccl::recovery::RecoveryRequest request);

}  // namespace simulator
