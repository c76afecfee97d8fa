#include "bindings/calls_module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/exceptions.h"
#include "bindings/keep_alive.h"
#include "collective_calls.h"
#include "quantization/codec.h"

namespace pccl::bindings {
namespace {

using BlockPair = std::pair<uintptr_t, uint64_t>;

Block to_block(const BlockPair& pair) {
  return {reinterpret_cast<std::byte*>(pair.first), pair.second};
}

std::vector<Block> to_blocks(const std::vector<BlockPair>& pairs) {
  std::vector<Block> blocks;
  blocks.reserve(pairs.size());
  for (const BlockPair& pair : pairs) blocks.push_back(to_block(pair));
  return blocks;
}

std::byte* to_pointer(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }

ReduceOp to_op(int value) {
  if (value < 0 || value >= kReduceOpCount)
    throw py::value_error("no such op: " + std::to_string(value));
  return static_cast<ReduceOp>(value);
}

uint32_t to_tag(int64_t tag) {
  if (tag < 0 || tag > 0x7FFFFFFF)
    throw py::value_error("tag must be 0..2147483647, not " + std::to_string(tag));
  return static_cast<uint32_t>(tag);
}

// Waits in slices, so that Ctrl+C is seen.
bool wait_interruptibly(Work& work, TimePoint until) {
  while (true) {
    const TimePoint now = Clock::now();
    bool is_done = false;
    {
      py::gil_scoped_release release;
      is_done = work.wait(std::min(until, now + std::chrono::milliseconds(200)));
    }
    if (is_done) return true;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (Clock::now() >= until) return false;
  }
}

void wait_for(Work& work, double timeout_seconds) {
  const bool is_own_limit = timeout_seconds > 0;
  // The engine ends the operation at its deadline; the grace lets it say so.
  const TimePoint until = is_own_limit ? after(Clock::now(), timeout_seconds)
                                       : work.deadline + std::chrono::seconds(10);
  if (!wait_interruptibly(work, until)) {
    throw CollectiveTimeout(work.operation + ": wait() gave up after " +
                            std::to_string(timeout_seconds) +
                            " s; the operation goes on, its memory is still in use");
  }
  if (work.error()) throw_error(work.error());
}

// Runs a launch without the GIL; `sync` also waits for its end.
template <typename Launch>
std::shared_ptr<Work> launch(double timeout_seconds, bool sync, const py::object& keep,
                             Launch&& start) {
  CallOptions options{
      .timeout_seconds = timeout_seconds, .is_urgent = !sync, .keep = keep_alive(keep)};
  std::shared_ptr<Work> work;
  {
    py::gil_scoped_release release;
    work = start(std::move(options));
  }
  if (sync) wait_for(*work, 0);
  return work;
}

py::object to_exception(const Error& error) {
  try {
    throw_error(error);
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

// (begin, end, members, weight) of each part of the result.
py::list contributions(const Work& work) {
  py::list result;
  if (!work.is_completed()) return result;
  for (const Contribution& part : work.contributions()) {
    py::list members;
    for (const transport::MemberId& member : part.members)
      members.append(transport::to_text(member));
    result.append(py::make_tuple(part.begin, part.end, members, part.weight));
  }
  return result;
}

// Those that are in every element of the result.
py::list contributors(const Work& work) {
  std::vector<transport::MemberId> common;
  const auto& parts = work.is_completed() ? work.contributions() : std::vector<Contribution>{};
  if (!parts.empty()) common = parts.front().members;
  for (const Contribution& part : parts) {
    std::erase_if(common, [&part](const transport::MemberId& member) {
      return std::find(part.members.begin(), part.members.end(), member) == part.members.end();
    });
  }
  py::list result;
  for (const transport::MemberId& member : common) result.append(transport::to_text(member));
  return result;
}

double least_weight(const Work& work) {
  if (!work.is_completed() || work.contributions().empty()) return 0;
  const auto& parts = work.contributions();
  return std::min_element(parts.begin(), parts.end(),
                          [](const Contribution& left, const Contribution& right) {
                            return left.weight < right.weight;
                          })
      ->weight;
}

using WorkClass = py::class_<Work, std::shared_ptr<Work>>;
using CallsClass = py::class_<CollectiveCalls, std::shared_ptr<CollectiveCalls>>;

void bind_reductions(CallsClass& calls) {
  calls
      .def(
          "all_reduce",
          [](CollectiveCalls& self, uintptr_t source, uintptr_t target, uint64_t count, int dtype,
             int op, double factor, double timeout_seconds, bool sync, const py::object& keep,
             bool is_uniform, bool checks_finite, const std::string& codec, uintptr_t residual,
             uintptr_t lost, bool is_encoded) {
            const Codec parsed = codec.empty() ? Codec{} : quantization::parse_codec(codec);
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              options.is_uniform = is_uniform;
              options.checks_finite = checks_finite;
              options.codec = parsed;
              options.feedback = {reinterpret_cast<const float*>(residual),
                                  reinterpret_cast<float*>(lost)};
              options.is_encoded = is_encoded;
              return self.all_reduce(to_pointer(source), to_pointer(target), count, to_dtype(dtype),
                                     to_op(op), factor, std::move(options));
            });
          },
          py::arg("source"), py::arg("target"), py::arg("count"), py::arg("dtype"), py::arg("op"),
          py::arg("factor"), py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"),
          py::arg("is_uniform") = false, py::arg("checks_finite") = false, py::arg("codec") = "",
          py::arg("residual") = 0, py::arg("lost") = 0, py::arg("is_encoded") = false)
      .def(
          "reduce",
          [](CollectiveCalls& self, uintptr_t source, uintptr_t target, uint64_t count, int dtype,
             int op, double factor, int root, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.reduce(to_pointer(source), to_pointer(target), count, to_dtype(dtype),
                                 to_op(op), factor, root, std::move(options));
            });
          },
          py::arg("source"), py::arg("target"), py::arg("count"), py::arg("dtype"), py::arg("op"),
          py::arg("factor"), py::arg("root"), py::arg("timeout_seconds"), py::arg("sync"),
          py::arg("keep"))
      .def(
          "reduce_scatter",
          [](CollectiveCalls& self, const std::vector<BlockPair>& sources, const BlockPair& target,
             int dtype, int op, double factor, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.reduce_scatter(to_blocks(sources), to_block(target), to_dtype(dtype),
                                         to_op(op), factor, std::move(options));
            });
          },
          py::arg("sources"), py::arg("target"), py::arg("dtype"), py::arg("op"), py::arg("factor"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"));
}

void bind_moves(CallsClass& calls) {
  calls
      .def(
          "broadcast",
          [](CollectiveCalls& self, uintptr_t tensor, uint64_t count, int dtype, int root,
             double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.broadcast(to_pointer(tensor), count, to_dtype(dtype), root,
                                    std::move(options));
            });
          },
          py::arg("tensor"), py::arg("count"), py::arg("dtype"), py::arg("root"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "all_gather",
          [](CollectiveCalls& self, const BlockPair& source, const std::vector<BlockPair>& targets,
             int dtype, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.all_gather(to_block(source), to_blocks(targets), to_dtype(dtype),
                                     std::move(options));
            });
          },
          py::arg("source"), py::arg("targets"), py::arg("dtype"), py::arg("timeout_seconds"),
          py::arg("sync"), py::arg("keep"))
      .def(
          "gather",
          [](CollectiveCalls& self, const BlockPair& source, const std::vector<BlockPair>& targets,
             int dtype, int root, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.gather(to_block(source), to_blocks(targets), to_dtype(dtype), root,
                                 std::move(options));
            });
          },
          py::arg("source"), py::arg("targets"), py::arg("dtype"), py::arg("root"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "scatter",
          [](CollectiveCalls& self, const std::vector<BlockPair>& sources, const BlockPair& target,
             int dtype, int root, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.scatter(to_blocks(sources), to_block(target), to_dtype(dtype), root,
                                  std::move(options));
            });
          },
          py::arg("sources"), py::arg("target"), py::arg("dtype"), py::arg("root"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "all_to_all",
          [](CollectiveCalls& self, const std::vector<BlockPair>& sources,
             const std::vector<BlockPair>& targets, int dtype, double timeout_seconds, bool sync,
             const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.all_to_all(to_blocks(sources), to_blocks(targets), to_dtype(dtype),
                                     std::move(options));
            });
          },
          py::arg("sources"), py::arg("targets"), py::arg("dtype"), py::arg("timeout_seconds"),
          py::arg("sync"), py::arg("keep"));
}

void bind_messages(CallsClass& calls) {
  calls
      .def(
          "send",
          [](CollectiveCalls& self, uintptr_t tensor, uint64_t count, int dtype, int destination,
             int64_t tag, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.send(to_pointer(tensor), count, to_dtype(dtype), destination, to_tag(tag),
                               std::move(options));
            });
          },
          py::arg("tensor"), py::arg("count"), py::arg("dtype"), py::arg("destination"),
          py::arg("tag"), py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"))
      .def(
          "recv",
          [](CollectiveCalls& self, uintptr_t tensor, uint64_t count, int dtype, int source,
             int64_t tag, double timeout_seconds, bool sync, const py::object& keep) {
            return launch(timeout_seconds, sync, keep, [&](CallOptions options) {
              return self.recv(to_pointer(tensor), count, to_dtype(dtype), source, to_tag(tag),
                               std::move(options));
            });
          },
          py::arg("tensor"), py::arg("count"), py::arg("dtype"), py::arg("source"), py::arg("tag"),
          py::arg("timeout_seconds"), py::arg("sync"), py::arg("keep"));
}

}  // namespace

DataType to_dtype(int value) {
  if (value < 0 || value >= kDataTypeCount)
    throw py::value_error("no such dtype: " + std::to_string(value));
  return static_cast<DataType>(value);
}

void bind_work(py::module_& module) {
  WorkClass(module, "Work")
      .def(
          "wait", [](Work& self, double timeout_seconds) { wait_for(self, timeout_seconds); },
          py::arg("timeout_seconds") = 0.0)
      .def("is_completed", &Work::is_completed)
      .def("exception",
           [](const Work& self) -> py::object {
             if (!self.is_completed() || !self.error()) return py::none();
             return to_exception(self.error());
           })
      .def_property_readonly("contributions", &contributions)
      .def_property_readonly("contributors", &contributors)
      .def_property_readonly("weight", &least_weight)
      .def_property_readonly("source_rank", &Work::source_rank)
      .def_property_readonly("operation", [](const Work& self) { return self.operation; })
      .def("notify", &Work::notify);
}

void bind_calls(py::module_& module) {
  CallsClass calls(module, "CollectiveCalls");
  calls.def_property_readonly("rank", &CollectiveCalls::rank)
      .def_property_readonly("world_size", &CollectiveCalls::world_size)
      .def(
          "barrier",
          [](CollectiveCalls& self, double timeout_seconds, bool sync) {
            return launch(timeout_seconds, sync, py::none(),
                          [&](CallOptions options) { return self.barrier(std::move(options)); });
          },
          py::arg("timeout_seconds"), py::arg("sync"));
  bind_reductions(calls);
  bind_moves(calls);
  bind_messages(calls);
}

}  // namespace pccl::bindings
