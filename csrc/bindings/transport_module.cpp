#include "bindings/transport_module.h"

#include "base/clock.h"
#include "bindings/exceptions.h"
#include "bindings/key_module.h"
#include "transport/frame.h"
#include "transport/key_file.h"
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
  result["added_sockets"] = statistics.added_sockets;
  result["changed_controls"] = statistics.changed_controls;
  result["probe_bytes"] = statistics.probe_bytes;
  result["refused_rate"] = statistics.refused_rate;
  result["refused_late"] = statistics.refused_late;
  return result;
}

namespace {

struct Place {
  std::string host;
  uint16_t port = 0;
  std::string run;
  py::bytes fingerprint;
  py::bytes token;
  std::string key_file;
  double timeout_seconds = 0;
};

// Asks the first address of the host, without the interpreter lock.
template <typename Question>
auto ask(const Place& place, const Question& question) {
  transport::ProbeOptions options{
      .run = place.run,
      .fingerprint = from_bytes<32>(place.fingerprint).value_or(transport::Fingerprint{}),
      .deadline = after(Clock::now(), place.timeout_seconds)};
  if (const auto secret = from_bytes<16>(place.token)) options.token = {*secret};
  if (!place.key_file.empty()) options.identity = transport::read_key_file(place.key_file);
  py::gil_scoped_release release;
  const auto places = transport::resolve(place.host, place.port);
  if (places.empty()) throw ConnectError(place.host + ": it does not resolve");
  return question(places.front(), options);
}

py::tuple to_tuple(const transport::ProbeResult& result) {
  return py::make_tuple(result.version, result.answer, to_text(result.words.c_str()));
}

}  // namespace

// What pccl doctor asks with.
void bind_handshake(py::module_& module) {
  module.attr("PROTOCOL_VERSION") = static_cast<int>(transport::kProtocolVersion);
  module.def(
      "probe",
      [](const std::string& host, uint16_t port, const std::string& run,
         const py::bytes& fingerprint, const py::bytes& token, const std::string& key_file,
         double timeout_seconds) {
        return to_tuple(
            ask({host, port, run, fingerprint, token, key_file, timeout_seconds},
                [](const auto& place, const auto& options) { return probe(place, options); }));
      },
      py::arg("host"), py::arg("port"), py::arg("run"), py::kw_only(),
      py::arg("fingerprint") = py::bytes(), py::arg("token") = py::bytes(),
      py::arg("key_file") = "", py::arg("timeout_seconds") = 5.0);
  module.def(
      "examine",
      [](const std::string& host, uint16_t port, const std::string& run, uint16_t own_port,
         const py::bytes& fingerprint, const py::bytes& token, const std::string& key_file,
         double timeout_seconds) {
        const transport::Examination found =
            ask({host, port, run, fingerprint, token, key_file, timeout_seconds},
                [own_port](const auto& place, const auto& options) {
                  return examine(place, options, own_port);
                });
        py::dict result;
        result["reply"] = to_tuple(found.reply);
        result["seen_as"] = found.sighting.seen_as;
        result["was_dialed"] = found.sighting.was_dialed;
        result["is_reached"] = found.sighting.is_reached;
        result["dial_seconds"] = 1e-6 * found.sighting.microseconds;
        result["error"] = to_text(found.sighting.error.c_str());
        result["sent_bytes_per_second"] = found.sent_bytes_per_second;
        result["received_bytes_per_second"] = found.received_bytes_per_second;
        return result;
      },
      py::arg("host"), py::arg("port"), py::arg("run"), py::arg("own_port"), py::kw_only(),
      py::arg("fingerprint") = py::bytes(), py::arg("token") = py::bytes(),
      py::arg("key_file") = "", py::arg("timeout_seconds") = 20.0);
}

}  // namespace pccl::bindings
