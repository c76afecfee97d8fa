#include "bindings/transport_module.h"

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
  return result;
}

}  // namespace pccl::bindings
