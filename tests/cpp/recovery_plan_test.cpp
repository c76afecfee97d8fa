// The plan of a recovery, executed on sets of contributors instead of numbers.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "recovery/plan.h"
#include "topology/graphs.h"

namespace pccl::recovery {
namespace {

using topology::Chunk;
using topology::Edge;

// Contributors of one element at one rank; empty: its own input.
using Value = std::set<int32_t>;

// Runs one chunk for one element; every rank starts with its own input.
std::vector<Value> reduce_element(const Chunk& chunk, const std::vector<Survivor>& survivors,
                                  int32_t world_size) {
  std::vector<Value> partial(static_cast<size_t>(world_size));
  for (const Survivor& survivor : survivors)
    partial[static_cast<size_t>(survivor.rank)] = {survivor.rank};
  const auto merge = [](Value& into, const Value& from) {
    for (const int32_t rank : from) CHECK(into.insert(rank).second);
  };
  for (const Edge& edge : chunk.up)
    merge(partial[static_cast<size_t>(edge.to)], partial[static_cast<size_t>(edge.from)]);
  for (size_t bit = 1; bit < chunk.core.size(); bit <<= 1) {
    std::vector<Value> next = partial;
    for (size_t p = 0; p < chunk.core.size(); ++p) {
      merge(next[static_cast<size_t>(chunk.core[p])],
            partial[static_cast<size_t>(chunk.core[p ^ bit])]);
    }
    partial = next;
  }
  std::vector<Value> result(static_cast<size_t>(world_size));
  for (const int32_t rank : chunk.core)
    result[static_cast<size_t>(rank)] = partial[static_cast<size_t>(rank)];
  for (const Edge& edge : chunk.down)
    result[static_cast<size_t>(edge.to)] = result[static_cast<size_t>(edge.from)];
  return result;
}

// Finals that are consistent as real ones are: an element is final in one quorum only.
RecoveryRequest random_request(std::mt19937_64& random, int32_t world_size, uint64_t count) {
  RecoveryRequest request;
  request.world_size = world_size;
  request.element_count = count;
  request.element_bytes = 4;
  request.links = topology::host_links(std::vector<int32_t>(static_cast<size_t>(world_size), 0));
  std::vector<int32_t> ranks(static_cast<size_t>(world_size));
  for (int32_t rank = 0; rank < world_size; ++rank) ranks[static_cast<size_t>(rank)] = rank;
  std::shuffle(ranks.begin(), ranks.end(), random);
  ranks.resize(1 + random() % ranks.size());
  std::sort(ranks.begin(), ranks.end());
  const uint64_t piece = 1 + random() % 9;
  for (const int32_t rank : ranks) {
    Survivor survivor{rank, {}};
    const uint64_t density = random() % 5;
    for (uint64_t begin = 0; begin < count; begin += piece) {
      if (random() % 4 >= density) continue;
      const uint64_t quorum_id = 1 + begin / piece % 3;
      survivor.finals.add({begin, std::min(count, begin + piece), quorum_id, 2.0});
    }
    request.survivors.push_back(std::move(survivor));
  }
  return request;
}

void check_plan(const RecoveryRequest& request) {
  const RecoveryPlan plan = plan_recovery(request);
  Value everyone;
  for (const Survivor& survivor : request.survivors) everyone.insert(survivor.rank);
  for (uint64_t element = 0; element < request.element_count; ++element) {
    std::set<int32_t> holders;
    if (!plan.starts_over) {
      for (const Survivor& survivor : request.survivors) {
        if (survivor.finals.covers(element, element + 1)) holders.insert(survivor.rank);
      }
    }
    std::set<int32_t> told = holders;
    for (const Chunk& chunk : plan.schedule.chunks) {
      if (element < chunk.offset || element >= chunk.offset + chunk.count) continue;
      REQUIRE(chunk.reduces == (chunk.block == kBlockInput));
      if (chunk.block == kBlockFinals) {
        REQUIRE(chunk.core.size() == 1);
        CHECK(holders.contains(chunk.core[0]));
        for (const Edge& edge : chunk.down) CHECK(told.insert(edge.to).second);
        continue;
      }
      CHECK(holders.empty());
      CHECK(told.empty());
      const auto result = reduce_element(chunk, request.survivors, request.world_size);
      for (const int32_t rank : everyone) {
        CHECK(result[static_cast<size_t>(rank)] == everyone);
        told.insert(rank);
      }
    }
    CHECK(told == everyone);
    CHECK(plan.origin.covers(element, element + 1) == !holders.empty());
  }
}

TEST_CASE("after a recovery every survivor has every element, from one set of contributors") {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const auto world_size = static_cast<int32_t>(1 + random() % 9);
    RecoveryRequest request = random_request(random, world_size, random() % 200);
    request.is_uniform = random() % 4 == 0;
    check_plan(request);
  }
}

TEST_CASE("over a graph it moves nothing beside the edges") {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    RecoveryRequest request = random_request(random, static_cast<int32_t>(1 + random() % 9), 90);
    request.is_uniform = random() % 4 == 0;
    request.is_coded = random() % 4 == 0;
    topology::Graph graph;
    for (size_t next = 1; next < request.survivors.size(); ++next) {
      const size_t other = random() % next;
      for (const size_t before : {other, next - 1 - other / 2})
        graph.push_back({request.survivors[before].rank, request.survivors[next].rank});
    }
    request.links = topology::links_of_graph(request.links, graph);
    request.links.is_measured = true;
    check_plan(request);
    for (const Chunk& chunk : plan_recovery(request).schedule.chunks) {
      std::vector<Edge> edges = chunk.up;
      edges.insert(edges.end(), chunk.down.begin(), chunk.down.end());
      for (const auto& round : topology::exchange_rounds(chunk))
        edges.insert(edges.end(), round.begin(), round.end());
      for (const Edge& edge : edges) CHECK(request.links.connects(edge.from, edge.to));
    }
  }
}

TEST_CASE("what nobody lacks is not moved") {
  RecoveryRequest request;
  request.world_size = 3;
  request.element_count = 100;
  request.element_bytes = 4;
  request.links = topology::host_links({0, 0, 0});
  for (const int32_t rank : {0, 2}) {
    Survivor survivor{rank, {}};
    survivor.finals.add({0, 100, 7, 3});
    request.survivors.push_back(survivor);
  }
  const RecoveryPlan plan = plan_recovery(request);
  CHECK(plan.schedule.chunks.empty());
  CHECK(plan.elements_moved == 0);
  CHECK(plan.elements_reduced == 0);
}

TEST_CASE("a broadcast whose root is lost loses what no survivor has") {
  RecoveryRequest request;
  request.world_size = 2;
  request.element_count = 10;
  request.element_bytes = 4;
  request.links = topology::host_links({0, 0});
  request.can_reduce = false;
  request.survivors = {{0, {}}, {1, {}}};
  request.survivors[0].finals.add({0, 4, 1, 1});
  CHECK(plan_recovery(request).elements_lost == 6);
  request.survivors[1].finals.add({4, 10, 1, 1});
  const RecoveryPlan plan = plan_recovery(request);
  CHECK(plan.elements_lost == 0);
  CHECK(plan.elements_moved == 10);
}

TEST_CASE("a map keeps what was final first, joins neighbours, and survives its bytes") {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    const uint64_t count = 1 + random() % 60;
    std::vector<uint64_t> expected(count, 0);
    FinalMap map;
    for (int step = 0; step < 20; ++step) {
      const uint64_t begin = random() % count;
      const uint64_t end = begin + random() % (count - begin + 1);
      const uint64_t quorum_id = 1 + random() % 3;
      map.add({begin, end, quorum_id, 1});
      for (uint64_t i = begin; i < end; ++i) {
        if (expected[i] == 0) expected[i] = quorum_id;
      }
    }
    std::vector<uint64_t> got(count, 0);
    for (size_t r = 0; r < map.ranges().size(); ++r) {
      const FinalMap::Range& range = map.ranges()[r];
      CHECK(range.begin < range.end);
      if (r > 0) {
        const FinalMap::Range& before = map.ranges()[r - 1];
        CHECK(before.end <= range.begin);
        CHECK_FALSE((before.end == range.begin && before.quorum_id == range.quorum_id));
      }
      for (uint64_t i = range.begin; i < range.end; ++i) got[i] = range.quorum_id;
    }
    CHECK(got == expected);
    CHECK(map.covers(0, count) == (map.element_count() == count));
    const auto decoded = FinalMap::decode(map.encode(), count);
    REQUIRE(decoded);
    CHECK(*decoded == map);
    if (map.covers(count - 1, count)) CHECK_FALSE(FinalMap::decode(map.encode(), count - 1));
  }
}

TEST_CASE("bytes that are no map are refused") {
  FinalMap map;
  map.add({0, 5, 1, 1});
  std::vector<std::byte> bytes = map.encode();
  bytes.pop_back();
  CHECK_FALSE(FinalMap::decode(bytes, 10));
  const std::vector<std::byte> huge{std::byte{255}, std::byte{255}, std::byte{255}, std::byte{255}};
  CHECK_FALSE(FinalMap::decode(huge, 10));
  CHECK_FALSE(FinalMap::decode({}, 10));
}

}  // namespace
}  // namespace pccl::recovery
