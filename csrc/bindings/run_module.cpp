#include "bindings/run_module.h"

#include <pybind11/stl.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/exceptions.h"
#include "membership/coordinator_server.h"

namespace pccl::bindings {
namespace {

using membership::CoordinatorServer;

py::dict to_dict(const membership::RunStatus& run);  // found by to_list()

py::dict to_dict(const membership::Event& event) {
  py::dict result;
  result["unix_seconds"] = event.unix_seconds;
  result["run"] = to_text(event.run.c_str());
  result["text"] = to_text(event.text.c_str());
  return result;
}

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
  const bool is_measured = member.round_trip_seconds > 0;
  result["round_trip_seconds"] =
      is_measured ? py::object(py::float_(member.round_trip_seconds)) : py::none();
  result["is_connected"] = member.is_connected;
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
                       double silence_seconds, double link_grace_seconds, double takeover_seconds) {
             if (port < 0 || port > 65535)
               throw py::value_error("port must be 0..65535, not " + std::to_string(port));
             py::gil_scoped_release release;
             return std::make_unique<CoordinatorServer>(
                 membership::CoordinatorServerOptions{.bind_host = std::move(bind_host),
                                                      .port = static_cast<uint16_t>(port),
                                                      .advertise_hosts = std::move(advertise_hosts),
                                                      .database = std::move(database),
                                                      .runs = std::move(runs),
                                                      .heartbeat_seconds = heartbeat_seconds,
                                                      .silence_seconds = silence_seconds,
                                                      .link_grace_seconds = link_grace_seconds,
                                                      .takeover_seconds = takeover_seconds});
           }),
           py::arg("database"), py::kw_only(), py::arg("bind_host") = "", py::arg("port") = 0,
           py::arg("advertise_hosts") = std::vector<std::string>{},
           py::arg("runs") = std::map<std::string, int32_t>{}, py::arg("heartbeat_seconds") = 0.5,
           py::arg("silence_seconds") = 10.0, py::arg("link_grace_seconds") = 10.0,
           py::arg("takeover_seconds") = 10.0)
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
      .def("close", &CoordinatorServer::close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pccl::bindings
