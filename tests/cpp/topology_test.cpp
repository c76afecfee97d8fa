// Plans and their proof: every schedule is right, and every planted fault is found.
#include <doctest/doctest.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "topology/checker.h"
#include "topology/double_tree.h"
#include "topology/planners.h"

using namespace pccl::topology;

namespace {

const std::vector<uint64_t> kCounts = {0, 1, 2, 3, 5, 63, 64, 65, 1000, 4097};

struct Case {
  std::string name;
  Schedule schedule;
  CheckOptions options;
};

std::vector<int32_t> identity_order(int32_t world_size) {
  std::vector<int32_t> order(static_cast<size_t>(world_size));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

std::vector<int32_t> shuffled_order(int32_t world_size, uint32_t seed) {
  std::vector<int32_t> order = identity_order(world_size);
  std::shuffle(order.begin(), order.end(), std::mt19937(seed));
  return order;
}

// Uneven blocks around `count`, some of them empty.
std::vector<uint64_t> uneven_blocks(int32_t world_size, uint64_t count) {
  std::vector<uint64_t> blocks;
  for (int32_t rank = 0; rank < world_size; ++rank) {
    blocks.push_back(rank % 4 == 3 ? 0 : count + static_cast<uint64_t>(rank % 3));
  }
  return blocks;
}

// Every planner of a collective without root.
std::vector<Case> plan_rootless(int32_t world_size, uint64_t count) {
  const std::vector<int32_t> order = shuffled_order(world_size, 7);
  const std::vector<uint64_t> blocks = uneven_blocks(world_size, count);
  const CheckOptions reduce{Collective::AllReduce, 0, {count}, {}};
  const CheckOptions gather{Collective::AllGather, 0, blocks, {}};
  const CheckOptions scatter{Collective::ReduceScatter, 0, blocks, {}};
  return {
      {"all_reduce doubling", plan_all_reduce_doubling(world_size, count), reduce},
      {"all_reduce exchange", plan_all_reduce_exchange(world_size, count), reduce},
      {"all_reduce halving", plan_all_reduce_halving_doubling(world_size, count), reduce},
      {"all_reduce ring", plan_all_reduce_ring(identity_order(world_size), count), reduce},
      {"all_reduce shuffled ring", plan_all_reduce_ring(order, count), reduce},
      {"all_reduce tree", plan_all_reduce_double_binary_tree(world_size, count), reduce},
      {"all_reduce direct", plan_all_reduce_direct(world_size, count), reduce},
      {"all_gather ring", plan_all_gather_ring(order, blocks), gather},
      {"all_gather direct", plan_all_gather_direct(blocks), gather},
      {"all_gather doubling", plan_all_gather_doubling(blocks), gather},
      {"reduce_scatter ring", plan_reduce_scatter_ring(order, blocks), scatter},
      {"reduce_scatter direct", plan_reduce_scatter_direct(blocks), scatter},
      {"reduce_scatter halving", plan_reduce_scatter_halving(blocks), scatter},
      {"all_to_all", plan_all_to_all_pairwise(world_size), {Collective::AllToAll, 0, {}, {}}},
  };
}

std::vector<Case> plan_rooted(int32_t world_size, int32_t root, uint64_t count) {
  const std::vector<uint64_t> blocks = uneven_blocks(world_size, count);
  const CheckOptions broadcast{Collective::Broadcast, root, {count}, {}};
  const CheckOptions reduce{Collective::Reduce, root, {count}, {}};
  return {
      {"broadcast binomial", plan_broadcast_binomial(world_size, root, count), broadcast},
      {"broadcast tree", plan_broadcast_double_binary_tree(world_size, root, count), broadcast},
      {"reduce binomial", plan_reduce_binomial(world_size, root, count), reduce},
      {"reduce tree", plan_reduce_double_binary_tree(world_size, root, count), reduce},
      {"gather", plan_gather_direct(root, blocks), {Collective::Gather, root, blocks, {}}},
      {"scatter", plan_scatter_direct(root, blocks), {Collective::Scatter, root, blocks, {}}},
  };
}

std::vector<Case> plan_everything(int32_t world_size, uint64_t count) {
  std::vector<Case> cases = plan_rootless(world_size, count);
  for (const int32_t root : std::set<int32_t>{0, world_size / 2, world_size - 1}) {
    for (Case& rooted : plan_rooted(world_size, root, count)) cases.push_back(std::move(rooted));
  }
  return cases;
}

// The faults of all cases, one a line; empty if there are none.
std::string faults_of(const std::vector<Case>& cases) {
  std::string faults;
  for (const Case& planned : cases) {
    if (const auto fault = find_fault(planned.schedule, planned.options)) {
      faults += planned.name + ": " + *fault + "\n";
    }
  }
  return faults;
}

// What each rank holds of a chunk at the end: an executor of numbers, without the checker's code.
// Rank r contributes 2^r + 1; 0 stands for nothing final.
std::vector<uint64_t> run_chunk(const Chunk& chunk, int32_t world_size) {
  std::vector<uint64_t> partial(static_cast<size_t>(world_size));
  for (size_t rank = 0; rank < partial.size(); ++rank) partial[rank] = (uint64_t{1} << rank) + 1;
  for (const Edge& edge : chunk.up) {
    partial[static_cast<size_t>(edge.to)] += partial[static_cast<size_t>(edge.from)];
  }
  if (chunk.exchanges_at_once) {
    uint64_t sum = 0;
    for (const int32_t rank : chunk.core) sum += partial[static_cast<size_t>(rank)];
    for (const int32_t rank : chunk.core) partial[static_cast<size_t>(rank)] = sum;
  }
  for (size_t bit = 1; bit < chunk.core.size() && !chunk.exchanges_at_once; bit *= 2) {
    const std::vector<uint64_t> before = partial;
    for (size_t position = 0; position < chunk.core.size(); ++position) {
      partial[static_cast<size_t>(chunk.core[position])] +=
          before[static_cast<size_t>(chunk.core[position ^ bit])];
    }
  }
  std::vector<uint64_t> finals(partial.size());
  for (const int32_t rank : chunk.core) {
    finals[static_cast<size_t>(rank)] = partial[static_cast<size_t>(rank)];
  }
  for (const Edge& edge : chunk.down) {
    finals[static_cast<size_t>(edge.to)] += finals[static_cast<size_t>(edge.from)];
  }
  return finals;
}

}  // namespace

TEST_CASE("every planner's schedules are right for 1 to 33 ranks and any count") {
  for (int32_t world_size = 1; world_size <= 33; ++world_size) {
    for (const uint64_t count : kCounts) {
      INFO("world_size ", world_size, ", count ", count);
      CHECK(faults_of(plan_everything(world_size, count)) == "");
    }
  }
}

TEST_CASE("a reduction run on numbers gives the sum at every rank that needs it, and only once") {
  for (int32_t world_size = 1; world_size <= 33; ++world_size) {
    const uint64_t sum = (uint64_t{1} << world_size) - 1 + static_cast<uint64_t>(world_size);
    for (const Case& planned : plan_rootless(world_size, 4097)) {
      if (planned.options.collective != Collective::AllReduce) continue;
      const std::vector<uint64_t> sums(static_cast<size_t>(world_size), sum);
      bool is_right = true;
      for (const Chunk& chunk : planned.schedule.chunks) {
        is_right = is_right && run_chunk(chunk, world_size) == sums;
      }
      INFO(planned.name, ", world_size ", world_size);
      CHECK(is_right);
    }
  }
}

TEST_CASE("one rank gets one chunk a block and no edges, no elements give no chunk") {
  for (const Case& planned : plan_everything(1, 64)) {
    INFO(planned.name);
    REQUIRE(planned.schedule.chunks.size() == 1);
    CHECK(planned.schedule.chunks[0].core == std::vector<int32_t>{0});
    CHECK(planned.schedule.chunks[0].up.empty());
    CHECK(planned.schedule.chunks[0].down.empty());
  }
  CHECK(plan_all_reduce_ring(identity_order(4), 0).chunks.empty());
  CHECK(plan_broadcast_double_binary_tree(4, 1, 0).chunks.empty());
  CHECK(plan_all_gather_ring(identity_order(3), std::vector<uint64_t>{0, 0, 0}).chunks.empty());
}

TEST_CASE("chunks begin on cache lines where every rank can have one") {
  for (const uint64_t count : {256u, 257u, 1000u, 4097u, 100003u}) {
    const Schedule schedule = plan_all_reduce_direct(4, count);
    REQUIRE(schedule.chunks.size() == 4);
    uint64_t shortest = count;
    uint64_t longest = 0;
    for (const Chunk& chunk : schedule.chunks) {
      CHECK(chunk.offset % 64 == 0);
      shortest = std::min(shortest, chunk.count);
      longest = std::max(longest, chunk.count);
    }
    CHECK(longest - shortest <= 127);
  }
  CHECK(plan_all_reduce_direct(4, 255).chunks.size() == 4);
  CHECK(plan_all_reduce_direct(4, 3).chunks.size() == 3);
}

TEST_CASE("the ring's chunks follow the order, and only its neighbour links carry traffic") {
  const std::vector<int32_t> order = {2, 0, 3, 1};
  const Schedule schedule = plan_all_reduce_ring(order, 1024);
  REQUIRE(schedule.chunks.size() == 4);
  CHECK(schedule.chunks[1].core == std::vector<int32_t>{0});
  CHECK(schedule.chunks[1].up == std::vector<Edge>{{3, 1}, {1, 2}, {2, 0}});
  CHECK(schedule.chunks[1].down == std::vector<Edge>{{0, 3}, {3, 1}, {1, 2}});
  CheckOptions options{Collective::AllReduce, 0, {1024}, {}};
  options.allowed = [&](int32_t from, int32_t to) {
    const auto position = std::find(order.begin(), order.end(), from) - order.begin();
    return order[static_cast<size_t>(position + 1) % order.size()] == to;
  };
  CHECK(find_fault(schedule, options) == std::nullopt);
  CHECK(find_fault(plan_all_reduce_direct(4, 1024), options).value_or("no fault") ==
        "chunk 0 (block 0): up: edge from rank 1 to rank 0 uses a forbidden link");
}

TEST_CASE("direct combines in rank order and tells its neighbours first") {
  const Schedule schedule = plan_all_reduce_direct(4, 1024);
  CHECK(schedule.chunks[2].up == std::vector<Edge>{{0, 2}, {1, 2}, {3, 2}});
  CHECK(schedule.chunks[2].down == std::vector<Edge>{{2, 3}, {2, 0}, {2, 1}});
}

TEST_CASE("halving folds the surplus ranks first, then halves the distance") {
  const Schedule schedule = plan_all_reduce_halving_doubling(5, 1024);
  REQUIRE(schedule.chunks.size() == 4);
  CHECK(schedule.chunks[0].core == std::vector<int32_t>{0});
  CHECK(schedule.chunks[1].core == std::vector<int32_t>{2});
  CHECK(schedule.chunks[1].up == std::vector<Edge>{{4, 0}, {0, 2}, {1, 3}, {3, 2}});
  CHECK(schedule.chunks[1].down == std::vector<Edge>{{2, 3}, {3, 1}, {2, 0}, {0, 4}});
}

TEST_CASE("all_to_all is pairwise") {
  const Schedule schedule = plan_all_to_all_pairwise(3);
  std::vector<uint32_t> blocks;
  for (const Chunk& chunk : schedule.chunks) blocks.push_back(chunk.block);
  CHECK(blocks == std::vector<uint32_t>{0, 4, 8, 1, 5, 6, 2, 3, 7});
}

TEST_CASE("a rank is an inner node of at most one of the two trees, and has two children at most") {
  for (int32_t world_size = 1; world_size <= 70; ++world_size) {
    std::vector<int32_t> trees_where_inner(static_cast<size_t>(world_size));
    for (const Tree& tree : double_tree(world_size)) {
      std::vector<int32_t> children(static_cast<size_t>(world_size));
      for (const Edge& edge : tree.down) ++children[static_cast<size_t>(edge.from)];
      CHECK(*std::max_element(children.begin(), children.end()) <= 2);
      for (size_t rank = 0; rank < children.size(); ++rank) {
        trees_where_inner[rank] += children[rank] > 0;
      }
    }
    INFO("world_size ", world_size);
    CHECK(*std::max_element(trees_where_inner.begin(), trees_where_inner.end()) <= 1);
  }
}

TEST_CASE("planners refuse what they cannot plan for") {
  const std::vector<uint64_t> two_blocks = {1, 1};
  CHECK_THROWS_AS(plan_all_reduce_direct(0, 1), std::invalid_argument);
  CHECK_THROWS_AS(plan_broadcast_binomial(4, 4, 1), std::invalid_argument);
  CHECK_THROWS_AS(plan_gather_direct(-1, two_blocks), std::invalid_argument);
  CHECK_THROWS_AS(plan_all_reduce_ring(std::vector<int32_t>{0, 0}, 1), std::invalid_argument);
  CHECK_THROWS_AS(plan_all_reduce_ring(std::vector<int32_t>{}, 1), std::invalid_argument);
  CHECK_THROWS_AS(plan_all_gather_ring(identity_order(3), two_blocks), std::invalid_argument);
}

namespace {

// A right schedule, spoilt in one place, and what the checker must say of it.
struct Plant {
  std::string expected;
  std::function<void(Schedule&)> spoil;
};

void check_plants(const Schedule& schedule, const CheckOptions& options,
                  const std::vector<Plant>& plants) {
  REQUIRE(find_fault(schedule, options) == std::nullopt);
  for (const Plant& plant : plants) {
    Schedule spoilt = schedule;
    plant.spoil(spoilt);
    CHECK(find_fault(spoilt, options).value_or("no fault") == plant.expected);
  }
}

}  // namespace

TEST_CASE("planted faults of an all_reduce are found") {
  // Chunk 1 is elements 64..127 at rank 1: up 2 -> 3 -> 0 -> 1, down 1 -> 2 -> 3 -> 0.
  const std::string chunk = "chunk 1 (block 0): ";
  CheckOptions options{Collective::AllReduce, 0, {256}, {}};
  options.allowed = [](int32_t from, int32_t to) { return from != 3 || to != 1; };
  check_plants(
      plan_all_reduce_ring(identity_order(4), 256), options,
      {
          {chunk + "up: rank 2 sends twice, to rank 3 and rank 1: its contribution counts twice",
           [](Schedule& s) {
             s.chunks[1].up.push_back({2, 1});
           }},
          {chunk + "up: contribution of rank 2 is missing, it sends to nobody",
           [](Schedule& s) { s.chunks[1].up.erase(s.chunks[1].up.begin()); }},
          {chunk + "up: rank 2 has sent before it hears from rank 0: a circle",
           [](Schedule& s) {
             s.chunks[1].up[2] = {0, 2};
           }},
          {chunk + "up: rank 3 has sent before it hears from rank 2",
           [](Schedule& s) { std::swap(s.chunks[1].up[0], s.chunks[1].up[1]); }},
          {chunk + "up: core rank 1 sends away",
           [](Schedule& s) {
             s.chunks[1].up.push_back({1, 2});
           }},
          {chunk + "up: edge from rank 2 to rank 2 leads to itself",
           [](Schedule& s) { s.chunks[1].up[0].to = 2; }},
          {chunk + "up: edge from rank 4 to rank 3 is out of range",
           [](Schedule& s) { s.chunks[1].up[0].from = 4; }},
          {chunk + "up: edge from rank 3 to rank 1 uses a forbidden link",
           [](Schedule& s) { s.chunks[1].up[1].to = 1; }},
          {chunk + "down: rank 2 sends to rank 3 before it has the value",
           [](Schedule& s) { std::swap(s.chunks[1].down[0], s.chunks[1].down[1]); }},
          {chunk + "down: rank 0 gets the value twice, here from rank 1",
           [](Schedule& s) {
             s.chunks[1].down.push_back({1, 0});
           }},
          {chunk + "down: rank 0 needs the value and does not get it",
           [](Schedule& s) { s.chunks[1].down.pop_back(); }},
          {chunk + "down: edge from rank -1 to rank 2 is out of range",
           [](Schedule& s) { s.chunks[1].down[0].from = -1; }},
          {chunk + "core: 3 ranks, not a power of two",
           [](Schedule& s) {
             s.chunks[1].core = {0, 1, 2};
           }},
          {chunk + "core: 0 ranks, not a power of two", [](Schedule& s) { s.chunks[1].core = {}; }},
          {chunk + "core: rank 9 is out of range", [](Schedule& s) { s.chunks[1].core = {9}; }},
          {chunk + "core: rank 1 stands twice",
           [](Schedule& s) {
             s.chunks[1].core = {1, 1};
           }},
          {chunk + "moves, but the collective reduces",
           [](Schedule& s) { s.chunks[1].reduces = false; }},
      });
}

TEST_CASE("planted faults of the tiling are found") {
  const std::string chunk = "chunk 1 (block 0): ";
  check_plants(plan_all_reduce_ring(identity_order(4), 256), {Collective::AllReduce, 0, {256}, {}},
               {
                   {chunk + "begins at element 65, but 64 is the next: a gap",
                    [](Schedule& s) { s.chunks[1].offset = 65; }},
                   {chunk + "begins at element 63, but 64 is the next: an overlap",
                    [](Schedule& s) { s.chunks[1].offset = 63; }},
                   {"chunk 3 (block 0): 65 elements from element 192 on, but the block has 256",
                    [](Schedule& s) { s.chunks[3].count = 65; }},
                   {"block 0: a gap, elements 192 to 256 are in no chunk",
                    [](Schedule& s) { s.chunks.pop_back(); }},
                   {"chunk 1 (block 7): no such block", [](Schedule& s) { s.chunks[1].block = 7; }},
                   {chunk + "is empty", [](Schedule& s) { s.chunks[1].count = 0; }},
                   {chunk + "chunks are whole blocks in all_to_all, and only there",
                    [](Schedule& s) { s.chunks[1].count = Chunk::kWholeBlock; }},
               });
}

TEST_CASE("planted faults of an exchange at once are found") {
  CheckOptions options{Collective::AllReduce, 0, {5}, {}};
  options.allowed = [](int32_t from, int32_t to) { return from + to != 7; };
  check_plants(plan_all_reduce_exchange(4, 5), options,
               {
                   {"chunk 0 (block 0): up: contribution of rank 1 is missing, it sends to nobody",
                    [](Schedule& s) {
                      s.chunks[0].core = {0, 3, 2};
                    }},
                   {"chunk 0 (block 0): core: 1 ranks, not several that reduce",
                    [](Schedule& s) { s.chunks[0].core = {0}; }},
                   {"chunk 0 (block 0): core: rank 2 stands twice",
                    [](Schedule& s) {
                      s.chunks[0].core = {0, 1, 2, 2};
                    }},
                   {"chunk 0 (block 0): down: rank 1 gets the value twice, here from rank 0",
                    [](Schedule& s) {
                      s.chunks[0].down = {{0, 1}};
                    }},
               });
  options.allowed = [](int32_t from, int32_t to) { return from + to != 3; };
  CHECK(find_fault(plan_all_reduce_exchange(4, 5), options) ==
        "chunk 0 (block 0): exchange: rank 1 and rank 2 use a forbidden link");
}

TEST_CASE("planted faults of an exchange are found") {
  CheckOptions options{Collective::AllReduce, 0, {5}, {}};
  options.allowed = [](int32_t from, int32_t to) { return from + to != 3; };
  check_plants(plan_all_reduce_doubling(5, 5), options,
               {
                   {"chunk 0 (block 0): exchange: rank 0 and rank 3 use a forbidden link",
                    [](Schedule& s) {
                      s.chunks[0].core = {0, 3, 1, 2};
                    }},
                   {"chunk 0 (block 0): up: contribution of rank 2 is missing, it sends to nobody",
                    [](Schedule& s) {
                      s.chunks[0].core = {0, 1};
                    }},
                   {"chunk 0 (block 0): down: rank 4 needs the value and does not get it",
                    [](Schedule& s) { s.chunks[0].down.clear(); }},
               });
}

TEST_CASE("planted faults of moving collectives are found") {
  const std::vector<uint64_t> blocks = {5, 5, 5};
  check_plants(plan_broadcast_binomial(3, 1, 5), {Collective::Broadcast, 1, {5}, {}},
               {
                   {"chunk 0 (block 0): core: rank 2, but rank 1 has the data",
                    [](Schedule& s) { s = plan_broadcast_binomial(3, 2, 5); }},
                   {"chunk 0 (block 0): core: a moving chunk has one core rank, rank 1",
                    [](Schedule& s) {
                      s.chunks[0].core = {1, 2};
                    }},
                   {"chunk 0 (block 0): up: rank 0 contributes to a chunk that only moves",
                    [](Schedule& s) {
                      s.chunks[0].up = {{0, 1}};
                    }},
                   {"chunk 0 (block 0): reduces, but the collective moves",
                    [](Schedule& s) { s.chunks[0].reduces = true; }},
               });
  check_plants(plan_gather_direct(2, blocks), {Collective::Gather, 2, blocks, {}},
               {{"chunk 0 (block 0): down: rank 2 needs the value and does not get it",
                 [](Schedule& s) { s.chunks[0].down[0].to = 1; }}});
  check_plants(plan_reduce_binomial(3, 1, 5), {Collective::Reduce, 1, {5}, {}},
               {{"chunk 0 (block 0): down: rank 1 needs the value and does not get it",
                 [](Schedule& s) { s = plan_reduce_binomial(3, 0, 5); }}});
  check_plants(plan_all_to_all_pairwise(3), {Collective::AllToAll, 0, {}, {}},
               {{"chunk 4 (block 5): core: rank 2, but rank 1 has the data",
                 [](Schedule& s) { s.chunks[4].core = {2}; }},
                {"chunk 8 (block 6): begins at element 0, but 18446744073709551615 is the next: an "
                 "overlap",
                 [](Schedule& s) { s.chunks[8].block = 6; }}});
}

TEST_CASE("the checker refuses options that do not fit") {
  const Schedule schedule = plan_all_reduce_direct(2, 4);
  CHECK(find_fault(schedule, {Collective::AllReduce, 0, {}, {}}).has_value());
  CHECK(find_fault(schedule, {Collective::AllReduce, 2, {4}, {}}).has_value());
  CHECK(find_fault(Schedule{}, {Collective::AllReduce, 0, {4}, {}}).has_value());
}
