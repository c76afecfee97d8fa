// One rank's part of a schedule: what it receives from whom, combines, and sends to whom.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "topology/schedule.h"

namespace pccl {

struct ChunkPlan {
  uint32_t chunk = 0;  // index in the schedule; travels on the wire
  uint32_t block = 0;
  uint64_t offset = 0;  // elements
  uint64_t count = 0;   // elements, or topology::Chunk::kWholeBlock
  bool reduces = false;
  bool is_core = false;
  bool is_exchanged = false;         // the core has several ranks; true on every rank of the chunk
  std::vector<int32_t> up_children;  // in the order of combination
  int32_t up_parent = -1;
  // A value that is sent to a partner of the exchange, as that of round `sent_as`, and its own,
  // which arrives as that of round `arrives_as`; whether the partner's comes first when the two are
  // combined. In rounds one follows the other, and both are the same number; at once the rounds are
  // the senders' places in the core, and all go out together.
  struct Round {
    int32_t partner;
    bool partner_first;
    uint16_t sent_as;
    uint16_t arrives_as;
  };
  std::vector<Round> rounds;
  bool exchanges_at_once = false;
  int32_t down_parent = -1;
  int32_t root = -1;  // the core's first rank
  std::vector<int32_t> down_children;
};

struct RankPlan {
  std::vector<ChunkPlan> chunks;        // those that touch this rank, in schedule order
  std::vector<int32_t> index_of_chunk;  // schedule index -> position in `chunks`, -1: not ours
  std::vector<int32_t> peers;           // ranks that this rank talks with, ascending
  std::vector<int32_t>
      receives_only;  // peers that send to this rank and hear nothing back from it by the schedule
  std::vector<int32_t> sends_only;  // the opposite
  topology::Pool pool;
};

RankPlan compile(const topology::Schedule& schedule, int32_t rank);

}  // namespace pccl
