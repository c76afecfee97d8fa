// What of an all_reduce belongs to no chunk when it begins (topology::Pool).
#pragma once

#include <cstddef>

#include "topology/cost_model.h"
#include "topology/schedule.h"

namespace pccl::topology {

// Of each chunk so much is left for those that get on faster than was thought.
inline constexpr double kPoolShare = 0.2;

// Shortens the chunks of `schedule` and leaves the rest of the block for its pool, where links are
// measured, every chunk is made final by one rank, and the whole takes long enough for claims to be
// answered in time. Otherwise it stays as it is. Requires: chunks of one block, which reduce.
void leave_pool(Schedule& schedule, const Links& links, size_t element_bytes);

// The same where nothing is known of the links: most is left, and each core asks ahead by the round
// trips that its own connections have shown. Requires: chunks as above.
inline constexpr double kBlindPoolShare = 0.6;
void leave_most(Schedule& schedule);

}  // namespace pccl::topology
