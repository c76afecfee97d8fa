// Codecs as Python sees them: on memory, by name.
#pragma once

#include <pybind11/pybind11.h>

namespace pccl::bindings {

void bind_codecs(pybind11::module_& module);

}  // namespace pccl::bindings
