// The cost model of measured links: what is busiest, and how long the pipeline takes to fill.
#pragma once

#include <cstdint>
#include <span>

#include "topology/cost_model.h"

namespace pccl::topology {

// Segments of all chunks flow at the same time, so the time is that of the fullest of all links and
// of all ranks' caps, plus that of one segment along the longest path: its latencies, and its bytes
// on every hop but the slowest, where it waits with the others. No queue is modelled: an executor
// that keeps everything busy comes near, and none is faster. `bytes`: of each chunk.
Cost fluid_cost(const Schedule& schedule, const Links& links, std::span<const uint64_t> bytes,
                uint64_t segment_bytes);

}  // namespace pccl::topology
