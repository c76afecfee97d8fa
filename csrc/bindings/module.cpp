// pccl._core: names and conversions, no logic. The stub pccl/_core.pyi documents it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/calls_module.h"
#include "bindings/codec_module.h"
#include "bindings/dlpack_buffer.h"
#include "bindings/exceptions.h"
#include "bindings/keep_alive.h"
#include "bindings/key_module.h"
#include "bindings/run_module.h"
#include "bindings/topology_module.h"
#include "bindings/transport_module.h"
#include "communicator.h"
#include "kernels/reduce.h"
#include "topology/overlay.h"
#include "transport/frame.h"

namespace py = pybind11;
using pccl::bindings::DLPackBuffer;
using pccl::bindings::graveyard;
using pccl::bindings::Pairs;
using pccl::bindings::to_dtype;
using pccl::bindings::to_text;

namespace {

using CommunicatorClass =
    py::class_<pccl::Communicator, pccl::CollectiveCalls, std::shared_ptr<pccl::Communicator>>;

using ContextClass = py::class_<pccl::Context, std::shared_ptr<pccl::Context>>;

void bind_context_init(ContextClass& context) {
  context.def(
      py::init([](std::string run, std::string bind_host, int port,
                  std::vector<std::string> advertise_hosts, int sockets,
                  std::string congestion_control, bool shared_memory,
                  double connect_timeout_seconds, const std::string& simd, std::string trace_folder,
                  const std::string& tls, bool outward, const std::string& graph) {
        if (port < 0 || port > 65535)
          throw py::value_error("port must be 0..65535, not " + std::to_string(port));
        if (!simd.empty() && !pccl::kernels::select_target(simd)) {
          throw py::value_error("this machine has no SIMD target '" + simd + "'");
        }
        py::gil_scoped_release release;
        return std::make_shared<pccl::Context>(
            pccl::transport::EndpointOptions{.run = std::move(run),
                                             .bind_host = std::move(bind_host),
                                             .port = static_cast<uint16_t>(port),
                                             .accepts_calls = !outward,
                                             .graph = pccl::topology::shown_graph(graph),
                                             .advertise_hosts = std::move(advertise_hosts),
                                             .sockets = sockets,
                                             .congestion_control = std::move(congestion_control),
                                             .shared_memory = shared_memory,
                                             .connect_timeout_seconds = connect_timeout_seconds,
                                             .trace_folder = std::move(trace_folder),
                                             .tls = pccl::bindings::to_tls_use(tls)});
      }),
      py::arg("run"), py::kw_only(), py::arg("bind_host") = "", py::arg("port") = 0,
      py::arg("advertise_hosts") = std::vector<std::string>{}, py::arg("sockets") = 1,
      py::arg("congestion_control") = "kernel", py::arg("shared_memory") = true,
      py::arg("connect_timeout_seconds") = 30.0, py::arg("simd") = "", py::arg("trace_folder") = "",
      py::arg("tls") = "remote", py::arg("outward") = false, py::arg("graph") = "");
}

void bind_context(py::module_& module) {
  ContextClass context(module, "Context");
  bind_context_init(context);
  context
      .def_property_readonly("address",
                             [](const pccl::Context& self) {
                               const auto bytes = self.address();
                               return py::bytes(reinterpret_cast<const char*>(bytes.data()),
                                                bytes.size());
                             })
      .def("describe_address",
           [](const pccl::Context& self) {
             return self.describe_address() + (self.shares_memory() ? ", memory" : "");
           })
      .def(
          "wait_completions",
          [](pccl::Context& self, double timeout_seconds) {
            graveyard().clear();
            py::gil_scoped_release release;
            auto done = self.completions()->take(pccl::after(pccl::Clock::now(), timeout_seconds));
            return std::vector<std::shared_ptr<pccl::Work>>(done.begin(), done.end());
          },
          py::arg("timeout_seconds"))
      .def("statistics",
           [](pccl::Context& self) {
             pccl::transport::Statistics now;
             {
               py::gil_scoped_release release;
               now = self.statistics();
             }
             return pccl::bindings::to_counters(now);
           })
      .def("flight_record",
           [](pccl::Context& self) {
             std::string text;
             {
               py::gil_scoped_release release;
               text = self.flight_record();
             }
             return to_text(text.c_str());
           })
      .def("flight_events", &pccl::bindings::flight_events_of<pccl::Context>, py::arg("seen"))
      .def("close", &pccl::Context::close, py::call_guard<py::gil_scoped_release>());
}

std::vector<std::vector<std::byte>> to_addresses(const std::vector<py::bytes>& addresses) {
  std::vector<std::vector<std::byte>> bytes;
  for (const py::bytes& address : addresses) {
    const std::string_view view = address;
    const auto* begin = reinterpret_cast<const std::byte*>(view.data());
    bytes.emplace_back(begin, begin + view.size());
  }
  return bytes;
}

void bind_overlay(py::module_& module) {
  module.def("canonical_graph", &pccl::topology::canonical_graph, py::arg("graph"));
  module.def("fits_any_size", &pccl::topology::fits_any_size, py::arg("graph"));
  module.def(
      "overlay",
      [](const std::vector<py::bytes>& addresses,
         const std::string& graph) -> std::optional<Pairs> {
        std::vector<pccl::transport::MemberAddress> members;
        for (const auto& bytes : to_addresses(addresses)) {
          // Of another version: the group says so.
          members.push_back(
              pccl::transport::MemberAddress::decode(bytes).value_or(pccl::transport::MemberAddress{
                  .port = 1, .graph = pccl::topology::shown_graph(graph)}));
        }
        const auto edges = pccl::overlay_of(members, graph);
        if (!edges) return std::nullopt;
        return pccl::bindings::pairs_of(*edges);
      },
      py::arg("addresses"), py::arg("graph"));
}

std::string plan_by_name(pccl::Communicator& self, const std::string& collective, uint64_t count,
                         int dtype) {
  using pccl::transport::Collective;
  for (int value = 1; value <= static_cast<int>(Collective::SendRecv); ++value) {
    if (collective == pccl::transport::collective_name(static_cast<Collective>(value))) {
      return self.plan(static_cast<Collective>(value), count, to_dtype(dtype));
    }
  }
  throw py::value_error("no such collective: " + collective);
}

void bind_communicator(py::module_& module) {
  CommunicatorClass communicator(module, "Communicator");
  communicator
      .def(py::init([](std::shared_ptr<pccl::Context> context, std::string name, int rank,
                       const std::vector<py::bytes>& addresses, double timeout_seconds,
                       std::string algorithm, bool deterministic, bool probes,
                       const std::optional<Pairs>& graph) {
             const auto bytes = to_addresses(addresses);
             pccl::CommunicatorOptions options{timeout_seconds, std::move(algorithm), deterministic,
                                               probes};
             if (graph) options.graph = pccl::bindings::edges_of(*graph);
             py::gil_scoped_release release;
             return std::make_shared<pccl::Communicator>(std::move(context), std::move(name), rank,
                                                         bytes, options);
           }),
           py::arg("context"), py::arg("name"), py::arg("rank"), py::arg("addresses"),
           py::arg("timeout_seconds") = 1800.0, py::arg("algorithm") = "auto",
           py::arg("deterministic") = false, py::arg("probes") = false,
           py::arg("graph") = py::none())
      .def_readwrite("timeout_seconds", &pccl::Communicator::timeout_seconds)
      .def(
          "monitored_barrier",
          [](pccl::Communicator& self, double timeout_seconds, bool wait_all_ranks) {
            py::gil_scoped_release release;
            self.monitored_barrier(timeout_seconds, wait_all_ranks, [] {
              py::gil_scoped_acquire acquire;
              if (PyErr_CheckSignals() != 0) throw py::error_already_set();
            });
          },
          py::arg("timeout_seconds"), py::arg("wait_all_ranks"))
      .def("abort", &pccl::Communicator::abort, py::arg("reason"),
           py::call_guard<py::gil_scoped_release>())
      .def("close", &pccl::Communicator::close, py::call_guard<py::gil_scoped_release>())
      .def("error",
           [](pccl::Communicator& self) {
             std::string text;
             {
               py::gil_scoped_release release;
               text = self.error();
             }
             return to_text(text.c_str());
           })
      .def("plan", &plan_by_name, py::arg("collective"), py::arg("count"), py::arg("dtype"));
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of pccl.";
  py::dict data_types;
  for (int value = 0; value < pccl::kDataTypeCount; ++value) {
    data_types[py::str(std::string(pccl::data_type_name(static_cast<pccl::DataType>(value))))] =
        value;
  }
  module.attr("DATA_TYPES") = data_types;
  py::dict reduce_ops;
  for (int value = 0; value < pccl::kReduceOpCount; ++value) {
    reduce_ops[py::str(std::string(pccl::reduce_op_name(static_cast<pccl::ReduceOp>(value))))] =
        value;
  }
  module.attr("REDUCE_OPS") = reduce_ops;
  pccl::bindings::bind_handshake(module);
  pccl::bindings::bind_errors(module);
  pccl::bindings::bind_work(module);
  pccl::bindings::bind_calls(module);
  bind_context(module);
  bind_communicator(module);
  bind_overlay(module);
  pccl::bindings::bind_coordinator_server(module);
  pccl::bindings::bind_keys(module);
  pccl::bindings::bind_codecs(module);
  pccl::bindings::bind_topology(module);
  pccl::bindings::bind_run(module);
  py::class_<DLPackBuffer>(module, "DLPackBuffer")
      .def(py::init<const py::object&>(), py::arg("array"))
      .def_property_readonly("pointer", &DLPackBuffer::pointer)
      .def_property_readonly("count", &DLPackBuffer::count)
      .def_property_readonly("dtype", &DLPackBuffer::dtype)
      .def_property_readonly("shape", &DLPackBuffer::shape)
      .def_property_readonly("contiguous", &DLPackBuffer::contiguous)
      .def_property_readonly("readonly", &DLPackBuffer::readonly);
  module.def("simd_target", [] { return std::string(pccl::kernels::selected_target()); });
}
