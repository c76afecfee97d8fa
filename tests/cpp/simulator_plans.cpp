#include "simulator_plans.h"

#include <algorithm>
#include <deque>
#include <map>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

#include "simulator_world.h"
#include "topology/planners.h"

namespace simulator {

namespace recovery = pccl::recovery;
namespace topology = pccl::topology;

std::shared_ptr<const topology::Schedule> plan(uint64_t operation, int32_t world_size,
                                               uint64_t count) {
  thread_local std::map<std::tuple<int32_t, uint64_t, uint64_t>,
                        std::shared_ptr<const topology::Schedule>>
      plans;
  constexpr size_t kPlansKept = 4096;
  const uint64_t kind = world_size > 64 ? 4 : mix(operation) % 5;
  auto& kept = plans[{world_size, kind, count}];
  if (kept) return kept;
  std::vector<int32_t> order(static_cast<size_t>(world_size));
  std::iota(order.begin(), order.end(), 0);
  topology::Schedule schedule;
  switch (kind) {
    case 0:
      schedule = topology::plan_all_reduce_ring(order, count);
      break;
    case 1:
      schedule = topology::plan_all_reduce_direct(world_size, count);
      break;
    case 2:
      schedule = topology::plan_all_reduce_doubling(world_size, count);
      break;
    case 3:
      schedule = topology::plan_all_reduce_halving_doubling(world_size, count);
      break;
    default:
      schedule = topology::plan_all_reduce_double_binary_tree(world_size, count);
      break;
  }
  auto made = std::make_shared<const topology::Schedule>(std::move(schedule));
  kept = made;
  if (plans.size() > kPlansKept) plans.clear();
  return made;
}

recovery::RecoveryPlan plan_again(recovery::RecoveryRequest request) {
  constexpr size_t kPlansKept = 16;
  thread_local std::deque<std::pair<recovery::RecoveryRequest, recovery::RecoveryPlan>> plans;
  const auto is_same = [&request](const auto& kept) {
    const recovery::RecoveryRequest& before = kept.first;
    return request.world_size == before.world_size &&
           request.element_count == before.element_count &&
           std::equal(request.survivors.begin(), request.survivors.end(), before.survivors.begin(),
                      before.survivors.end(), [](const auto& a, const auto& b) {
                        return a.rank == b.rank && a.finals.ranges() == b.finals.ranges();
                      });
  };
  const auto kept = std::find_if(plans.begin(), plans.end(), is_same);
  if (kept != plans.end()) return kept->second;
  request.links = topology::uniform_links(request.world_size, {1e-4, 1e-9});
  recovery::RecoveryPlan made = recovery::plan_recovery(request);
  request.links = {};
  plans.emplace_front(std::move(request), made);
  if (plans.size() > kPlansKept) plans.pop_back();
  return made;
}

}  // namespace simulator
