// The order of a ring over links that differ, and rings packed beside each other.
#pragma once

#include <cstdint>
#include <vector>

#include "topology/packing.h"

namespace pccl::topology {

// The order, from rank 0 on, whose slowest link is the fastest; of those, up to 12 ranks, with the
// least latency in all. A ring is pipelined, so the sum of its links' costs says nothing. Exact up
// to 12 ranks (2^P P^2 steps, 1 ms), then improved from a greedy one by moves (P^3 a pass). Empty
// if none was found on links that exist.
std::vector<int32_t> bottleneck_ring(const Links& links);

// The chunks of the best ring, of it backwards, and of up to two more rings over links that the
// others leave free, in both directions: a chain of ranks each, with the best rates.
std::vector<TreePair> pack_rings(const Links& links);

}  // namespace pccl::topology
