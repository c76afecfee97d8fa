// How much of a call may be under way, on networks of given links.
#include "call_cuts.h"

#include <doctest/doctest.h>

#include <memory>

#include "topology/planners.h"

using namespace pccl;

namespace {

constexpr uint64_t kCount = 16 << 20;  // float32
constexpr double kRate = 12.5e6;

// Every pair alike; those to rank 0 from the last rank `far` times as far.
std::shared_ptr<const topology::Links> network(int32_t ranks, double round_trip, double far = 1) {
  topology::Links links{.world_size = ranks, .is_measured = true};
  links.cost.assign(static_cast<size_t>(ranks) * static_cast<size_t>(ranks),
                    {.latency_seconds = round_trip / 2, .seconds_per_byte = 1 / kRate});
  links.cost[static_cast<size_t>(ranks - 1) * static_cast<size_t>(ranks)].latency_seconds *= far;
  return std::make_shared<const topology::Links>(links);
}

CollectiveCall cut(const CallCuts& cuts, const topology::Schedule& schedule, int32_t rank) {
  CollectiveCall call;
  call.signature.collective = transport::Collective::AllReduce;
  call.signature.dtype = DataType::Float32;
  call.segment_bytes = 512 << 10;
  call.plan = std::make_shared<const RankPlan>(compile(schedule, rank));
  cuts.cut(call, schedule.algorithm != "ring");
  return call;
}

uint64_t window_bytes(const CollectiveCall& call, size_t from) {
  return uint64_t{call.windows_from.at(from)} * call.segment_bytes;
}

}  // namespace

TEST_CASE("a long path gets a window that it needs, and others don't") {
  const auto links = network(4, 0.02, 8);
  const topology::Schedule direct = topology::plan_all_reduce_direct(4, kCount);
  const CollectiveCall near = cut(CallCuts(links, 1), direct, 1);
  const CollectiveCall far = cut(CallCuts(links, 0), direct, 0);
  // What both ends must agree on is the same everywhere.
  CHECK(near.window_segments == far.window_segments);
  CHECK(near.segment_bytes == far.segment_bytes);
  const double path = 0.16 * kRate;
  CHECK(static_cast<double>(window_bytes(far, 3)) == doctest::Approx(3 * path).epsilon(0.05));
  CHECK(window_bytes(far, 2) < path / 2);
  CHECK(window_bytes(near, 3) < path / 2);
  CHECK(far.windows_from.at(0) == 0);
}

TEST_CASE("all windows of a rank together are bounded") {
  const int32_t ranks = 33;
  const auto links = network(ranks, 4);
  const topology::Schedule direct = topology::plan_all_reduce_direct(ranks, 33 * kCount);
  const CollectiveCall call = cut(CallCuts(links, 5), direct, 5);
  uint64_t all = 0;
  for (size_t from = 0; from < static_cast<size_t>(ranks); ++from) all += window_bytes(call, from);
  CHECK(all > 0);
  CHECK(all <= 64 << 20);
}

TEST_CASE("all chunks have the same number of segments, whatever their lengths") {
  topology::Schedule direct = topology::plan_all_reduce_direct(4, kCount);
  const uint64_t left = direct.chunks[0].count - 4096;
  direct.chunks[0].count = 4096;
  direct.chunks[1].offset = 4096;
  direct.chunks[1].count += left;
  const CallCuts cuts(network(4, 0.1), 1);
  const CollectiveCall call = cut(cuts, direct, 1);
  REQUIRE(call.segment_bytes_of.size() == 4);
  CHECK(call.segment_bytes_of[0] == 4096);
  CHECK(call.segment_bytes_of[1] == call.segment_bytes);
  const uint64_t longest = 4 * direct.chunks[1].count / call.segment_bytes_of[1];
  const uint64_t other = 4 * direct.chunks[2].count / call.segment_bytes_of[2];
  CHECK(static_cast<double>(other) == doctest::Approx(static_cast<double>(longest)).epsilon(0.1));
  CHECK(cut(cuts, direct, 2).segment_bytes_of == call.segment_bytes_of);
  CHECK(cut(CallCuts(), direct, 1).segment_bytes_of.empty());
}

TEST_CASE("a ring has one flow a line, and windows that grow") {
  const auto links = network(4, 0.1);
  std::vector<int32_t> order = {0, 1, 2, 3};
  const CollectiveCall call =
      cut(CallCuts(links, 0), topology::plan_all_reduce_ring(order, kCount), 0);
  CHECK(call.windows_from.empty());
  CHECK(call.window_segments_max > call.window_segments);
  CHECK(call.grant_segments < call.window_segments / 4);
}

TEST_CASE("where nothing is measured there is one window for all") {
  const CollectiveCall call = cut(CallCuts(), topology::plan_all_reduce_direct(4, kCount), 0);
  CHECK(call.windows_from.empty());
  CHECK(call.segment_bytes == 512 << 10);
  CHECK(uint64_t{call.window_segments} * call.segment_bytes == 4 << 20);
}
