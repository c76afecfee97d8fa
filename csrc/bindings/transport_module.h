// Options and statistics of the transport as Python sees them.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "bindings/exceptions.h"
#include "transport/endpoint.h"

namespace pccl::bindings {

// "never", "remote", "always".
transport::TlsUse to_tls_use(const std::string& text);
pybind11::dict to_counters(const transport::Statistics& statistics);

// The flight record's events after the first `seen` ones, as JSON lines, and their number now.
template <typename Owner>
pybind11::tuple flight_events_of(Owner& self, uint64_t seen) {
  std::pair<std::string, uint64_t> events;
  {
    pybind11::gil_scoped_release release;
    events = self.flight_events(seen);
  }
  return pybind11::make_tuple(to_text(events.first.c_str()), events.second);
}
void bind_handshake(pybind11::module_& module);

}  // namespace pccl::bindings
