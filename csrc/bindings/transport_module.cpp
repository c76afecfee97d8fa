#include "bindings/transport_module.h"

#include <algorithm>

#include "transport/frame.h"
#include "transport/handshake.h"

namespace pccl::bindings {

namespace py = pybind11;

transport::TlsUse to_tls_use(const std::string& text) {
  if (text == "never") return transport::TlsUse::Never;
  if (text == "remote") return transport::TlsUse::Remote;
  if (text == "always") return transport::TlsUse::Always;
  throw py::value_error("tls: expected 'never', 'remote' or 'always', got '" + text + "'");
}

py::dict to_counters(const transport::Statistics& statistics) {
  py::dict result;
  result["bytes_sent_tcp"] = statistics.bytes_sent_tcp;
  result["bytes_received_tcp"] = statistics.bytes_received_tcp;
  result["bytes_sent_memory"] = statistics.bytes_sent_memory;
  result["bytes_received_memory"] = statistics.bytes_received_memory;
  result["connections"] = statistics.connections;
  result["secure_sockets"] = statistics.secure_sockets;
  result["refused_connections"] = statistics.refused_connections;
  result["refused_keys"] = statistics.refused_keys;
  result["refused_plain"] = statistics.refused_plain;
  result["resumed_connections"] = statistics.resumed_connections;
  result["replaced_sockets"] = statistics.replaced_sockets;
  result["resent_frames"] = statistics.resent_frames;
  result["resent_bytes"] = statistics.resent_bytes;
  return result;
}

// What pccl doctor asks with.
void bind_handshake(py::module_& module) {
  module.attr("PROTOCOL_VERSION") = static_cast<int>(transport::kProtocolVersion);
  module.def(
      "probe_hello",
      [](const std::string& run, const py::bytes& member_id) {
        const auto id = static_cast<std::string>(member_id);
        transport::Hello hello;
        hello.from.run = run;
        hello.intent = transport::Intent::Probe;
        if (id.size() != hello.from.member_id.size())
          throw py::value_error("member_id: expected 16 bytes, got " + std::to_string(id.size()));
        std::copy(id.begin(), id.end(), hello.from.member_id.begin());
        const auto bytes = hello.encode();
        return py::bytes(reinterpret_cast<const char*>(bytes.data()), bytes.size());
      },
      py::arg("run"), py::arg("member_id"));
}

}  // namespace pccl::bindings
