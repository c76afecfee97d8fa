#include "topology/link_table.h"

#include <algorithm>
#include <cmath>

namespace pccl::topology {
namespace {

constexpr double kBytesUnit = 1024;
// Whatever the table says: what planners can reckon with.
constexpr double kRateMin = 1e3;
constexpr double kRateMax = 1e11;
// Of links that nobody has measured: those by memory, or within a machine, are nearer.
constexpr double kRemoteSeconds = 50e-6;

bool is_remote(const Links& unknown, size_t from, size_t to) {
  const LinkCost& cost = unknown.cost[from * static_cast<size_t>(unknown.world_size) + to];
  return from != to && cost.seconds_per_byte < kNoLink && cost.latency_seconds > kRemoteSeconds;
}

double seconds_per_byte(uint32_t kib_per_second) {
  return 1 / std::clamp(kib_per_second * kBytesUnit, kRateMin, kRateMax);
}

double middling(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// What a rank has shown that it can send, or receive: on its fastest link.
struct Shown {
  double seconds_per_byte = kNoLink;
  size_t links = 0;
  void add(double cost) {
    seconds_per_byte = std::min(seconds_per_byte, cost);
    links += 1;
  }
};

// Of a link that nobody has measured. One link says little of its ends: the other one may have been
// the slow one. So without more it is taken for as fast as any, and tried.
double guess(const Shown& sender, const Shown& receiver, double fastest) {
  double slowest = fastest;
  for (const Shown* end : {&sender, &receiver}) {
    if (end->links > 1) slowest = std::max(slowest, end->seconds_per_byte);
  }
  return slowest;
}

}  // namespace

uint32_t to_kib_per_second(double seconds_per_byte) {
  if (!(seconds_per_byte > 0) || seconds_per_byte == kNoLink) return 0;
  return static_cast<uint32_t>(std::clamp(1 / seconds_per_byte / kBytesUnit, 1.0, 4e9));
}

std::vector<bool> missing(const Links& unknown, const LinkTable& table) {
  const auto n = static_cast<size_t>(unknown.world_size);
  std::vector<bool> result(n * n);
  for (size_t link = 0; link < n * n; ++link) result[link] = is_remote(unknown, link / n, link % n);
  for (const LinkEntry& entry : table.links) {
    if (entry.from < n && entry.to < n && entry.kib_per_second != 0)
      result[entry.from * n + entry.to] = false;
  }
  return result;
}

LinkTable to_table(const Links& unknown, const Links& links) {
  LinkTable table;
  const auto n = static_cast<uint16_t>(links.world_size);
  for (uint16_t from = 0; from < n; ++from) {
    for (uint16_t to = 0; to < n; ++to) {
      if (!is_remote(unknown, from, to)) continue;
      const LinkCost& cost = links.at(from, to);
      table.links.push_back({from, to, to_kib_per_second(cost.seconds_per_byte),
                             static_cast<uint32_t>(cost.latency_seconds * 2e6)});
    }
  }
  return table;
}

Links with_table(const Links& unknown, const LinkTable& table) {
  Links links = unknown;
  const auto n = static_cast<size_t>(unknown.world_size);
  std::vector<double> rates;
  std::vector<double> latencies;
  for (const LinkEntry& entry : table.links) {
    if (entry.from >= n || entry.to >= n || entry.kib_per_second == 0) continue;
    if (!is_remote(unknown, entry.from, entry.to)) continue;
    LinkCost& cost = links.cost[entry.from * n + entry.to];
    cost.seconds_per_byte = seconds_per_byte(entry.kib_per_second);
    if (entry.round_trip_us != 0) cost.latency_seconds = entry.round_trip_us * 0.5e-6;
    rates.push_back(cost.seconds_per_byte);
    latencies.push_back(cost.latency_seconds);
  }
  if (rates.empty()) return unknown;
  links.is_measured = true;
  const double fastest = *std::min_element(rates.begin(), rates.end());
  const double middle = middling(std::move(latencies));
  const std::vector<bool> is_missing = missing(unknown, table);
  std::vector<Shown> out(n);
  std::vector<Shown> in(n);
  for (size_t link = 0; link < n * n; ++link) {
    if (is_missing[link] || !is_remote(unknown, link / n, link % n)) continue;
    out[link / n].add(links.cost[link].seconds_per_byte);
    in[link % n].add(links.cost[link].seconds_per_byte);
  }
  for (size_t link = 0; link < n * n; ++link) {
    if (!is_missing[link]) continue;
    links.cost[link] = {middle, guess(out[link / n], in[link % n], fastest)};
  }
  if (table.caps.size() != n) return links;
  for (const CapEntry& cap : table.caps) {
    links.out_seconds_per_byte.push_back(cap.out == 0 ? 0 : seconds_per_byte(cap.out));
    links.in_seconds_per_byte.push_back(cap.in == 0 ? 0 : seconds_per_byte(cap.in));
  }
  return links;
}

}  // namespace pccl::topology
