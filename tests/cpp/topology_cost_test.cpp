// What a schedule costs, and the choice among schedules.
#include <doctest/doctest.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "topology/checker.h"
#include "topology/cost_model.h"
#include "topology/planners.h"

using namespace pccl::topology;

namespace {

constexpr uint64_t kSegment = kSegmentBytesAssumed;

std::vector<int32_t> identity_order(int32_t world_size) {
  std::vector<int32_t> order(static_cast<size_t>(world_size));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

Links one_host(int32_t world_size) {
  return host_links(std::vector<int32_t>(static_cast<size_t>(world_size)));
}

int32_t ceil_log2(int32_t value) { return std::bit_width(static_cast<uint32_t>(value - 1)); }

}  // namespace

TEST_CASE("steps and bytes are those of the formulas") {
  for (int32_t world_size = 2; world_size <= 64; world_size *= 2) {
    INFO("world_size ", world_size);
    const auto ranks = static_cast<uint64_t>(world_size);
    const auto log2 = static_cast<uint64_t>(ceil_log2(world_size));
    const uint64_t count = 128 * ranks;
    const uint64_t all = 4 * count;
    const uint64_t optimal = 2 * all * (ranks - 1) / ranks;
    const std::vector<uint64_t> blocks(ranks, 128);
    const Links links = one_host(world_size);
    const auto check = [&](const Schedule& schedule, uint64_t steps, uint64_t bytes) {
      const Cost cost = estimate(schedule, links, 4, kSegment);
      INFO(schedule.algorithm);
      CHECK(static_cast<uint64_t>(cost.steps) == steps);
      CHECK(cost.bytes_sent_max == bytes);
      CHECK(cost.seconds > 12e-6 * static_cast<double>(steps));
    };
    check(plan_all_reduce_doubling(world_size, count), log2, all * log2);
    check(plan_all_reduce_exchange(world_size, count), 1, all * (ranks - 1));
    check(plan_all_reduce_halving_doubling(world_size, count), 2 * log2, optimal);
    check(plan_all_reduce_ring(identity_order(world_size), count), 2 * (ranks - 1), optimal);
    check(plan_all_reduce_direct(world_size, count), 2, optimal);
    check(plan_broadcast_binomial(world_size, 1, count), log2, all * log2);
    check(plan_reduce_binomial(world_size, 1, count), log2, all);
    check(plan_all_gather_ring(identity_order(world_size), blocks), ranks - 1, optimal / 2);
    check(plan_all_gather_direct(blocks), 1, optimal / 2);
    check(plan_all_gather_doubling(blocks), log2, optimal / 2);
    check(plan_reduce_scatter_ring(identity_order(world_size), blocks), ranks - 1, optimal / 2);
    check(plan_reduce_scatter_direct(blocks), 1, optimal / 2);
    check(plan_reduce_scatter_halving(blocks), log2, optimal / 2);
    const Cost tree =
        estimate(plan_all_reduce_double_binary_tree(world_size, count), links, 4, kSegment);
    CHECK(static_cast<uint64_t>(tree.steps) <= 2 * log2);
    CHECK(tree.bytes_sent_max <= 2 * all);
  }
}

TEST_CASE("steps stay within the formulas where the world size is no power of two") {
  for (int32_t world_size = 2; world_size <= 33; ++world_size) {
    INFO("world_size ", world_size);
    const std::vector<uint64_t> blocks(static_cast<size_t>(world_size), 64);
    const auto steps = [&](const Schedule& schedule) {
      return estimate(schedule, one_host(world_size), 4, kSegment).steps;
    };
    CHECK(steps(plan_all_reduce_halving_doubling(world_size, 4096)) == 2 * ceil_log2(world_size));
    CHECK(steps(plan_all_reduce_doubling(world_size, 64)) <= ceil_log2(world_size) + 1);
    CHECK(steps(plan_all_gather_doubling(blocks)) <= ceil_log2(world_size));
    CHECK(steps(plan_reduce_double_binary_tree(world_size, 0, 64)) <= 1 + ceil_log2(world_size));
  }
}

TEST_CASE("long messages take their bytes' time, short ones their steps'") {
  // Links at a tenth of what a rank can do, so that they are what counts.
  const Links links = uniform_links(8, {.latency_seconds = 1e-3, .seconds_per_byte = 1e-8});
  const uint64_t all = uint64_t{1} << 30;
  const double ideal = 2.0 * 7 / 8 * static_cast<double>(all) * 1e-8;
  const Schedule ring = plan_all_reduce_ring(identity_order(8), all / 4);
  const double ring_seconds = estimate(ring, links, 4, kSegment).seconds;
  CHECK(ring_seconds > ideal);
  CHECK(ring_seconds < 1.05 * ideal);
  const Schedule short_ring = plan_all_reduce_ring(identity_order(8), 64 * 8);
  CHECK(estimate(short_ring, links, 4, kSegment).seconds == doctest::Approx(14e-3).epsilon(0.05));
  // A chain of 8 pipelined segments: seven hops of one segment, and the bytes once.
  Schedule chain = plan_broadcast_binomial(8, 0, 8 * kSegment);
  chain.chunks[0].down = {{0, 1}, {1, 2}, {2, 3}, {3, 4}, {4, 5}, {5, 6}, {6, 7}};
  const double segment_seconds = static_cast<double>(kSegment) * 1e-8;
  CHECK(estimate(chain, links, 1, kSegment).seconds ==
        doctest::Approx(7e-3 + 14 * segment_seconds).epsilon(0.05));
  CHECK(estimate(chain, links, 1, 8 * kSegment).seconds ==
        doctest::Approx(7e-3 + 56 * segment_seconds).epsilon(0.05));
}

TEST_CASE("an all_to_all costs what its blocks hold") {
  const Schedule schedule = plan_all_to_all_pairwise(3);
  const Cost cost = estimate(schedule, one_host(3), 4, kSegment, {9, 1, 2, 0, 9, 0, 5, 6, 9});
  CHECK(cost.steps == 1);
  CHECK(cost.bytes_sent_max == 44);
  CHECK(cost.messages_sent_max == 2);
  CHECK_THROWS_AS(estimate(schedule, one_host(3), 4, kSegment), std::invalid_argument);
}

TEST_CASE("an estimate refuses links of another world size and segments of no bytes") {
  const Schedule schedule = plan_all_reduce_direct(3, 8);
  CHECK_THROWS_AS(estimate(schedule, one_host(4), 4, kSegment), std::invalid_argument);
  CHECK_THROWS_AS(estimate(schedule, one_host(3), 4, 0), std::invalid_argument);
  CHECK_THROWS_AS(uniform_links(0, {}), std::invalid_argument);
}

TEST_CASE("auto takes few steps for 4 bytes and few bytes for 256 MB, the same every time") {
  for (const int32_t world_size : {2, 3, 4, 7, 8, 16, 33, 64}) {
    INFO("world_size ", world_size);
    const Links links = one_host(world_size);
    const Schedule small = choose_all_reduce(links, 1, 4);
    CHECK((small.algorithm == "doubling" || small.algorithm == "direct"));
    const Schedule large = choose_all_reduce(links, 64'000'000, 4);
    INFO(large.algorithm);
    CHECK((large.algorithm == "direct" || large.algorithm == "ring" ||
           large.algorithm == "halving_doubling"));
    CHECK(large == choose_all_reduce(links, 64'000'000, 4));
    CHECK(find_fault(large, {Collective::AllReduce, 0, {64'000'000}, {}}) == std::nullopt);
  }
  CHECK(choose_all_reduce(one_host(4), 1, 4).algorithm == "doubling");
}

TEST_CASE("over long links everybody tells everybody what is small, within a machine nobody does") {
  for (const int32_t world_size : {3, 4, 7, 8}) {
    std::vector<int32_t> hosts(static_cast<size_t>(world_size));
    std::iota(hosts.begin(), hosts.end(), 0);
    CHECK(choose_all_reduce(host_links(hosts, false), 1, 4).algorithm == "exchange");
    CHECK(choose_all_reduce(host_links(hosts, false), 1025, 4).algorithm != "exchange");
    CHECK(choose_all_reduce(host_links(hosts, true), 1, 4).algorithm != "exchange");
    Measurement far{.world_size = world_size};
    far.bytes_per_second.assign(hosts.size() * hosts.size(), 12.5e6);
    far.latency_seconds.assign(hosts.size() * hosts.size(), 0.05);
    const Links links = measured_links(far);
    const Schedule small = choose_all_reduce(links, 1, 4);
    CHECK(small.algorithm == "exchange");
    CHECK(estimate(small, links, 4, kSegment).seconds < 1.01 * 0.05);
    CHECK(choose_all_reduce(links, 16 << 20, 4).algorithm != "exchange");
  }
}

TEST_CASE("doubling is never chosen above its limit") {
  // Latency is all, so doubling is the cheapest by far.
  const Links links = uniform_links(16, {.latency_seconds = 1, .seconds_per_byte = 0});
  const uint64_t count_max = kExchangeBytesMax / 4;
  CHECK(choose_all_reduce(links, count_max, 4, "doubling").algorithm == "doubling");
  CHECK(choose_all_reduce(links, count_max + 1, 4, "doubling").algorithm == "halving_doubling");
  CHECK(choose_all_reduce(links, count_max + 1, 4).algorithm != "doubling");
  CHECK(choose_all_reduce(links, count_max, 4, "exchange").algorithm == "exchange");
  CHECK(choose_all_reduce(links, count_max + 1, 4, "exchange").algorithm == "direct");
}

TEST_CASE("every algorithm can be had by name, an unknown one is refused with the names") {
  const Links links = one_host(5);
  const std::vector<uint64_t> blocks = {7, 0, 9, 64, 65};
  for (const std::string name : {"direct", "ring", "halving_doubling", "doubling", "exchange",
                                 "double_binary_tree", "packed_trees", "rings", "quickest_tree"}) {
    CHECK(choose_all_reduce(links, 1000, 4, name).algorithm == name);
  }
  for (const std::string name : {"binomial", "double_binary_tree"}) {
    CHECK(choose_broadcast(links, 3, 1000, 4, name).algorithm == name);
    CHECK(choose_reduce(links, 3, 1000, 4, name).algorithm == name);
  }
  for (const std::string name : {"direct", "ring", "doubling"}) {
    CHECK(choose_all_gather(links, blocks, 4, name).algorithm == name);
  }
  for (const std::string name : {"direct", "ring", "halving"}) {
    CHECK(choose_reduce_scatter(links, blocks, 4, name).algorithm == name);
  }
  CHECK_THROWS_WITH_AS(
      choose_all_reduce(links, 1000, 4, "rnig"),
      "all_reduce: unknown algorithm \"rnig\"; there are: auto, direct, ring, "
      "halving_doubling, doubling, exchange, double_binary_tree, packed_trees, rings, "
      "hierarchical, quickest_tree",
      std::invalid_argument);
  CHECK_THROWS_AS(choose_broadcast(links, 0, 1, 4, "ring"), std::invalid_argument);
  CHECK_THROWS_AS(choose_reduce(links, 0, 1, 4, ""), std::invalid_argument);
  CHECK_THROWS_AS(choose_all_gather(links, blocks, 4, "halving"), std::invalid_argument);
  CHECK_THROWS_AS(choose_reduce_scatter(links, blocks, 4, "doubling"), std::invalid_argument);
  CHECK_THROWS_AS(choose_all_gather(one_host(4), blocks, 4), std::invalid_argument);
}

TEST_CASE("what auto chooses is right, for no elements and one rank too") {
  for (const int32_t world_size : {1, 2, 5, 8}) {
    const Links links = one_host(world_size);
    for (const uint64_t count : {0u, 1u, 65u, 1u << 22}) {
      INFO("world_size ", world_size, ", count ", count);
      const std::vector<uint64_t> blocks(static_cast<size_t>(world_size), count);
      const int32_t root = world_size - 1;
      CHECK(find_fault(choose_all_reduce(links, count, 4),
                       {Collective::AllReduce, 0, {count}, {}}) == std::nullopt);
      CHECK(find_fault(choose_broadcast(links, root, count, 4),
                       {Collective::Broadcast, root, {count}, {}}) == std::nullopt);
      CHECK(find_fault(choose_reduce(links, root, count, 4),
                       {Collective::Reduce, root, {count}, {}}) == std::nullopt);
      CHECK(find_fault(choose_all_gather(links, blocks, 4),
                       {Collective::AllGather, 0, blocks, {}}) == std::nullopt);
      CHECK(find_fault(choose_reduce_scatter(links, blocks, 4),
                       {Collective::ReduceScatter, 0, blocks, {}}) == std::nullopt);
    }
  }
}

TEST_CASE("the ring visits one host after the other") {
  CHECK(ring_order(host_links({0, 1, 2, 0, 1, 2, 0})) == std::vector<int32_t>{0, 3, 6, 1, 4, 2, 5});
  CHECK(ring_order(one_host(5)) == identity_order(5));
  const Schedule ring =
      choose_all_gather(host_links({4, 9, 4}), std::vector<uint64_t>{1, 1, 1}, 4, "ring");
  CHECK(ring.chunks[0].down == std::vector<Edge>{{0, 2}, {2, 1}});
}
