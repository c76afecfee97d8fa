// Networks whose links differ: what they can carry at most, and schedules that come near it.
#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "topology/bounds.h"
#include "topology/checker.h"
#include "topology/cost_model.h"
#include "topology/planners.h"

using namespace pccl::topology;

namespace {

constexpr double kMegabyte = 1e6;

// Every pair alike, in bytes a second; caps by rank.
Measurement full_mesh(int32_t world_size, double rate) {
  const auto ranks = static_cast<size_t>(world_size);
  return {.world_size = world_size, .bytes_per_second = std::vector<double>(ranks * ranks, rate)};
}

void set_rate(Measurement& measurement, int32_t from, int32_t to, double rate) {
  const auto ranks = static_cast<size_t>(measurement.world_size);
  measurement.bytes_per_second[static_cast<size_t>(from) * ranks + static_cast<size_t>(to)] = rate;
}

Measurement random_network(int32_t world_size, uint32_t seed, bool has_caps, bool has_gaps) {
  std::mt19937 random(seed);
  const auto figure = [&random] {
    return kMegabyte * (1 + static_cast<double>(random() % 1000) / 50);
  };
  Measurement measurement = full_mesh(world_size, 0);
  for (int32_t from = 0; from < world_size; ++from) {
    for (int32_t to = 0; to < world_size; ++to) {
      // The ring in both directions always exists.
      const int32_t distance = (to - from + world_size) % world_size;
      const bool is_near = distance == 1 || distance == world_size - 1;
      if (!has_gaps || is_near || random() % 3 == 0) set_rate(measurement, from, to, figure());
    }
    measurement.latency_seconds.resize(measurement.bytes_per_second.size(), 20e-3);
    if (!has_caps) continue;
    measurement.out_bytes_per_second.push_back(2 * figure());
    measurement.in_bytes_per_second.push_back(2 * figure());
  }
  return measurement;
}

std::string fault_of(const Schedule& schedule, const Links& links, uint64_t count) {
  CheckOptions options{Collective::AllReduce, 0, {count}, {}};
  options.allowed = [&links](int32_t from, int32_t to) { return links.connects(from, to); };
  return find_fault(schedule, options).value_or("");
}

// What the schedule would take if only the fullest link or rank counted.
double busiest_seconds(const Schedule& schedule, const Links& links, uint64_t element_bytes) {
  const auto ranks = static_cast<size_t>(links.world_size);
  std::vector<double> sent(ranks), received(ranks), carried(ranks * ranks);
  for (const Chunk& chunk : schedule.chunks) {
    for (const auto* edges : {&chunk.up, &chunk.down}) {
      for (const Edge& edge : *edges) {
        const auto bytes = static_cast<double>(chunk.count * element_bytes);
        sent[static_cast<size_t>(edge.from)] += bytes;
        received[static_cast<size_t>(edge.to)] += bytes;
        carried[static_cast<size_t>(edge.from) * ranks + static_cast<size_t>(edge.to)] += bytes;
      }
    }
  }
  double seconds = 0;
  for (size_t from = 0; from < ranks; ++from) {
    const auto rank = static_cast<int32_t>(from);
    seconds = std::max({seconds, sent[from] * links.send_seconds_per_byte(rank),
                        received[from] * links.receive_seconds_per_byte(rank)});
    for (size_t to = 0; to < ranks; ++to) {
      if (carried[from * ranks + to] == 0) continue;
      seconds = std::max(seconds, carried[from * ranks + to] *
                                      links.at(rank, static_cast<int32_t>(to)).seconds_per_byte);
    }
  }
  return seconds;
}

constexpr uint64_t kGigabyteOfFloats = 250'000'000;

}  // namespace

TEST_CASE("bounds are those of networks that can be reckoned by hand") {
  // Four ranks, each pair 1 MB/s in each direction: 3 MB/s leave a rank, 12 in all, by 6.
  Bounds bounds = all_reduce_bounds(measured_links(full_mesh(4, kMegabyte)));
  CHECK(bounds.cut == doctest::Approx(3 * kMegabyte));
  CHECK(bounds.sum == doctest::Approx(2 * kMegabyte));
  // Rank 3 receives 0.5 MB/s: that cut is the narrowest.
  Measurement measurement = full_mesh(4, kMegabyte);
  measurement.out_bytes_per_second = {2e6, 2e6, 2e6, 2e6};
  measurement.in_bytes_per_second = {1e9, 1e9, 1e9, 0.5e6};
  bounds = all_reduce_bounds(measured_links(measurement));
  CHECK(bounds.cut == doctest::Approx(0.5e6));
  CHECK(bounds.sum == doctest::Approx(8e6 / 6));
  // Two pairs with one thin bridge from 1 to 2, a wide one back.
  measurement = full_mesh(4, 0);
  for (const Edge edge : {Edge{0, 1}, {1, 0}, {2, 3}, {3, 2}, {2, 1}}) {
    set_rate(measurement, edge.from, edge.to, 8e6);
  }
  set_rate(measurement, 1, 2, 0.25e6);
  CHECK(all_reduce_bounds(measured_links(measurement)).cut == doctest::Approx(0.25e6));
  set_rate(measurement, 1, 2, 0);
  CHECK(all_reduce_bounds(measured_links(measurement)).least() == 0);
  CHECK(std::isinf(all_reduce_bounds(measured_links(full_mesh(1, 0))).least()));
}

TEST_CASE("a weak rank owns nothing and receives the result only") {
  Measurement measurement = full_mesh(4, 1e9);
  measurement.out_bytes_per_second = {10e6, 10e6, 10e6, 1e6};
  measurement.in_bytes_per_second = {10e6, 10e6, 10e6, 1e6};
  const Links links = measured_links(measurement);
  const Schedule schedule = choose_all_reduce(links, 1 << 20, 4, "direct");
  CHECK(fault_of(schedule, links, 1 << 20) == "");
  for (const Chunk& chunk : schedule.chunks) CHECK(chunk.core != std::vector<int32_t>{3});
  CHECK(1e-6 * (4 << 20) / busiest_seconds(schedule, links, 4) == doctest::Approx(1).epsilon(0.01));
}

TEST_CASE("packed trees come to the bound on full meshes, and are never slower than it says") {
  for (const int32_t world_size : {2, 3, 5, 8, 11}) {
    for (uint32_t seed = 0; seed < 2; ++seed) {
      const Links links = measured_links(random_network(world_size, seed, seed % 2 == 1, false));
      const double bound = all_reduce_bounds(links).least();
      const Schedule schedule = choose_all_reduce(links, kGigabyteOfFloats, 4, "packed_trees");
      INFO("world_size ", world_size, ", seed ", seed, ", chunks ", schedule.chunks.size());
      CHECK(fault_of(schedule, links, kGigabyteOfFloats) == "");
      const double ideal = 1e9 / bound;
      CHECK(busiest_seconds(schedule, links, 4) > 0.9999 * ideal);
      CHECK(busiest_seconds(schedule, links, 4) < ideal / 0.98);
      // Pipelined, all of it adds little to the busiest link or rank.
      const Cost cost = estimate(schedule, links, 4, kSegmentBytesAssumed);
      CHECK(cost.seconds >= busiest_seconds(schedule, links, 4));
      CHECK(cost.seconds < ideal / 0.97);
      CHECK(cost.steps <= 4);
    }
  }
}

TEST_CASE("trees use links that exist, to any depth") {
  for (const int32_t world_size : {3, 6, 9, 16}) {
    for (uint32_t seed = 0; seed < 4; ++seed) {
      const Links links = measured_links(random_network(world_size, seed, seed % 2 == 1, true));
      for (const uint64_t count : {1u, 100u, 4097u, 1u << 20}) {
        INFO("world_size ", world_size, ", seed ", seed, ", count ", count);
        CHECK(fault_of(choose_all_reduce(links, count, 4, "packed_trees"), links, count) == "");
        CHECK(fault_of(choose_all_reduce(links, count, 4), links, count) == "");
      }
    }
  }
}

TEST_CASE("auto beats every named algorithm by the cost model, and is the same every time") {
  const Links links = measured_links(random_network(8, 3, true, false));
  const Routes routes = find_routes(links);
  for (const uint64_t count : {1u, 1u << 16, 1u << 24}) {
    const Schedule best = choose_all_reduce(links, count, 4);
    CHECK(best == choose_all_reduce(links, count, 4, "auto", &routes));
    const double seconds = estimate(best, links, 4, kSegmentBytesAssumed).seconds;
    for (const std::string name : {"direct", "ring", "halving_doubling", "packed_trees"}) {
      const Schedule other = choose_all_reduce(links, count, 4, name, &routes);
      CHECK(seconds <= estimate(other, links, 4, kSegmentBytesAssumed).seconds);
    }
  }
}

TEST_CASE("shares are whole groups of a codec, and of even size on an even network") {
  const Schedule schedule =
      choose_all_reduce(measured_links(full_mesh(8, kMegabyte)), 1'000'003, 4, "packed_trees");
  REQUIRE(schedule.chunks.size() == 8);
  for (const Chunk& chunk : schedule.chunks) {
    CHECK(chunk.offset % 256 == 0);
    CHECK(chunk.count > 124'400);
    CHECK(chunk.count < 125'600);
  }
}

TEST_CASE("figures that are none are refused by name") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const auto message_of = [](const Measurement& measurement) -> std::string {
    try {
      find_routes(measured_links(measurement));
    } catch (const std::invalid_argument& error) {
      return error.what();
    }
    return "no error";
  };
  Measurement measurement = full_mesh(3, 1);
  measurement.bytes_per_second[5] = nan;
  CHECK(message_of(measurement) ==
        "measured_links: the rate in bytes a second from rank 1 to rank 2 is nan");
  measurement.bytes_per_second[5] = -1;
  CHECK(message_of(measurement) ==
        "measured_links: the rate in bytes a second from rank 1 to rank 2 is -1.000000");
  measurement.bytes_per_second.pop_back();
  CHECK(message_of(measurement) == "measured_links: 8 figures of bytes a second, not 9");
  measurement = full_mesh(3, 1);
  measurement.out_bytes_per_second = {1, 0, 1};
  CHECK(message_of(measurement) == "measured_links: the cap on sending of rank 1 is 0.000000");
  measurement = full_mesh(3, 1);
  set_rate(measurement, 0, 2, 0);
  set_rate(measurement, 1, 2, 0);
  CHECK(message_of(measurement) ==
        "find_routes: the links are not connected, there is no way from rank 0 to rank 2");
  measurement = full_mesh(4, 1);
  set_rate(measurement, 2, 3, 0);
  CHECK_THROWS_WITH_AS(choose_all_reduce(measured_links(measurement), 64, 4, "doubling"),
                       "all_reduce: algorithm \"doubling\" needs a link from rank 2 to rank 3, "
                       "which does not exist",
                       std::invalid_argument);
}

TEST_CASE("routes that are found quickly are right, if not the best") {
  for (const int32_t world_size : {1, 2, 5, 9}) {
    for (const bool has_gaps : {false, true}) {
      const Links links = measured_links(random_network(world_size, 4, true, has_gaps));
      const Routes routes = quick_routes(links);
      for (const uint64_t count : {1u, 1u << 20}) {
        INFO("world_size ", world_size, ", has_gaps ", has_gaps, ", count ", count);
        CHECK(fault_of(choose_all_reduce(links, count, 4, "auto", &routes), links, count) == "");
      }
    }
  }
}

TEST_CASE("other collectives go round links that do not exist") {
  for (const int32_t world_size : {1, 2, 4, 9}) {
    const Links links = measured_links(random_network(world_size, 6, false, true));
    const std::vector<uint64_t> blocks(static_cast<size_t>(world_size), 1000);
    const int32_t root = world_size / 2;
    const auto fault = [&links](const Schedule& schedule, CheckOptions options) {
      options.allowed = [&links](int32_t from, int32_t to) { return links.connects(from, to); };
      return find_fault(schedule, options).value_or("");
    };
    for (const std::string name : {"auto", "quickest_tree"}) {
      INFO("world_size ", world_size, ", ", name);
      CHECK(fault(choose_broadcast(links, root, 1000, 4, name),
                  {Collective::Broadcast, root, {1000}, {}}) == "");
      CHECK(fault(choose_reduce(links, root, 1000, 4, name),
                  {Collective::Reduce, root, {1000}, {}}) == "");
      CHECK(fault(choose_all_gather(links, blocks, 4, name),
                  {Collective::AllGather, 0, blocks, {}}) == "");
      CHECK(fault(choose_reduce_scatter(links, blocks, 4, name),
                  {Collective::ReduceScatter, 0, blocks, {}}) == "");
    }
  }
}

TEST_CASE("links among some ranks keep their figures") {
  Measurement measurement = random_network(5, 1, true, false);
  const Links some = links_among(measured_links(measurement), std::vector<int32_t>{3, 0});
  CHECK(some.world_size == 2);
  CHECK(1 / some.at(0, 1).seconds_per_byte == doctest::Approx(measurement.bytes_per_second[15]));
  CHECK(1 / some.out_seconds_per_byte[1] == doctest::Approx(measurement.out_bytes_per_second[0]));
  CHECK(1 / some.in_seconds_per_byte[0] == doctest::Approx(measurement.in_bytes_per_second[3]));
}
