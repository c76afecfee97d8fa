#include "bindings/transport_module.h"

#include "base/clock.h"
#include "bindings/exceptions.h"
#include "bindings/key_module.h"
#include "transport/frame.h"
#include "transport/probe.h"

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
  result["refused_rate"] = statistics.refused_rate;
  result["refused_late"] = statistics.refused_late;
  return result;
}

// What pccl doctor asks with.
void bind_handshake(py::module_& module) {
  module.attr("PROTOCOL_VERSION") = static_cast<int>(transport::kProtocolVersion);
  module.def(
      "probe",
      [](const std::string& host, uint16_t port, const std::string& run,
         const py::bytes& fingerprint, const py::bytes& token, double timeout_seconds) {
        transport::ProbeOptions options{
            .run = run,
            .fingerprint = from_bytes<32>(fingerprint).value_or(transport::Fingerprint{}),
            .deadline = after(Clock::now(), timeout_seconds)};
        if (const auto secret = from_bytes<16>(token)) options.token = {*secret};
        transport::ProbeResult result;
        {
          py::gil_scoped_release release;
          const auto places = transport::resolve(host, port);
          if (places.empty()) throw ConnectError(host + ": it does not resolve");
          result = transport::probe(places.front(), options);
        }
        return py::make_tuple(result.version, result.answer, to_text(result.words.c_str()));
      },
      py::arg("host"), py::arg("port"), py::arg("run"), py::kw_only(),
      py::arg("fingerprint") = py::bytes(), py::arg("token") = py::bytes(),
      py::arg("timeout_seconds") = 5.0);
}

}  // namespace pccl::bindings
