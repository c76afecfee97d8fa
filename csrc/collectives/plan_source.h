// Chooses how the calls of one set of ranks go. Driver only.
#pragma once

#include <cstdint>
#include <span>

#include "transport/frame.h"

namespace pccl {

struct CollectiveCall;

// How often a call that waits for its plan looks whether it is there.
inline constexpr double kPlanSeconds = 0.002;

class PlanSource {
 public:
  virtual ~PlanSource() = default;
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
