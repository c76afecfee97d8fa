// What a network carries, in bytes a second: the figures that planners and bounds reckon with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "topology/cost_model.h"

namespace pccl::topology {

// Constraints on flows, each with a capacity: one for each directed pair of ranks, then one for
// what each rank sends, then one for what each rank receives.
struct Capacities {
  size_t world_size = 0;
  std::vector<double> of;  // [constraint]; 0: absent pair, and the diagonal

  size_t link(size_t from, size_t to) const { return from * world_size + to; }
  size_t out(size_t rank) const { return world_size * world_size + rank; }
  size_t in(size_t rank) const { return world_size * (world_size + 1) + rank; }
};

// A link is never faster than its ranks.
Capacities capacities(const Links& links);

// Whether some pair may carry nothing.
bool has_gaps(const Links& links);

// Throws std::invalid_argument, naming `planner` and two ranks, unless every rank reaches every
// other one over links that exist.
void require_connected(const Links& links, const std::string& planner);

}  // namespace pccl::topology
