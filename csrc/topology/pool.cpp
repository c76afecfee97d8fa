#include "topology/pool.h"

#include <algorithm>

#include "topology/capacities.h"
#include "topology/planners.h"

namespace pccl::topology {
namespace {

constexpr double kAheadSecondsMin = 0.05;
// The whole must take so many times that.
constexpr double kWorthwhile = 2.5;
// Boundaries of chunks, in elements: no codec's group and no cache line is cut.
constexpr uint64_t kUnit = 256;

// The rank whose farthest peer is the nearest.
int32_t middle_rank(const Links& links, double& farthest) {
  int32_t best = 0;
  double best_seconds = kNoLink;
  farthest = 0;
  for (int32_t rank = 0; rank < links.world_size; ++rank) {
    double seconds = 0;
    for (int32_t peer = 0; peer < links.world_size; ++peer) {
      if (peer != rank) seconds = std::max(seconds, links.at(rank, peer).latency_seconds);
    }
    farthest = std::max(farthest, seconds);
    if (seconds < best_seconds) {
      best_seconds = seconds;
      best = rank;
    }
  }
  return best;
}

void leave(Schedule& schedule, double share, int32_t keeper, double ahead_seconds) {
  uint64_t all = 0;
  uint64_t kept = 0;
  for (Chunk& chunk : schedule.chunks) {
    all += chunk.count;
    const auto own = static_cast<uint64_t>(static_cast<double>(chunk.count) * (1 - share));
    if (own >= kUnit) chunk.count = own / kUnit * kUnit;
    chunk.offset = kept;
    kept += chunk.count;
  }
  schedule.pool = {kept, all - kept, keeper, ahead_seconds};
}

}  // namespace

void leave_pool(Schedule& schedule, const Links& links, size_t element_bytes) {
  const bool is_fit =
      links.is_measured && !schedule.chunks.empty() &&
      std::all_of(schedule.chunks.begin(), schedule.chunks.end(), [](const Chunk& chunk) {
        return chunk.block == 0 && chunk.reduces && chunk.core.size() == 1 &&
               chunk.count != Chunk::kWholeBlock;
      });
  if (!is_fit || has_gaps(links)) return;
  double farthest = 0;
  const int32_t keeper = middle_rank(links, farthest);
  const double ahead = std::max(kAheadSecondsMin, Pool::kAheadRoundTrips * 2 * farthest);
  const double seconds = estimate(schedule, links, element_bytes, kSegmentBytesAssumed).seconds;
  if (seconds < kWorthwhile * ahead) return;
  leave(schedule, kPoolShare, keeper, ahead);
}

void leave_most(Schedule& schedule) { leave(schedule, kBlindPoolShare, 0, 0); }

}  // namespace pccl::topology
