// Who tries which links when nobody knows them.
//
// Pure, and the same on every rank.
#pragma once

#include <cstdint>
#include <vector>

namespace pccl::topology {

// What one rank does in one round: it sends, or receives, never both. Acknowledgements would wait
// behind its own bytes, and make a link that leads to it look slower than it is.
struct ProbeRound {
  uint32_t number = 0;  // alike on all ranks; in ascending order
  bool is_shared = false;
  std::vector<int32_t> to;    // one of them is empty
  std::vector<int32_t> from;  //
};

// The rounds in which `rank` has something to do. `missing`: [from * world_size + to], the links to
// be tried. First each by itself: pairs that leave no rank out (the circle method of round-robin
// tournaments), 2 (P - 1) rounds, or 2 P of an odd P. Then, shared, those with an even rank to
// those with an odd one, and back.
std::vector<ProbeRound> probe_rounds(const std::vector<bool>& missing, int32_t world_size,
                                     int32_t rank);

}  // namespace pccl::topology
