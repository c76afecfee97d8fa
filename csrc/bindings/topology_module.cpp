#include "bindings/topology_module.h"

#include <pybind11/stl.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "topology/bounds.h"
#include "topology/checker.h"
#include "topology/gossip.h"
#include "topology/graphs.h"
#include "topology/overlay.h"
#include "topology/packing.h"
#include "topology/planners.h"
#include "topology/sites.h"

namespace pccl::bindings {

namespace py = pybind11;
using namespace topology;

Pairs pairs_of(const std::vector<Edge>& edges) {
  Pairs pairs;
  for (const Edge& edge : edges) pairs.emplace_back(edge.from, edge.to);
  return pairs;
}

std::vector<Edge> edges_of(const Pairs& pairs) {
  std::vector<Edge> edges;
  for (const auto& [from, to] : pairs) edges.push_back({from, to});
  return edges;
}

namespace {

// Links, and what was found out about them, once.
class Network {
 public:
  explicit Network(Links links) : links_(std::move(links)) {}

  const Links& links() const { return links_; }

  const Routes& routes() {
    if (!routes_) routes_ = std::make_shared<const Routes>(find_routes(links_));
    return *routes_;
  }

  Schedule plan(uint64_t count, uint64_t element_bytes, const std::string& algorithm) {
    const py::gil_scoped_release release;
    return choose_all_reduce(links_, count, element_bytes, algorithm, &routes());
  }

 private:
  Links links_;
  std::shared_ptr<const Routes> routes_;
};

py::dict schedule_as_data(const Schedule& schedule) {
  py::list chunks;
  for (const Chunk& chunk : schedule.chunks) {
    py::dict data;
    data["offset"] = chunk.offset;
    data["count"] = chunk.count;
    data["core"] = chunk.core;
    data["at_once"] = chunk.exchanges_at_once;
    data["up"] = pairs_of(chunk.up);
    data["down"] = pairs_of(chunk.down);
    chunks.append(data);
  }
  py::dict data;
  data["algorithm"] = schedule.algorithm;
  data["world_size"] = schedule.world_size;
  data["chunks"] = chunks;
  return data;
}

py::dict planned(Network& network, uint64_t count, uint64_t element_bytes,
                 const std::string& algorithm) {
  const Schedule schedule = network.plan(count, element_bytes, algorithm);
  py::dict data = schedule_as_data(schedule);
  const Cost cost = estimate(schedule, network.links(), element_bytes, kSegmentBytesAssumed);
  data["seconds"] = cost.seconds;
  data["steps"] = cost.steps;
  data["bytes_sent_max"] = cost.bytes_sent_max;
  return data;
}

std::string fault_of(const Network& network, const py::dict& data, uint64_t count) {
  Schedule schedule{.algorithm = "", .world_size = network.links().world_size, .chunks = {}};
  for (const auto& item : data["chunks"]) {
    const auto values = py::cast<py::dict>(item);
    Chunk chunk;
    chunk.offset = values["offset"].cast<uint64_t>();
    chunk.count = values["count"].cast<uint64_t>();
    chunk.reduces = true;
    chunk.core = values["core"].cast<std::vector<int32_t>>();
    chunk.exchanges_at_once = values["at_once"].cast<bool>();
    chunk.up = edges_of(values["up"].cast<Pairs>());
    chunk.down = edges_of(values["down"].cast<Pairs>());
    schedule.chunks.push_back(std::move(chunk));
  }
  CheckOptions options{Collective::AllReduce, 0, {count}, {}};
  options.allowed = [&network](int32_t from, int32_t to) {
    return network.links().connects(from, to);
  };
  return find_fault(schedule, options).value_or("");
}

Network make_network(int32_t world_size, std::vector<double> rates, std::vector<double> latencies,
                     std::vector<double> out, std::vector<double> in) {
  return Network(measured_links({.world_size = world_size,
                                 .bytes_per_second = std::move(rates),
                                 .latency_seconds = std::move(latencies),
                                 .out_bytes_per_second = std::move(out),
                                 .in_bytes_per_second = std::move(in)}));
}

void bind_network(py::module_& module) {
  py::class_<Network>(module, "Network")
      .def(py::init(&make_network), py::arg("world_size"), py::arg("bytes_per_second"),
           py::arg("latency_seconds") = std::vector<double>(),
           py::arg("out_bytes_per_second") = std::vector<double>(),
           py::arg("in_bytes_per_second") = std::vector<double>())
      .def(
          "bounds",
          [](const Network& self) {
            const Bounds bounds = all_reduce_bounds(self.links());
            return std::pair(bounds.cut, bounds.sum);
          },
          "(cut, sum) in bytes a second")
      .def("sites", [](const Network& self) { return find_sites(self.links()); })
      .def("packed_rate", [](Network& self) { return total_rate(self.routes().trees); })
      .def("plan", &planned, py::arg("count"), py::arg("element_bytes"), py::arg("algorithm"))
      .def("fault", &fault_of, py::arg("schedule"), py::arg("count"))
      .def(
          "restricted",
          [](const Network& self, const Pairs& edges) {
            return Network(links_of_graph(self.links(), edges_of(edges)));
          },
          py::arg("edges"))
      .def(
          "accepting",
          [](const Network& self, const std::vector<bool>& accepts) {
            return Network(links_of_accepting(self.links(), accepts));
          },
          py::arg("accepts"))
      .def(
          "best_regular_graph",
          [](const Network& self, int32_t degree, uint64_t seed) {
            return pairs_of(best_regular_graph(self.links(), degree, seed));
          },
          py::arg("degree"), py::arg("seed"));
}

}  // namespace

void bind_topology(py::module_& module) {
  bind_network(module);
  module.def(
      "graph",
      [](const std::string& name, int32_t world_size, int32_t degree, uint64_t seed) {
        return pairs_of(graph_by_name(name, world_size, degree, seed));
      },
      py::arg("name"), py::arg("world_size"), py::arg("degree"), py::arg("seed"));
  module.def(
      "overlay_edges",
      [](const std::string& graph, int32_t world_size) {
        const std::vector<bool> all(static_cast<size_t>(world_size), true);
        return pairs_of(overlay_graph(graph, all).value());
      },
      py::arg("graph"), py::arg("world_size"));
  module.def(
      "gossip_round",
      [](const std::string& graph, int32_t world_size, uint64_t round, uint64_t seed) {
        return gossip_round(graph, world_size, round, seed);
      },
      py::arg("graph"), py::arg("world_size"), py::arg("round"), py::arg("seed"));
  module.def(
      "gossip_period",
      [](const std::string& graph, int32_t world_size) { return gossip_period(graph, world_size); },
      py::arg("graph"), py::arg("world_size"));
}

}  // namespace pccl::bindings
