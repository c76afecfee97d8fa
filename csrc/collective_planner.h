// Chooses the schedule of every call among one set of ranks, and remembers it.
//
// Thread safety: plan() and algorithm() may be called from any thread.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "collectives/rank_plan.h"
#include "recovery/operation_log.h"
#include "topology/cost_model.h"
#include "topology/schedule.h"
#include "transport/address.h"
#include "transport/frame.h"

namespace pccl {

// By rank: members with the same number can share memory.
std::vector<int32_t> host_numbers(std::span<const transport::MemberAddress> members);

class CollectivePlanner final : public recovery::PlanSource {
 public:
  // `hosts[r]`: ranks with the same number share memory. Throws std::invalid_argument on an unknown
  // algorithm.
  CollectivePlanner(const std::vector<int32_t>& hosts, int32_t rank, std::string algorithm);

  // This rank's part. `block_counts`: where blocks differ in size.
  std::shared_ptr<const RankPlan> plan(const transport::Signature& signature,
                                       std::span<const uint64_t> block_counts) override {
    return planned(signature, block_counts).plan;
  }
  // "ring", "direct", ...
  std::string algorithm(const transport::Signature& signature,
                        std::span<const uint64_t> block_counts) {
    return planned(signature, block_counts).algorithm;
  }
  const topology::Links& links() const { return links_; }
  int32_t world_size() const { return links_.world_size; }
  // Where all ranks share memory and `shares_memory`, else of TCP.
  uint32_t segment_bytes(bool shares_memory) const;

 private:
  struct Planned {
    std::shared_ptr<const RankPlan> plan;
    std::string algorithm;
  };
  Planned planned(const transport::Signature& signature, std::span<const uint64_t> block_counts);
  topology::Schedule schedule(const transport::Signature& signature,
                              std::span<const uint64_t> block_counts) const;

  const topology::Links links_;
  const bool is_one_host_;
  const int32_t rank_;
  const std::string algorithm_;
  std::mutex mutex_;
  // Guarded by mutex_. Bounded: emptied when it has kPlansMax entries.
  static constexpr size_t kPlansMax = 256;
  std::map<std::string, Planned> plans_;
};

}  // namespace pccl
