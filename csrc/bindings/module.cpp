// pccl._core: names and conversions, no logic. The stub pccl/_core.pyi documents it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings/dlpack_buffer.h"
#include "bindings/exceptions.h"
#include "bindings/keep_alive.h"
#include "bindings/run_module.h"
#include "communicator.h"
#include "kernels/reduce.h"
#include "transport/frame.h"

namespace py = pybind11;
using pccl::bindings::DLPackBuffer;
using pccl::bindings::graveyard;
using pccl::bindings::keep_alive;
using pccl::bindings::to_text;

namespace {

using BlockPair = std::pair<uintptr_t, uint64_t>;

pccl::Block to_block(const BlockPair& pair) {
  return {reinterpret_cast<std::byte*>(pair.first), pair.second};
}

std::vector<pccl::Block> to_blocks(const std::vector<BlockPair>& pairs) {
  std::vector<pccl::Block> blocks;
  blocks.reserve(pairs.size());
  for (const BlockPair& pair : pairs) blocks.push_back(to_block(pair));
  return blocks;
}

std::byte* to_pointer(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

pccl::DataType to_dtype(int value) {
  if (value < 0 || value >= pccl::kDataTypeCount)
    throw py::value_error("no such dtype: " + std::to_string(value));
  return static_cast<pccl::DataType>(value);
}

pccl::ReduceOp to_op(int value) {
  if (value < 0 || value >= pccl::kReduceOpCount)
    throw py::value_error("no such op: " + std::to_string(value));
  return static_cast<pccl::ReduceOp>(value);
}

uint32_t to_tag(int64_t tag) {
  if (tag < 0 || tag > 0x7FFFFFFF)
    throw py::value_error("tag must be 0..2147483647, not " + std::to_string(tag));
  return static_cast<uint32_t>(tag);
}

// Waits in slices, so that Ctrl+C is seen.
bool wait_interruptibly(pccl::Work& work, pccl::TimePoint until) {
  while (true) {
    const pccl::TimePoint now = pccl::Clock::now();
    bool is_done = false;
    {
      py::gil_scoped_release release;
      is_done = work.wait(std::min(until, now + std::chrono::milliseconds(200)));
    }
    if (is_done) return true;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (pccl::Clock::now() >= until) return false;
  }
}

void wait_for(pccl::Work& work, double timeout_seconds) {
  const bool is_own_limit = timeout_seconds > 0;
  // The engine ends the operation at its deadline; the grace lets it say so.
  const pccl::TimePoint until = is_own_limit ? pccl::after(pccl::Clock::now(), timeout_seconds)
                                             : work.deadline + std::chrono::seconds(10);
  if (!wait_interruptibly(work, until)) {
    throw pccl::CollectiveTimeout(work.operation + ": wait() gave up after " +
                                  std::to_string(timeout_seconds) +
                                  " s; the operation goes on, its memory is still in use");
  }
  if (work.error()) pccl::throw_error(work.error());
}

// Runs a launch without the GIL; `sync` also waits for its end.
template <typename Launch>
std::shared_ptr<pccl::Work> launch(double timeout_seconds, bool sync, const py::object& keep,
                                   Launch&& start) {
  pccl::CallOptions options{
      .timeout_seconds = timeout_seconds, .is_urgent = !sync, .keep = keep_alive(keep)};
  std::shared_ptr<pccl::Work> work;
  {
    py::gil_scoped_release release;
    work = start(std::move(options));
  }
  if (sync) wait_for(*work, 0);
  return work;
}

py::object to_exception(const pccl::Error& error) {
  try {
    pccl::throw_error(error);
  } catch (...) {
    try {
      // Let the registered translators choose the class.
      py::detail::try_translate_exceptions();
    } catch (...) {
    }
    py::error_already_set raised;
    return py::reinterpret_borrow<py::object>(raised.value());
  }
}

using WorkClass = py::class_<pccl::Work, std::shared_ptr<pccl::Work>>;
using CommunicatorClass = py::class_<pccl::Communicator, std::shared_ptr<pccl::Communicator>>;

void bind_context(py::module_& module) {
  py::class_<pccl::Context, std::shared_ptr<pccl::Context>>(module, "Context")
      .def(py::init([](std::string run, std::string bind_host, int port,
                       std::vector<std::string> advertise_hosts, int sockets, bool shared_memory,
                       double connect_timeout_seconds, const std::string& simd) {
             if (port < 0 || port > 65535)
               throw py::value_error("port must be 0..65535, not " + std::to_string(port));
             if (!simd.empty() && !pccl::kernels::select_target(simd)) {
               throw py::value_error("this machine has no SIMD target '" + simd + "'");
             }
             py::gil_scoped_release release;
             return std::make_shared<pccl::Context>(pccl::transport::EndpointOptions{
                 .run = std::move(run),
                 .bind_host = std::move(bind_host),
                 .port = static_cast<uint16_t>(port),
                 .advertise_hosts = std::move(advertise_hosts),
                 .sockets = sockets,
                 .shared_memory = shared_memory,
                 .connect_timeout_seconds = connect_timeout_seconds});
           }),
           py::arg("run"), py::kw_only(), py::arg("bind_host") = "", py::arg("port") = 0,
           py::arg("advertise_hosts") = std::vector<std::string>{}, py::arg("sockets") = 1,
           py::arg("shared_memory") = true, py::arg("connect_timeout_seconds") = 30.0,
           py::arg("simd") = "")
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
             py::dict result;
             result["bytes_sent_tcp"] = now.bytes_sent_tcp;
             result["bytes_received_tcp"] = now.bytes_received_tcp;
             result["bytes_sent_memory"] = now.bytes_sent_memory;
             result["bytes_received_memory"] = now.bytes_received_memory;
             result["connections"] = now.connections;
             result["refused_connections"] = now.refused_connections;
             return result;
           })
      .def("close", &pccl::Context::close, py::call_guard<py::gil_scoped_release>());
}

void bind_work(py::module_& module) {
  WorkClass(module, "Work")
      .def(
          "wait", [](pccl::Work& self, double timeout_seconds) { wait_for(self, timeout_seconds); },
          py::arg("timeout_seconds") = 0.0)
      .def("is_completed", &pccl::Work::is_completed)
      .def("exception",
           [](const pccl::Work& self) -> py::object {
             if (!self.is_completed() || !self.error()) return py::none();
             return to_exception(self.error());
           })
      .def_property_readonly("source_rank", &pccl::Work::source_rank)
      .def_property_readonly("operation", [](const pccl::Work& self) { return self.operation; })
      .def("notify", &pccl::Work::notify);
}

void bind_reductions(CommunicatorClass& communicator) {
  communicator
      .def(
          "all_reduce",
          [](pccl::Communicator& self, uintptr_t source, uintptr_t target, uint64_t count,
             int dtype, int op, double factor, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.all_reduce(to_pointer(source), to_pointer(target), count, to_dtype(dtype),
                                     to_op(op), factor, std::move(options));
            });
          },
          py::arg("source"), py::arg("target"), py::arg("count"), py::arg("dtype"), py::arg("op"),
          py::arg("factor"), py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "reduce",
          [](pccl::Communicator& self, uintptr_t source, uintptr_t target, uint64_t count,
             int dtype, int op, double factor, int root, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.reduce(to_pointer(source), to_pointer(target), count, to_dtype(dtype),
                                 to_op(op), factor, root, std::move(options));
            });
          },
          py::arg("source"), py::arg("target"), py::arg("count"), py::arg("dtype"), py::arg("op"),
          py::arg("factor"), py::arg("root"), py::arg("timeout_seconds"), py::arg("sync"),
          py::arg("keep"))
      .def(
          "reduce_scatter",
          [](pccl::Communicator& self, const std::vector<BlockPair>& sources,
             const BlockPair& target, int dtype, int op, double factor, double timeout_seconds,
             bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.reduce_scatter(to_blocks(sources), to_block(target), to_dtype(dtype),
                                         to_op(op), factor, std::move(options));
            });
          },
          py::arg("sources"), py::arg("target"), py::arg("dtype"), py::arg("op"), py::arg("factor"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"));
}

void bind_moves(CommunicatorClass& communicator) {
  communicator
      .def(
          "broadcast",
          [](pccl::Communicator& self, uintptr_t tensor, uint64_t count, int dtype, int root,
             double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.broadcast(to_pointer(tensor), count, to_dtype(dtype), root,
                                    std::move(options));
            });
          },
          py::arg("tensor"), py::arg("count"), py::arg("dtype"), py::arg("root"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "all_gather",
          [](pccl::Communicator& self, const BlockPair& source,
             const std::vector<BlockPair>& targets, int dtype, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.all_gather(to_block(source), to_blocks(targets), to_dtype(dtype),
                                     std::move(options));
            });
          },
          py::arg("source"), py::arg("targets"), py::arg("dtype"), py::arg("timeout_seconds"),
          py::arg("sync"), py::arg("keep"))
      .def(
          "gather",
          [](pccl::Communicator& self, const BlockPair& source,
             const std::vector<BlockPair>& targets, int dtype, int root, double timeout_seconds,
             bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.gather(to_block(source), to_blocks(targets), to_dtype(dtype), root,
                                 std::move(options));
            });
          },
          py::arg("source"), py::arg("targets"), py::arg("dtype"), py::arg("root"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "scatter",
          [](pccl::Communicator& self, const std::vector<BlockPair>& sources,
             const BlockPair& target, int dtype, int root, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.scatter(to_blocks(sources), to_block(target), to_dtype(dtype), root,
                                  std::move(options));
            });
          },
          py::arg("sources"), py::arg("target"), py::arg("dtype"), py::arg("root"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "all_to_all",
          [](pccl::Communicator& self, const std::vector<BlockPair>& sources,
             const std::vector<BlockPair>& targets, int dtype, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.all_to_all(to_blocks(sources), to_blocks(targets), to_dtype(dtype),
                                     std::move(options));
            });
          },
          py::arg("sources"), py::arg("targets"), py::arg("dtype"), py::arg("timeout_seconds"),
          py::arg("sync"), py::arg("keep"));
}

void bind_messages(CommunicatorClass& communicator) {
  communicator
      .def(
          "send",
          [](pccl::Communicator& self, uintptr_t tensor, uint64_t count, int dtype, int destination,
             int64_t tag, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.send(to_pointer(tensor), count, to_dtype(dtype), destination, to_tag(tag),
                               std::move(options));
            });
          },
          py::arg("tensor"), py::arg("count"), py::arg("dtype"), py::arg("destination"),
          py::arg("tag"), py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "recv",
          [](pccl::Communicator& self, uintptr_t tensor, uint64_t count, int dtype, int source,
             int64_t tag, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](pccl::CallOptions options) {
              return self.recv(to_pointer(tensor), count, to_dtype(dtype), source, to_tag(tag),
                               std::move(options));
            });
          },
          py::arg("tensor"), py::arg("count"), py::arg("dtype"), py::arg("source"), py::arg("tag"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"));
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
                       std::string algorithm) {
             std::vector<std::vector<std::byte>> bytes;
             for (const py::bytes& address : addresses) {
               const std::string_view view = address;
               const auto* begin = reinterpret_cast<const std::byte*>(view.data());
               bytes.emplace_back(begin, begin + view.size());
             }
             py::gil_scoped_release release;
             return std::make_shared<pccl::Communicator>(std::move(context), std::move(name), rank,
                                                         bytes, timeout_seconds,
                                                         std::move(algorithm));
           }),
           py::arg("context"), py::arg("name"), py::arg("rank"), py::arg("addresses"),
           py::arg("timeout_seconds") = 1800.0, py::arg("algorithm") = "auto")
      .def_property_readonly("rank", &pccl::Communicator::rank)
      .def_property_readonly("world_size", &pccl::Communicator::world_size)
      .def_readwrite("timeout_seconds", &pccl::Communicator::timeout_seconds)
      .def(
          "barrier",
          [](pccl::Communicator& self, double timeout_seconds, bool sync) {
            return launch(timeout_seconds, sync, py::none(), [&](pccl::CallOptions options) {
              return self.barrier(std::move(options));
            });
          },
          py::arg("timeout_seconds"), py::arg("sync"))
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
  bind_reductions(communicator);
  bind_moves(communicator);
  bind_messages(communicator);
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
  module.attr("PROTOCOL_VERSION") = static_cast<int>(pccl::transport::kProtocolVersion);
  pccl::bindings::bind_errors(module);
  bind_work(module);
  bind_context(module);
  bind_communicator(module);
  pccl::bindings::bind_coordinator_server(module);
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
