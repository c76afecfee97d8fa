// How long results are kept for others.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <thread>
#include <vector>

#include "operation_log_run.h"

namespace pccl::recovery {
namespace {

TEST_CASE("the caller of a large operation waits for the others' word unless they are far") {
  for (const bool is_far : {false, true}) {
    CAPTURE(is_far);
    Run run(2, kWays[2]);
    for (size_t i = 0; i < 2 && is_far; ++i)
      run.members[i]->set_round_trip(run.members[1 - i]->address(), 1);
    std::vector<std::vector<int64_t>> tensors(2);
    uint64_t most = 0;  // of the copies, which come just before the caller goes on
    for (int op = 0; op < 200; ++op) {
      std::vector<std::shared_ptr<Work>> works;
      for (size_t i = 0; i < 2; ++i) {
        tensors[i].assign(60'000, op);
        works.push_back(run.members[i]->start(all_reduce(tensors[i])));
      }
      for (size_t i = 0; i < 2; ++i) {
        wait_well(works[i]);
        most = std::max(most, run.members[i]->kept_bytes());
        CHECK(tensors[i] == std::vector<int64_t>(60'000, 2 * op));
      }
    }
    if (is_far) {
      CHECK(most >= 480'000);
    } else {
      CHECK(most == 0);
    }
    for (auto& member : run.members) member->close();
  }
}

TEST_CASE("copies of results are let go when everybody has them") {
  Run run(3, kWays[2]);
  std::vector<std::vector<int64_t>> tensors(3, std::vector<int64_t>(1000, 1));
  for (int op = 0; op < 300; ++op) {
    std::vector<std::shared_ptr<Work>> works;
    for (size_t i = 0; i < 3; ++i) works.push_back(run.members[i]->start(all_reduce(tensors[i])));
    for (const auto& work : works) wait_well(work);
    for (auto& tensor : tensors) tensor.assign(1000, 1);
    CHECK(run.members[0]->kept_bytes() <= 4 << 20);
  }
  const TimePoint until = after(Clock::now(), kSoonSeconds);
  while (run.members[0]->kept_bytes() > 0 && Clock::now() < until) std::this_thread::yield();
  CHECK(run.members[0]->kept_bytes() == 0);
  for (auto& member : run.members) member->close();
}

TEST_CASE("what was frozen before a quorum that only grew is recovered by the one behind it") {
  for (const Way& way : {kWays[0], kWays[2]}) {
    CAPTURE(way.name);
    Run run(2, way);
    std::vector<std::vector<int64_t>> early(2);
    std::vector<std::vector<int64_t>> late(3);
    std::vector<std::shared_ptr<Work>> works;
    const auto call = [&](std::vector<int64_t>& tensor, size_t i) {
      tensor.assign(5000, contribution(i));
      works.push_back(run.members[i]->start(all_reduce(tensor)));
    };
    call(early[0], 0);
    for (const auto& member : run.members) member->hold(true);
    run.members.push_back(std::make_unique<Member>(way));
    run.change({}, {2});
    call(early[1], 1);
    for (size_t i = 0; i < 3; ++i) call(late[i], i);
    for (size_t i = 2; i < works.size(); ++i) wait_well(works[i]);
    for (const auto& tensor : late) CHECK(tensor == std::vector(5000, sum_of({0, 1, 2})));
    CHECK_FALSE(works[0]->is_completed());
    CHECK_FALSE(works[1]->is_completed());
    run.change({}, {}, true);
    for (size_t i = 0; i < 2; ++i) {
      wait_well(works[i]);
      CHECK(early[i] == std::vector(5000, sum_of({0, 1})));
    }
    for (auto& member : run.members) member->close();
  }
}

}  // namespace
}  // namespace pccl::recovery
