// The elastic part of pccl._core: coordinators and members of runs.
#pragma once

#include <pybind11/pybind11.h>

namespace pccl::bindings {

void bind_coordinator_server(pybind11::module_& module);
void bind_run(pybind11::module_& module);

}  // namespace pccl::bindings
