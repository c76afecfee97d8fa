// What a planner takes for large calls while nothing is known of the links.
#include "collective_planner.h"

#include <doctest/doctest.h>

#include <numeric>
#include <thread>

using namespace pccl;

namespace {

struct Begun {
  std::string algorithm;
  topology::Pool pool;
};

// The first all_reduce of 16 MiB among ranks on these hosts.
Begun begin(const std::vector<int32_t>& hosts, PlannerOptions options = {}) {
  options.hosts = hosts;
  options.is_one_machine = false;
  const size_t ranks = hosts.size();
  CollectivePlanner planner(std::move(options),
                            [ranks] { return std::vector<transport::LinkTraffic>(ranks); });
  CollectiveCall call;
  call.signature = {
      .collective = transport::Collective::AllReduce, .dtype = DataType::Float32, .count = 4 << 20};
  call.segment_bytes = planner.segment_bytes(false);
  call.blocks.resize(1);
  // Routes over known links are searched on a thread of their own.
  const TimePoint end = after(Clock::now(), 20);
  while (!planner.is_ready(call.signature)) {
    REQUIRE(Clock::now() < end);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const std::string algorithm = planner.algorithm(call.signature, {});
  planner.prepare(call, {});
  return {algorithm, call.plan->pool};
}

std::vector<int32_t> apart(int32_t ranks) {
  std::vector<int32_t> hosts(static_cast<size_t>(ranks));
  std::iota(hosts.begin(), hosts.end(), 0);
  return hosts;
}

}  // namespace

TEST_CASE("five to eight ranks on a host each begin with all to all, and claim most of it") {
  for (int32_t ranks = 5; ranks <= 8; ++ranks) {
    const Begun begun = begin(apart(ranks));
    CHECK(begun.algorithm == "direct");
    CHECK(begun.pool.count > (2 << 20));
    CHECK(begun.pool.count < (3 << 20));
  }
}

TEST_CASE("where ranks share a host, or are few, a ring begins") {
  for (const std::vector<int32_t>& hosts :
       {apart(3), apart(4), std::vector<int32_t>{0, 1, 2, 3, 3}, {0, 0, 1, 1, 2, 2, 3, 3}}) {
    const Begun begun = begin(hosts);
    CHECK(begun.algorithm == "ring");
    CHECK(begun.pool.count == 0);
  }
}

TEST_CASE("what is known, or asked for, is not begun blindly") {
  topology::LinkTable table;
  for (uint16_t from = 0; from < 6; ++from) {
    for (uint16_t to = 0; to < 6; ++to) {
      if (from != to) table.links.push_back({from, to, 12'000, 100'000});
    }
  }
  CHECK(begin(apart(6), {.deterministic = true}).pool.count == 0);
  CHECK(begin(apart(6), {.algorithm = "double_binary_tree"}).algorithm == "double_binary_tree");
  // Even lines: the links of the table, in a ring.
  CHECK(begin(apart(6), {.table = table}).pool.count < (1 << 20));
  CHECK(begin(apart(9)).pool.count == 0);
}
