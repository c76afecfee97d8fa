// Chunks that get more while a call runs (collectives/claims.cpp).
#include <doctest/doctest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cluster.h"
#include "group_members.h"
#include "share.h"
#include "topology/planners.h"
#include "topology/pool.h"

using namespace pccl;

namespace {

constexpr uint64_t kCount = (1 << 20) + 3;

topology::Schedule with_pool(const std::string& planner, const topology::Links& links,
                             uint64_t count) {
  const topology::Routes routes = topology::find_routes(links);
  topology::Schedule schedule =
      topology::choose_all_reduce(links, count, sizeof(float), planner, &routes);
  topology::leave_pool(schedule, links, sizeof(float));
  return schedule;
}

// What each rank adds at `index`: sums of it are exact.
float value(int32_t rank, uint64_t index) {
  return static_cast<float>((index * 7 + static_cast<uint64_t>(rank) * 13) % 1000);
}

CollectiveCall call_of(const topology::Schedule& schedule, int32_t rank,
                       const std::vector<float>& input, std::vector<float>& output) {
  CollectiveCall call;
  call.signature = {.collective = transport::Collective::AllReduce,
                    .dtype = DataType::Float32,
                    .op = ReduceOp::Sum,
                    .count = kCount};
  call.plan = std::make_shared<const RankPlan>(compile(schedule, rank));
  call.blocks = {{reinterpret_cast<const std::byte*>(input.data()),
                  reinterpret_cast<std::byte*>(output.data()), kCount}};
  call.segment_bytes = 8192;
  return call;
}

void check_reduce(const topology::Schedule& schedule, const Members& members, bool is_in_place) {
  const auto size = static_cast<int32_t>(members.size());
  std::vector<std::vector<float>> inputs;
  std::vector<std::vector<float>> outputs(members.size());
  std::vector<std::shared_ptr<Work>> works;
  for (int32_t rank = 0; rank < size; ++rank) {
    std::vector<float>& input = inputs.emplace_back(kCount);
    for (uint64_t i = 0; i < kCount; ++i) input[i] = value(rank, i);
    if (!is_in_place) outputs[static_cast<size_t>(rank)].resize(kCount);
  }
  for (size_t rank = 0; rank < members.size(); ++rank) {
    std::vector<float>& output = is_in_place ? inputs[rank] : outputs[rank];
    const auto started =
        members[rank]->start({call_of(schedule, static_cast<int32_t>(rank), inputs[rank], output)});
    works.insert(works.end(), started.begin(), started.end());
  }
  for (const auto& work : works) {
    REQUIRE(work->wait(after(Clock::now(), kSoonSeconds)));
    REQUIRE_MESSAGE(!work->error(), work->error().message);
  }
  std::vector<float> wanted(kCount);
  for (uint64_t i = 0; i < kCount; ++i) {
    for (int32_t rank = 0; rank < size; ++rank) wanted[i] += value(rank, i);
  }
  for (const auto& found : is_in_place ? inputs : outputs) REQUIRE(found == wanted);
}

}  // namespace

TEST_CASE("a pool is what its chunks leave, at the end of the tensor") {
  for (const int32_t world_size : {2, 3, 5, 8}) {
    CAPTURE(world_size);
    const topology::Links links = two_sites(world_size);
    for (const char* planner : {"direct", "packed_trees"}) {
      CAPTURE(std::string(planner));
      const topology::Schedule schedule = with_pool(planner, links, uint64_t{64} << 20);
      uint64_t next = 0;
      for (const topology::Chunk& chunk : schedule.chunks) {
        CHECK(chunk.offset == next);
        CHECK(chunk.count > 0);
        next += chunk.count;
      }
      CHECK(schedule.pool.offset == next);
      CHECK(schedule.pool.offset + schedule.pool.count == uint64_t{64} << 20);
      CHECK(static_cast<double>(schedule.pool.count) ==
            doctest::Approx(topology::kPoolShare * (64 << 20)).epsilon(0.01));
    }
  }
}

TEST_CASE("short calls, unknown links and other plans leave no pool") {
  const topology::Links links = two_sites(4);
  CHECK(with_pool("direct", links, 1 << 10).pool.count == 0);
  topology::Schedule doubling = topology::plan_all_reduce_doubling(4, 64 << 20);
  topology::leave_pool(doubling, links, sizeof(float));
  CHECK(doubling.pool.count == 0);
  topology::Links unknown = links;
  unknown.is_measured = false;
  CHECK(with_pool("direct", unknown, 64 << 20).pool.count == 0);
}

TEST_CASE("where nothing is known most is left") {
  topology::Schedule schedule = topology::plan_all_reduce_direct(6, 64 << 20);
  topology::leave_most(schedule);
  CHECK(schedule.pool.offset + schedule.pool.count == uint64_t{64} << 20);
  CHECK(static_cast<double>(schedule.pool.count) ==
        doctest::Approx(topology::kBlindPoolShare * (64 << 20)).epsilon(0.01));
  // Of a tensor that is smaller than that, each chunk keeps what it has.
  topology::Schedule small = topology::plan_all_reduce_direct(6, 600);
  topology::leave_most(small);
  CHECK(small.pool.count == 0);
}

TEST_CASE("who asks for or assigns what is not its to, breaks the group") {
  topology::Links slow = two_sites(2);
  for (topology::LinkCost& cost : slow.cost) cost.seconds_per_byte *= 100;
  topology::Schedule schedule = topology::plan_all_reduce_direct(2, kCount);
  topology::leave_pool(schedule, slow, sizeof(float));
  REQUIRE(schedule.pool.count > 0);
  schedule.pool.keeper = 0;
  const auto check = [&](const char* name, transport::FrameHeader header, const char* words) {
    CAPTURE(std::string(name));
    Members members;
    for (int rank = 0; rank < 2; ++rank) members.push_back(std::make_unique<Member>(kWays[0]));
    for (const auto& member : members) member->enter("pair", members);
    std::vector<float> tensor(kCount);
    const CollectiveCall call = call_of(schedule, 0, tensor, tensor);
    const auto works = members[0]->start({call});
    header.set_signature(call.signature);
    members[1]->tell(0, header);
    REQUIRE(works[0]->wait(after(Clock::now(), kSoonSeconds)));
    CHECK(works[0]->error().kind == ErrorKind::RemoteProtocol);
    CHECK_MESSAGE(works[0]->error().message.find(words) != std::string::npos,
                  works[0]->error().message);
  };
  using Type = transport::FrameType;
  // Rank 1 is the core of chunk 1, and its keeper is rank 0, which is also the core of chunk 0.
  const char* claims = "claims elements that are not its to ask for";
  check("another's chunk", {.type = Type::Claim, .transfer_bytes = 8192, .chunk = 0}, claims);
  check("no bytes", {.type = Type::Claim, .chunk = 1}, claims);
  check("no whole segment", {.type = Type::Claim, .transfer_bytes = 100, .chunk = 1}, claims);
  check("no such chunk", {.type = Type::Claim, .transfer_bytes = 8192, .chunk = 2}, "gets none");
  const char* assigns = "assigns elements that it can't";
  const uint32_t far = 1'000'000;
  check("to the core", {.type = Type::Assign, .transfer_bytes = 8192, .chunk = 0, .segment = far},
        assigns);
  check("what is there", {.type = Type::Assign, .transfer_bytes = 8192, .chunk = 1, .segment = 0},
        assigns);
  check("beyond the pool",
        {.type = Type::Assign,
         .transfer_bytes = 8192,
         .chunk = 1,
         .segment = far,
         .segment_bytes = far},
        assigns);
  check("half an element",
        {.type = Type::Assign, .transfer_bytes = 8191, .chunk = 1, .segment = far}, assigns);
}

TEST_CASE("what is claimed while a call runs is reduced once, and alike everywhere") {
  for (const Way& way : kWays) {
    CAPTURE(std::string(way.name));
    for (const int32_t world_size : {2, 3, 5, 8}) {
      CAPTURE(world_size);
      Members members;
      for (int32_t rank = 0; rank < world_size; ++rank)
        members.push_back(std::make_unique<Member>(way));
      topology::Links slow = two_sites(world_size);  // so that a small tensor takes long
      for (topology::LinkCost& cost : slow.cost) cost.seconds_per_byte *= 100;
      for (const char* planner : {"direct", "packed_trees"}) {
        CAPTURE(std::string(planner));
        topology::Schedule schedule = with_pool(planner, slow, kCount);
        REQUIRE(schedule.pool.count > 0);
        for (const auto& member : members) member->enter(planner, members);
        for (uint64_t round = 0; round < share(6); ++round) {
          // Cores that ask in time, or when they have done everything, and every keeper.
          schedule.pool.ahead_seconds = round % 2 == 0 ? 1e-3 : 0;
          schedule.pool.keeper = static_cast<int32_t>(round) % world_size;
          check_reduce(schedule, members, round % 3 != 0);
        }
        for (const auto& member : members) member->leave();
      }
    }
  }
}
