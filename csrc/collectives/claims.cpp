// Chunks that get more while a call runs: where links are not as fast as the plan had it, who gets
// on faster does more.
//
// The end of the tensor is a pool (topology::Pool). Shortly before a chunk's core has done what it
// has, it claims more from the pool's keeper, as much as it does in a quarter of that time. The
// keeper assigns what comes next, and the core tells its children, they theirs, before anything of
// it is sent. So a parent knows of a segment before its child does, and everybody before its final
// value, which holds all contributions. When nothing is left, the core is assigned 0 bytes, and
// that goes the same way. Nobody waits for an answer that comes in time.
#include <algorithm>
#include <chrono>
#include <cmath>

#include "collectives/collective_operation.h"
#include "collectives/group.h"

namespace pccl {

using transport::FrameHeader;
using transport::FrameType;
using transport::kStageUp;

namespace {

// Where in the pool something begins is told in so many bytes.
constexpr uint64_t kUnit = 4096;
// A claim is for so much of the time that is asked ahead: cores then have about the same left in
// the end.
constexpr double kClaimPart = 0.25;
// Of one chunk, out of order: sockets of one connection overtake each other by a few frames.
constexpr size_t kAssignedMax = 64;

}  // namespace

// --- where segments lie --------------------------------------------------------------------------

const CollectiveOperation::Part::Claimed* CollectiveOperation::claimed_with(const Part& part,
                                                                            uint32_t segment) {
  const auto after =
      std::upper_bound(part.claimed.begin(), part.claimed.end(), segment,
                       [](uint32_t wanted, const auto& more) { return wanted < more.first; });
  return after == part.claimed.begin() ? nullptr : &*std::prev(after);
}

uint64_t CollectiveOperation::offset_of(const Part& part, uint32_t segment) {
  const Part::Claimed* more = claimed_with(part, segment);
  if (more == nullptr) return uint64_t{segment} * part.segment_bytes;
  return more->offset + uint64_t{segment - more->first} * part.segment_bytes;
}

uint32_t CollectiveOperation::length_of(const Part& part, uint32_t segment) {
  const Part::Claimed* more = claimed_with(part, segment);
  const uint64_t end = more == nullptr ? part.bytes : more->offset + more->bytes;
  return static_cast<uint32_t>(
      std::min<uint64_t>(part.segment_bytes, end - offset_of(part, segment)));
}

// --- claiming ------------------------------------------------------------------------------------

int32_t CollectiveOperation::assigner_of(const Part& part) const {
  return part.plan->root == group_.rank ? call_.plan->pool.keeper : part.plan->up_parent;
}

uint32_t CollectiveOperation::granted_down(const Part& part) {
  return part.is_open ? UINT32_MAX : part.segments;
}

bool CollectiveOperation::claim_more(Part& part) {
  if (part.is_claiming || part.plan->root != group_.rank) return false;
  uint32_t done = part.combined;
  for (const OutStream& stream : part.down) done = std::min(done, stream.next);
  const topology::Pool& pool = call_.plan->pool;
  const double seconds = std::chrono::duration<double>(Clock::now() - started_at_).count();
  const double ahead = seconds > 0 ? done * ahead_seconds() / seconds : 0;  // segments
  if (part.segments - done > ahead + 1) return false;
  const double segments = std::max(1.0, std::ceil(kClaimPart * ahead));
  const uint64_t wanted = static_cast<uint64_t>(segments) * part.segment_bytes;
  if (pool.keeper == group_.rank) {
    const Part::Claimed more = take_from_pool(part.segments, wanted, part.segment_bytes);
    extend(part, more);
    return more.bytes > 0;
  }
  part.is_claiming = true;
  FrameHeader header = header_for(FrameType::Claim);
  header.chunk = part.plan->chunk;
  header.segment = part.segments;
  header.transfer_bytes = wanted;
  group_.send_control(pool.keeper, header);
  return false;
}

double CollectiveOperation::ahead_seconds() {
  double farthest = 0;
  if (call_.plan->pool.ahead_seconds > 0) return call_.plan->pool.ahead_seconds;
  for (const int32_t peer : call_.plan->peers)
    farthest = std::max(farthest, group_.to(peer).round_trip_seconds);
  return topology::Pool::kAheadRoundTrips * farthest;
}

CollectiveOperation::Part::Claimed CollectiveOperation::take_from_pool(uint32_t first,
                                                                       uint64_t wanted,
                                                                       uint32_t segment_bytes) {
  const uint64_t left = call_.plan->pool.count * element_bytes_ - given_out_;
  // Near the end all get a part of what is left.
  const uint64_t fair = left / call_.plan->index_of_chunk.size() / segment_bytes;
  const uint64_t given = std::min(wanted, std::max<uint64_t>(1, fair) * segment_bytes);
  const Part::Claimed more{first, given_out_, std::min(given, left)};
  given_out_ += more.bytes;
  return more;
}

void CollectiveOperation::on_claim(const Part& part, const FrameHeader& header) {
  const bool is_asked = call_.plan->pool.keeper == group_.rank &&
                        part.plan->root == header.source_rank && header.transfer_bytes > 0 &&
                        header.transfer_bytes % part.segment_bytes == 0;
  if (!is_asked) {
    group_.fail({ErrorKind::RemoteProtocol, group_.describe(header.source_rank) +
                                                " claims elements that are not its to ask for."});
    return;
  }
  send_assigned(part, header.source_rank,
                take_from_pool(header.segment, header.transfer_bytes, part.segment_bytes));
}

// --- assigning -----------------------------------------------------------------------------------

void CollectiveOperation::send_assigned(const Part& part, int32_t rank,
                                        const Part::Claimed& more) const {
  FrameHeader header = header_for(FrameType::Assign);
  header.stage = kStageUp;
  header.chunk = part.plan->chunk;
  header.segment = more.first;
  header.segment_bytes = static_cast<uint32_t>(more.offset / kUnit);
  header.transfer_bytes = more.bytes;
  group_.send_control(rank, header);
}

void CollectiveOperation::on_assign(Part& part, const FrameHeader& header) {
  const Part::Claimed more{header.segment, header.segment_bytes * kUnit, header.transfer_bytes};
  const uint64_t pool_bytes = call_.plan->pool.count * element_bytes_;
  const bool is_whole =
      more.bytes % part.segment_bytes == 0 || more.offset + more.bytes == pool_bytes;
  const bool is_expected = header.source_rank == assigner_of(part) &&
                           header.segment >= part.segments && part.assigned.size() < kAssignedMax &&
                           more.offset <= pool_bytes && more.bytes <= pool_bytes - more.offset &&
                           more.bytes <= pool_bytes - part.claimed_bytes && is_whole;
  if (!is_expected || !part.assigned.emplace(header.segment, more).second) {
    group_.fail({ErrorKind::RemoteProtocol,
                 group_.describe(header.source_rank) + " assigns elements that it can't."});
    return;
  }
  part.is_claiming = false;
  for (auto next = part.assigned.find(part.segments); next != part.assigned.end();
       next = part.assigned.find(part.segments)) {
    const Part::Claimed found = next->second;
    part.assigned.erase(next);
    extend(part, found);
    if (!part.is_open) break;
  }
  advance(part);
}

// `more` lies where the pool has it.
void CollectiveOperation::extend(Part& part, const Part::Claimed& more) {
  for (const Child& child : part.children) send_assigned(part, child.rank, more);
  if (more.bytes == 0) {
    part.is_open = false;
    return;
  }
  const uint64_t before = (call_.plan->pool.offset - part.plan->offset) * element_bytes_;
  part.claimed.push_back({more.first, before + more.offset, more.bytes});
  part.claimed_bytes += more.bytes;
  part.segments +=
      static_cast<uint32_t>((more.bytes + part.segment_bytes - 1) / part.segment_bytes);
  if (part.plan->down_parent >= 0) {
    part.have.resize(part.segments, false);
    part.placed.resize(part.segments, false);
  }
  for (Child& child : part.children) grant_more(part, child);
}

}  // namespace pccl
