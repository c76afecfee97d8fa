// What is left to do after members were lost: a pure function of what the survivors hold.
//
// A chunk that is final at some survivor is sent from there to those that lack it; a chunk that is
// final nowhere is still every survivor's own input, and is reduced again over the survivors.
// DESIGN: chunk-wise recovery.
#pragma once

#include <cstdint>
#include <vector>

#include "recovery/final_map.h"
#include "topology/cost_model.h"
#include "topology/schedule.h"

namespace pccl::recovery {

// Blocks of the schedule: both are the whole tensor. Chunks of block 0 are reduced again from the
// inputs; chunks of block 1 are finals that move, and their core's input is its own result.
inline constexpr uint32_t kBlockInput = 0;
inline constexpr uint32_t kBlockFinals = 1;

struct Survivor {
  int32_t rank = 0;  // in the new quorum
  FinalMap finals;   // what it holds of the operation
};

struct RecoveryRequest {
  // Those that take part in the operation, by ascending rank; the same on every one of them.
  std::vector<Survivor> survivors;
  int32_t world_size = 0;  // of the new quorum, whose newcomers have no part in the operation
  uint64_t element_count = 0;
  uint64_t element_bytes = 0;
  topology::Links links;    // among all ranks of the new quorum
  bool is_uniform = false;  // one contributor set for the whole tensor: reduce all or nothing
  bool is_coded = false;    // reductions travel in a codec
  bool can_reduce = true;   // false (broadcast whose root is lost): what is final nowhere is lost
};

struct RecoveryPlan {
  topology::Schedule schedule;
  uint64_t elements_moved = 0;    // final at somebody, missing at others
  uint64_t elements_reduced = 0;  // final nowhere
  uint64_t elements_lost = 0;     // final nowhere, and they can't be reduced again
  bool starts_over = false;       // is_uniform, and something is final nowhere: finals are void
  // What each element will have been made final in; 0: in the new quorum.
  FinalMap origin;
};

// Takes about a microsecond per range and survivor.
RecoveryPlan plan_recovery(const RecoveryRequest& request);

}  // namespace pccl::recovery
