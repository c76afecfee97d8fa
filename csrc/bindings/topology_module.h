// Planners, bounds and graphs as Python sees them: plain data in, plain data out.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <utility>
#include <vector>

#include "topology/schedule.h"

namespace pccl::bindings {

using Pairs = std::vector<std::pair<int32_t, int32_t>>;

Pairs pairs_of(const std::vector<topology::Edge>& edges);
std::vector<topology::Edge> edges_of(const Pairs& pairs);

void bind_topology(pybind11::module_& module);

}  // namespace pccl::bindings
