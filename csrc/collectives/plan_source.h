// Chooses how the calls of one set of ranks go. Driver only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/clock.h"
#include "transport/frame.h"

namespace pccl {

struct CollectiveCall;
class Group;

// How often a call that waits for its plan looks whether it is there.
inline constexpr double kPlanSeconds = 0.002;

class PlanSource {
 public:
  virtual ~PlanSource() = default;
  // It plans for this group, and may talk to its ranks until the group ends.
  virtual void serve(Group& /*group*/) {}
  virtual TimePoint on_time(TimePoint /*now*/) { return TimePoint::max(); }
  // A rank is there for a round of probes, or done with it.
  virtual void on_turn(int32_t /*rank*/, uint64_t /*round*/) {}
  // What a rank tells of its links in a frame of that type.
  virtual void on_figures(int32_t /*rank*/, std::span<const std::byte> /*bytes*/) {}
  // Whether this call, the next in their order, may begin: its plan may depend on what ranks tell
  // each other along with an earlier one that is under way.
  virtual bool is_ready(const transport::Signature& signature) = 0;
  // Gives the call its plan. Requires: is_ready(). `block_counts`: where blocks differ in size.
  virtual void prepare(CollectiveCall& call, std::span<const uint64_t> block_counts) = 0;
  // Throw std::invalid_argument where the ranks talk over a graph, and the call, or a message to or
  // from `peer`, needs an edge that it has not. Any thread; calls: alike on all ranks.
  virtual void require_links(const transport::Signature& /*signature*/) const {}
  virtual void require_link(int32_t /*peer*/) const {}
  // A call that ends on every rank without a result, and has not begun here.
  virtual void skip(const transport::Signature& signature) = 0;
};

}  // namespace pccl
