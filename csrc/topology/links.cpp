// Links from where they come: defaults, measurements, other links.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "topology/cost_model.h"

namespace pccl::topology {
namespace {

Links alike_links(int32_t world_size) {
  if (world_size < 1) {
    throw std::invalid_argument("links: world_size is " + std::to_string(world_size));
  }
  Links links;
  links.world_size = world_size;
  links.cost.resize(static_cast<size_t>(world_size) * static_cast<size_t>(world_size));
  // A copy into or out of a ring or socket, one frame's way through the event loop, one pass of a
  // reduce kernel.
  links.rank_seconds_per_byte = 1 / 6e9;
  links.rank_seconds_per_message = 3e-6;
  links.reduce_seconds_per_byte = 1 / 8e9;
  return links;
}

using Figures = std::vector<double>;

std::string rank_and(const char* what, size_t index) {
  return std::string(what) + " of rank " + std::to_string(index);
}

std::string pair_and(const char* what, size_t index, size_t world_size) {
  return std::string(what) + " from rank " + std::to_string(index / world_size) + " to rank " +
         std::to_string(index % world_size);
}

void require_count(const Figures& figures, size_t count, const char* what) {
  if (figures.size() == count) return;
  throw std::invalid_argument("measured_links: " + std::to_string(figures.size()) + " figures of " +
                              what + ", not " + std::to_string(count));
}

// NaN is no figure either: it compares false.
void require_figure(bool is_right, double figure, const std::string& name) {
  if (is_right) return;
  throw std::invalid_argument("measured_links: the " + name + " is " + std::to_string(figure));
}

Figures inverse_caps(const Figures& caps, size_t world_size, const char* what) {
  if (caps.empty()) return {};
  require_count(caps, world_size, what);
  Figures result;
  for (size_t rank = 0; rank < world_size; ++rank) {
    require_figure(caps[rank] > 0, caps[rank], rank_and(what, rank));
    result.push_back(1 / caps[rank]);
  }
  return result;
}

}  // namespace

Links uniform_links(int32_t world_size, LinkCost cost) {
  Links links = alike_links(world_size);
  std::fill(links.cost.begin(), links.cost.end(), cost);
  return links;
}

Links host_links(const std::vector<int32_t>& host_of_rank, bool is_one_machine) {
  constexpr LinkCost kMemory{.latency_seconds = 12e-6, .seconds_per_byte = 1 / 8e9};
  constexpr LinkCost kLoopback{.latency_seconds = 18e-6, .seconds_per_byte = 1 / 2.5e9};
  // Of a fast network: slower ones are measured once there is something to gain.
  constexpr LinkCost kNetwork{.latency_seconds = 100e-6, .seconds_per_byte = 1 / 2.5e9};
  const LinkCost between = is_one_machine ? kLoopback : kNetwork;
  const size_t world_size = host_of_rank.size();
  Links links = alike_links(static_cast<int32_t>(world_size));
  for (size_t from = 0; from < world_size; ++from) {
    for (size_t to = 0; to < world_size; ++to) {
      links.cost[from * world_size + to] =
          host_of_rank[from] == host_of_rank[to] ? kMemory : between;
    }
  }
  return links;
}

Links measured_links(const Measurement& measurement) {
  Links links = alike_links(measurement.world_size);
  const auto world_size = static_cast<size_t>(measurement.world_size);
  const Figures& rates = measurement.bytes_per_second;
  const Figures& latencies = measurement.latency_seconds;
  require_count(rates, links.cost.size(), "bytes a second");
  if (!latencies.empty()) require_count(latencies, links.cost.size(), "latency");
  for (size_t index = 0; index < links.cost.size(); ++index) {
    if (index % (world_size + 1) == 0) continue;
    require_figure(rates[index] >= 0, rates[index],
                   pair_and("rate in bytes a second", index, world_size));
    links.cost[index].seconds_per_byte = 1 / rates[index];
    if (rates[index] == 0) links.cost[index].seconds_per_byte = kNoLink;
    if (latencies.empty()) continue;
    require_figure(latencies[index] >= 0 && latencies[index] < kNoLink, latencies[index],
                   pair_and("latency in seconds", index, world_size));
    links.cost[index].latency_seconds = latencies[index];
  }
  links.out_seconds_per_byte =
      inverse_caps(measurement.out_bytes_per_second, world_size, "cap on sending");
  links.in_seconds_per_byte =
      inverse_caps(measurement.in_bytes_per_second, world_size, "cap on receiving");
  links.is_measured = true;
  return links;
}

Links links_among(const Links& all, std::span<const int32_t> ranks) {
  Links links = all;
  links.world_size = static_cast<int32_t>(ranks.size());
  links.cost.clear();
  links.out_seconds_per_byte.clear();
  links.in_seconds_per_byte.clear();
  for (const int32_t from : ranks) {
    for (const int32_t to : ranks) links.cost.push_back(all.at(from, to));
    const auto rank = static_cast<size_t>(from);
    if (!all.out_seconds_per_byte.empty()) {
      links.out_seconds_per_byte.push_back(all.out_seconds_per_byte[rank]);
    }
    if (!all.in_seconds_per_byte.empty()) {
      links.in_seconds_per_byte.push_back(all.in_seconds_per_byte[rank]);
    }
  }
  return links;
}

}  // namespace pccl::topology
