#include "bindings/run_module.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bindings/calls_module.h"
#include "bindings/exceptions.h"
#include "bindings/keep_alive.h"
#include "bindings/key_module.h"
#include "bindings/topology_module.h"
#include "bindings/transport_module.h"
#include "membership/coordinator_server.h"
#include "run.h"
#include "topology/overlay.h"
#include "transport/key_file.h"

namespace pccl::bindings {
namespace {

using membership::CoordinatorServer;
using transport::Fingerprint;

py::dict to_dict(const membership::RunStatus& run);  // found by to_list()

py::dict to_dict(const membership::Event& event) {
  py::dict result;
  result["unix_seconds"] = event.unix_seconds;
  result["run"] = to_text(event.run.c_str());
  result["text"] = to_text(event.text.c_str());
  return result;
}

// What was not measured is 0.
py::object or_none(double value) { return value > 0 ? py::object(py::float_(value)) : py::none(); }

py::dict to_dict(const membership::MemberStatus& member) {
  py::dict result;
  result["member_id"] = member.member_id;
  result["address"] = to_text(member.address.c_str());
  result["rank"] = member.rank < 0 ? py::object(py::none()) : py::int_(member.rank);
  result["joined_at"] = member.joined_at;
  result["started"] = member.progress.started;
  result["completed"] = member.progress.completed;
  result["revision"] = member.revision;
  result["operations_per_second"] = member.operations_per_second;
  const bool is_heard = member.seconds_since_heard >= 0;
  result["seconds_since_heard"] =
      is_heard ? py::object(py::float_(member.seconds_since_heard)) : py::none();
  result["round_trip_seconds"] = or_none(member.round_trip_seconds);
  result["is_connected"] = member.is_connected;
  result["key"] = member.key;
  result["is_slow"] = member.pace.is_slow;
  result["slow_reason"] = to_text(member.pace.is_slow ? member.pace.reason.c_str() : "");
  result["link_bytes_per_second"] = or_none(member.pace.link_bytes_per_second);
  result["waited_for"] = member.pace.waited_for;
  result["resumed_connections"] = member.figures.resumed_connections;
  result["replaced_sockets"] = member.figures.replaced_sockets;
  result["resent_bytes"] = member.figures.resent_bytes;
  result["recovered_operations"] = member.figures.recovered_operations;
  result["recovery_seconds"] = 1e-6 * static_cast<double>(member.figures.recovery_us);
  return result;
}

py::dict to_dict(const membership::LinkStatus& link) {
  py::dict result;
  result["from"] = link.from;
  result["to"] = link.to;
  result["bytes_sent"] = link.rate.bytes_sent;
  result["bytes_per_second"] = link.rate.bytes_per_second;
  result["busy_bytes_per_second"] = or_none(link.rate.busy_bytes_per_second);
  result["round_trip_seconds"] = or_none(link.rate.round_trip_seconds);
  result["replaced_sockets"] = link.rate.replaced_sockets;
  return result;
}

py::list to_list(const topology::LinkTable& table) {
  py::list result;
  for (const topology::LinkEntry& link : table.links) {
    result.append(py::make_tuple(link.from, link.to, 1024.0 * link.kib_per_second,
                                 1e-6 * link.round_trip_us));
  }
  return result;
}

template <typename T>
py::list to_list(const std::vector<T>& values) {
  py::list result;
  for (const T& value : values) result.append(to_dict(value));
  return result;
}

py::dict to_dict(const membership::RunStatus& run) {
  py::dict result;
  result["name"] = to_text(run.name.c_str());
  result["term"] = membership::term_text(run.term);
  result["quorum_id"] = run.quorum_id;
  result["first_operation"] = run.first_operation;
  result["revision"] = run.revision;
  result["world_size_min"] = run.world_size_min;
  result["members"] = to_list(run.members);
  result["links"] = to_list(run.links);
  result["known_links"] = to_list(run.known);
  result["events"] = to_list(run.events);
  return result;
}

py::dict to_dict(const membership::ServerStatus& status) {
  py::dict result;
  result["address"] = to_text(status.address.c_str());
  result["database"] = to_text(status.database.c_str());
  result["failure"] = to_text(status.failure.c_str());
  result["runs"] = to_list(status.runs);
  result["messages"] = status.messages;
  result["malformed_messages"] = status.malformed_messages;
  result["refused_members"] = status.refused_members;
  result["refused_connections"] = status.refused_connections;
  result["refused_keys"] = status.refused_keys;
  result["refused_plain"] = status.refused_plain;
  result["refused_rate"] = status.refused_rate;
  result["refused_late"] = status.refused_late;
  result["writes"] = status.writes;
  result["write_seconds_max"] = status.write_seconds_max;
  return result;
}

}  // namespace

void bind_coordinator_server(py::module_& module) {
  bind_error<membership::DatabaseError>(module, "DatabaseError", module.attr("PcclError"));
  py::class_<CoordinatorServer>(module, "CoordinatorServer")
      .def(py::init([](std::string database, std::string bind_host, int port,
                       std::vector<std::string> advertise_hosts,
                       std::map<std::string, int32_t> runs, double heartbeat_seconds,
                       double silence_seconds, double link_grace_seconds, double takeover_seconds,
                       double listen_seconds, const std::string& tls, std::string key_file) {
             if (port < 0 || port > 65535)
               throw py::value_error("port must be 0..65535, not " + std::to_string(port));
             py::gil_scoped_release release;
             return std::make_unique<CoordinatorServer>(
                 membership::CoordinatorServerOptions{.bind_host = std::move(bind_host),
                                                      .port = static_cast<uint16_t>(port),
                                                      .advertise_hosts = std::move(advertise_hosts),
                                                      .database = std::move(database),
                                                      .tls = to_tls_use(tls),
                                                      .key_file = std::move(key_file),
                                                      .runs = std::move(runs),
                                                      .heartbeat_seconds = heartbeat_seconds,
                                                      .silence_seconds = silence_seconds,
                                                      .link_grace_seconds = link_grace_seconds,
                                                      .takeover_seconds = takeover_seconds,
                                                      .listen_seconds = listen_seconds});
           }),
           py::arg("database"), py::kw_only(), py::arg("bind_host") = "", py::arg("port") = 0,
           py::arg("advertise_hosts") = std::vector<std::string>{},
           py::arg("runs") = std::map<std::string, int32_t>{}, py::arg("heartbeat_seconds") = 0.5,
           py::arg("silence_seconds") = 10.0, py::arg("link_grace_seconds") = 10.0,
           py::arg("takeover_seconds") = 10.0, py::arg("listen_seconds") = 0.0,
           py::arg("tls") = "remote", py::arg("key_file") = "")
      .def_property_readonly(
          "fingerprint",
          [](const CoordinatorServer& self) { return to_bytes(self.address().fingerprint); })
      .def_property_readonly("hosts",
                             [](const CoordinatorServer& self) { return self.address().hosts; })
      .def_property_readonly("port",
                             [](const CoordinatorServer& self) { return self.address().port; })
      .def_property_readonly("is_closed", &CoordinatorServer::is_closed)
      .def("status",
           [](CoordinatorServer& self) {
             membership::ServerStatus status;
             {
               py::gil_scoped_release release;
               status = self.status();
             }
             return to_dict(status);
           })
      .def(
          "next_events",
          [](CoordinatorServer& self, double timeout_seconds) {
            std::vector<membership::Event> events;
            {
              py::gil_scoped_release release;
              events = self.next_events(after(Clock::now(), timeout_seconds));
            }
            return to_list(events);
          },
          py::arg("timeout_seconds"))
      .def("abandon", &CoordinatorServer::abandon, py::arg("run"),
           py::call_guard<py::gil_scoped_release>())
      .def("close", &CoordinatorServer::close, py::call_guard<py::gil_scoped_release>());
}

namespace {

// Waits without the GIL for as long as `look` says no; Ctrl+C ends it.
template <typename Look>
bool wait_interruptibly(double timeout_seconds, Look&& look) {
  constexpr double kLookSeconds = 0.2;
  const TimePoint until = after(Clock::now(), timeout_seconds);
  while (true) {
    bool is_there = false;
    {
      py::gil_scoped_release release;
      is_there = look(std::min(until, after(Clock::now(), kLookSeconds)));
    }
    if (is_there) return true;
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    if (Clock::now() >= until) return false;
  }
}

membership::Digest to_digest(const py::bytes& bytes) {
  const std::string_view view = bytes;
  membership::Digest digest{};
  if (view.size() != digest.size())
    throw py::value_error("digest: expected 32 bytes, got " + std::to_string(view.size()));
  std::copy(view.begin(), view.end(), digest.begin());
  return digest;
}

py::dict statistics_of(Run& self) {
  transport::Statistics now;
  {
    py::gil_scoped_release release;
    now = self.statistics();
  }
  py::dict result = to_counters(now);
  const auto [operations, microseconds] = self.recoveries();
  result["recovered_operations"] = operations;
  result["recovery_microseconds"] = microseconds;
  return result;
}

py::tuple to_tuple(const CollectiveCalls::Place& place) {
  return py::make_tuple(place.rank, place.world_size, place.quorum_id);
}

py::list members_of(const Run& self) {
  py::list result;
  for (const RunMember& member : self.members()) {
    result.append(
        py::make_tuple(transport::to_text(member.member_id), member.address, member.joined_at));
  }
  return result;
}

py::list links_of(Run& self) {
  topology::LinkTable table;
  {
    py::gil_scoped_release release;
    table = self.links();
  }
  return to_list(table);
}

using RunClass = py::class_<Run, CollectiveCalls, std::shared_ptr<Run>>;

void bind_run_membership(RunClass& run) {
  run.def(
         "wait_until_joined",
         [](Run& self, double timeout_seconds) {
           return wait_interruptibly(
               timeout_seconds, [&self](TimePoint until) { return self.wait_until_joined(until); });
         },
         py::arg("timeout_seconds"))
      .def(
          "wait_for_members",
          [](Run& self, int count, double timeout_seconds) {
            return wait_interruptibly(timeout_seconds, [&self, count](TimePoint until) {
              return self.wait_for_members(count, until);
            });
          },
          py::arg("count"), py::arg("timeout_seconds"))
      .def(
          "wait_for_change",
          [](Run& self, uint64_t quorum_id, double timeout_seconds) {
            return wait_interruptibly(timeout_seconds, [&self, quorum_id](TimePoint until) {
              return self.wait_for_change(quorum_id, until);
            });
          },
          py::arg("quorum_id"), py::arg("timeout_seconds"))
      .def_property_readonly("place", [](const Run& self) { return to_tuple(self.here()); })
      .def_property_readonly("in_force", [](const Run& self) { return to_tuple(self.in_force()); })
      .def("pin", [](Run& self) { return to_tuple(self.pin()); })
      .def("unpin", &Run::unpin)
      .def_property_readonly("member_id",
                             [](const Run& self) { return transport::to_text(self.member_id()); })
      .def_property_readonly("members", &members_of)
      .def_property_readonly("edges",
                             [](const Run& self) -> std::optional<Pairs> {
                               const auto graph = self.graph();
                               if (!graph) return std::nullopt;
                               return pairs_of(*graph);
                             })
      .def_property_readonly("trouble",
                             [](const Run& self) { return to_text(self.trouble().c_str()); })
      .def_property_readonly("round_trip_seconds", &Run::round_trip_seconds)
      .def_property_readonly("links", &links_of)
      .def_property_readonly("pending_quorum_id", &Run::pending_quorum_id)
      .def_property_readonly(
          "committed_revision",
          [](const Run& self) {
            const Run::Revision revision = self.committed_revision();
            const auto& digest = revision.digest;
            return py::make_tuple(
                revision.number,
                py::bytes(reinterpret_cast<const char*>(digest.data()), digest.size()));
          })
      .def("gate_newcomers", &Run::gate_newcomers, py::call_guard<py::gil_scoped_release>())
      .def("admit", &Run::admit, py::arg("quorum_id"), py::call_guard<py::gil_scoped_release>())
      .def(
          "set_revision",
          [](Run& self, uint64_t revision, const py::bytes& digest) {
            const membership::Digest held = to_digest(digest);
            py::gil_scoped_release release;
            self.set_revision(revision, held);
          },
          py::arg("revision"), py::arg("digest"));
}

void bind_run_state(RunClass& run) {
  const auto bind = [&run](const char* name, auto method) {
    run.def(
        name,
        [method](Run& self, uint64_t quorum_id, int32_t rank, uint32_t tag, uintptr_t pointer,
                 uint64_t bytes, double timeout_seconds, const py::object& keep) {
          CallOptions options{.timeout_seconds = timeout_seconds, .keep = keep_alive(keep)};
          py::gil_scoped_release release;
          return (self.*method)(quorum_id, rank, tag,
                                {reinterpret_cast<std::byte*>(pointer), bytes}, std::move(options));
        },
        py::arg("quorum_id"), py::arg("rank"), py::arg("tag"), py::arg("pointer"), py::arg("bytes"),
        py::arg("timeout_seconds"), py::arg("keep"));
  };
  bind("send_state", &Run::send_state);
  bind("receive_state", &Run::receive_state);
}

void bind_run_init(RunClass& run) {
  run.def(py::init([](std::string name, std::string coordinator_host, int coordinator_port,
                      std::string bind_host, int port, std::vector<std::string> advertise_hosts,
                      int sockets, std::string congestion_control, bool shared_memory,
                      double connect_timeout_seconds, double timeout_seconds, std::string algorithm,
                      bool deterministic, bool probes, double takeover_seconds,
                      std::string trace_folder, const std::string& tls, const std::string& key_file,
                      const py::bytes& coordinator_key, const py::bytes& token, bool outward,
                      std::string graph) {
            RunOptions options;
            options.endpoint = {.run = std::move(name),
                                .bind_host = std::move(bind_host),
                                .port = static_cast<uint16_t>(port),
                                .accepts_calls = !outward,
                                .graph = topology::shown_graph(graph),
                                .advertise_hosts = std::move(advertise_hosts),
                                .sockets = sockets,
                                .congestion_control = std::move(congestion_control),
                                .shared_memory = shared_memory,
                                .connect_timeout_seconds = connect_timeout_seconds,
                                .trace_folder = std::move(trace_folder),
                                .tls = to_tls_use(tls)};
            if (!key_file.empty()) options.endpoint.identity = transport::read_key_file(key_file);
            options.coordinator_key = from_bytes<32>(coordinator_key).value_or(Fingerprint{});
            if (const auto secret = from_bytes<16>(token)) options.token = {*secret};
            options.coordinator_host = std::move(coordinator_host);
            options.coordinator_port = static_cast<uint16_t>(coordinator_port);
            options.timeout_seconds = timeout_seconds;
            options.algorithm = std::move(algorithm);
            options.deterministic = deterministic;
            options.probes = probes;
            options.takeover_seconds = takeover_seconds;
            options.graph = std::move(graph);
            py::gil_scoped_release release;
            return std::make_shared<Run>(options);
          }),
          py::arg("name"), py::arg("coordinator_host"), py::arg("coordinator_port"), py::kw_only(),
          py::arg("bind_host") = "", py::arg("port") = 0,
          py::arg("advertise_hosts") = std::vector<std::string>{}, py::arg("sockets") = 1,
          py::arg("congestion_control") = "kernel", py::arg("shared_memory") = true,
          py::arg("connect_timeout_seconds") = 30.0, py::arg("timeout_seconds") = 1800.0,
          py::arg("algorithm") = "auto", py::arg("deterministic") = false,
          py::arg("probes") = false, py::arg("takeover_seconds") = 10.0,
          py::arg("trace_folder") = "", py::arg("tls") = "remote", py::arg("key_file") = "",
          py::arg("coordinator_key") = py::bytes(), py::arg("token") = py::bytes(),
          py::arg("outward") = false, py::arg("graph") = "");
}

}  // namespace

void bind_run(py::module_& module) {
  RunClass run(module, "Run");
  bind_run_init(run);
  run.def_readwrite("timeout_seconds", &Run::timeout_seconds)
      .def("describe_address", &Run::describe_address)
      .def(
          "wait_completions",
          [](Run& self, double timeout_seconds) {
            graveyard().clear();
            py::gil_scoped_release release;
            auto done = self.completions()->take(after(Clock::now(), timeout_seconds));
            return std::vector<std::shared_ptr<Work>>(done.begin(), done.end());
          },
          py::arg("timeout_seconds"))
      .def("statistics", &statistics_of)
      .def("flight_record",
           [](Run& self) {
             std::string text;
             {
               py::gil_scoped_release release;
               text = self.flight_record();
             }
             return to_text(text.c_str());
           })
      .def("flight_events", &flight_events_of<Run>, py::arg("seen"))
      .def("error", [](const Run& self) { return to_text(self.error().c_str()); })
      .def(
          "plan",
          [](Run& self, const std::string& collective, uint64_t count, int dtype) {
            for (int value = 1; value < static_cast<int>(transport::Collective::SendRecv);
                 ++value) {
              const auto known = static_cast<transport::Collective>(value);
              if (collective == transport::collective_name(known))
                return self.plan(known, count, to_dtype(dtype));
            }
            throw py::value_error("no such collective: " + collective);
          },
          py::arg("collective"), py::arg("count"), py::arg("dtype"))
      .def("abort", &Run::abort, py::arg("reason"), py::call_guard<py::gil_scoped_release>())
      .def("leave", &Run::leave, py::call_guard<py::gil_scoped_release>());
  bind_run_membership(run);
  bind_run_state(run);
}

}  // namespace pccl::bindings
