// Sites: ranks with fast links among themselves and slow ones to the others.
#pragma once

#include <cstdint>
#include <vector>

#include "topology/packing.h"

namespace pccl::topology {

// [rank]: the number of its site, counted by the lowest rank in it. Ranks are joined by ascending
// slowness of their links until everybody is one; where the next link would be 3 times as slow or
// more (the largest such step) the sites are done. One site, if there is no such step.
std::vector<int32_t> find_sites(const Links& links);

// Trees that cross between sites once for each other site and direction: ranks of a site to its
// leader, leaders to the root. Every rank is a root, with different leaders, and the rates are the
// best; few trees, depth two. Empty where there is one site, or only sites of one rank, or where
// the links that this needs do not exist.
std::vector<TreePair> pack_sites(const Links& links);

}  // namespace pccl::topology
