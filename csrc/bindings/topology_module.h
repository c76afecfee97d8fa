// Planners, bounds and graphs as Python sees them: plain data in, plain data out.
#pragma once

#include <pybind11/pybind11.h>

namespace pccl::bindings {

void bind_topology(pybind11::module_& module);

}  // namespace pccl::bindings
