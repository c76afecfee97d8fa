// Options and statistics of the transport as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "transport/endpoint.h"

namespace pccl::bindings {

// "never", "remote", "always".
transport::TlsUse to_tls_use(const std::string& text);
pybind11::dict to_counters(const transport::Statistics& statistics);
void bind_handshake(pybind11::module_& module);

}  // namespace pccl::bindings
