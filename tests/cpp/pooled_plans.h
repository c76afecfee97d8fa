// Plans that leave much of a tensor to a pool, whatever the links are.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "collectives/collective_operation.h"
#include "collectives/plan_source.h"
#include "topology/planners.h"

namespace pccl::recovery {

// As in uneven networks (topology/pool.h), where half of each large tensor is left.
class PooledPlans final : public PlanSource {
 public:
  PooledPlans(std::shared_ptr<PlanSource> others, int32_t world_size, int32_t rank)
      : others_(std::move(others)), world_size_(world_size), rank_(rank) {}
  bool is_ready(const transport::Signature& signature) override {
    return others_->is_ready(signature);
  }
  void skip(const transport::Signature& signature) override { others_->skip(signature); }
  void prepare(CollectiveCall& call, std::span<const uint64_t> block_counts) override {
    others_->prepare(call, block_counts);
    const uint64_t count = call.signature.count;
    if (call.signature.collective != transport::Collective::AllReduce || count < kCountMin) return;
    topology::Schedule schedule = topology::plan_all_reduce_direct(world_size_, count);
    uint64_t next = 0;
    for (topology::Chunk& chunk : schedule.chunks) {
      chunk.count /= 2;
      chunk.offset = std::exchange(next, next + chunk.count);
    }
    schedule.pool = {next, count - next, world_size_ - 1, 1e-3};
    call.plan = std::make_shared<const RankPlan>(compile(schedule, rank_));
  }

 private:
  static constexpr uint64_t kCountMin = 4096;
  std::shared_ptr<PlanSource> others_;
  int32_t world_size_;
  int32_t rank_;
};

}  // namespace pccl::recovery
