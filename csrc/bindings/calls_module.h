// The part of pccl._core that calls collectives: works, and what communicators and runs have in
// common.
#pragma once

#include <pybind11/pybind11.h>

#include "base/types.h"

namespace pccl::bindings {

// Throws ValueError for what is no dtype.
DataType to_dtype(int value);

void bind_work(pybind11::module_& module);
void bind_calls(pybind11::module_& module);

}  // namespace pccl::bindings
