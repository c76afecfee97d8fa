// What other ranks say about a running collective: parts of chunks, grants, answers. Everything is
// checked against this rank's own call before it is used.
#include <algorithm>
#include <cstring>

#include "collectives/collective_operation.h"
#include "collectives/group.h"
#include "kernels/copy.h"

namespace pccl {

using transport::FrameHeader;
using transport::FrameType;
using transport::kStageDown;
using transport::kStageExchange;
using transport::kStageUp;
using transport::Payload;

namespace {

// A chunk of this length has left a core's cache before the caller can read it.
constexpr uint64_t kCachedBytesMax = 2 << 20;

}  // namespace

CollectiveOperation::Part* CollectiveOperation::part_of(const FrameHeader& header) {
  if (header.chunk >= call_.plan->index_of_chunk.size()) return nullptr;
  const int32_t index = call_.plan->index_of_chunk[header.chunk];
  return index < 0 ? nullptr : &parts_[static_cast<size_t>(index)];
}

std::optional<std::string> CollectiveOperation::find_mismatch(const FrameHeader& header,
                                                              const Part*& found) const {
  if (header.signature() != signature_) return other_call(header);
  const std::string rank = group_.describe(header.source_rank);
  const Part* part = const_cast<CollectiveOperation*>(this)->part_of(header);
  const int32_t from = header.source_rank;
  bool is_expected = false;
  if (part != nullptr && header.stage == kStageUp) {
    is_expected = std::any_of(part->children.begin(), part->children.end(),
                              [from](const Child& child) { return child.rank == from; });
  } else if (part != nullptr && header.stage == kStageDown) {
    is_expected = part->plan->down_parent == from;
  } else if (part != nullptr) {
    const auto arrival = static_cast<uint16_t>(header.stage - kStageExchange);
    is_expected = std::any_of(part->plan->rounds.begin(), part->plan->rounds.end(),
                              [from, arrival](const ChunkPlan::Round& round) {
                                return round.partner == from && round.arrives_as == arrival;
                              });
  }
  if (!is_expected) {
    return rank + " sent a part that this rank does not expect (chunk " +
           std::to_string(header.chunk) + ", stage " + std::to_string(header.stage) +
           "): the ranks plan with different sizes or settings.";
  }
  if (header.transfer_bytes != part->bytes) {
    return "the sizes differ: " + rank + " sends " + std::to_string(header.transfer_bytes) +
           " bytes for chunk " + std::to_string(header.chunk) + " of " + describe() + ", rank " +
           std::to_string(group_.rank) + " expects " + std::to_string(part->bytes) + ".";
  }
  const bool is_claimed = (header.flags & transport::kFlagClaimed) != 0;
  if (header.segment_bytes != part->segment_bytes || header.segment >= part->segments ||
      is_claimed != (claimed_with(*part, header.segment) != nullptr)) {
    return rank + " cuts its data into other segments: the ranks run with different settings.";
  }
  if (header.type == FrameType::Data && header.length != wire_length_of(*part, header.segment)) {
    return rank + " sent " + std::to_string(header.length) + " bytes for a segment that takes " +
           std::to_string(wire_length_of(*part, header.segment)) + ".";
  }
  if (signature_.op == ReduceOp::WeightedAvg &&
      !(header.weight >= 0 && header.weight <= kWeightMax))
    return rank + " sent a weight of " + std::to_string(header.weight) + ".";
  found = part;
  return std::nullopt;
}

transport::Placement CollectiveOperation::place(const FrameHeader& header) {
  const Part* expected = nullptr;
  // Of other frames nobody has checked the length.
  if (header.type != FrameType::Data || header.stage != kStageDown) return {};
  if (find_mismatch(header, expected)) return {};
  Part* part = part_of(header);
  if (part->is_coded) return {};
  if (call_.keeps_inputs && part->input == part->output) return {};
  if (part->have[header.segment] || part->placed[header.segment]) return {};
  part->placed[header.segment] = true;
  return {part->output + offset_of(*part, header.segment), this};
}

std::string CollectiveOperation::other_call(const FrameHeader& header) const {
  return "the ranks made different calls: " + describe() + " here, " +
         header.signature().describe() + " on " + group_.describe(header.source_rank) + ".";
}

void CollectiveOperation::on_frame(const FrameHeader& header, Payload payload) {
  // Control frames carry the call, too: where each of two roots waits for the other, no data tells.
  if (header.signature() != signature_) {
    group_.fail({ErrorKind::CallMismatch, other_call(header)});
    return;
  }
  if (header.type == FrameType::Matched) {
    unmatched_.erase(header.source_rank);
    maybe_finish();
    return;
  }
  if (header.type == FrameType::Grant) {
    if (Part* part = part_of(header)) on_grant(*part, header);
    if (!is_finished()) maybe_finish();
    return;
  }
  if (header.type == FrameType::Claim || header.type == FrameType::Assign) {
    Part* part = part_of(header);
    if (part == nullptr || !part->is_open) {
      group_.fail({ErrorKind::RemoteProtocol, group_.describe(header.source_rank) +
                                                  " speaks of more for a chunk that gets none."});
      return;
    }
    header.type == FrameType::Claim ? on_claim(*part, header) : on_assign(*part, header);
    if (!is_finished()) maybe_finish();
    return;
  }
  const Part* expected = nullptr;
  if (const auto mismatch = find_mismatch(header, expected)) {
    group_.fail({ErrorKind::CallMismatch, *mismatch});
    return;
  }
  if (unthanked_.erase(header.source_rank) > 0) {
    group_.send_control(header.source_rank, header_for(FrameType::Matched));
  }
  Part& part = *const_cast<Part*>(expected);
  const bool is_new = on_data(part, header, std::move(payload));
  if (is_finished()) return;
  if (!is_new) {
    group_.fail({ErrorKind::RemoteProtocol,
                 group_.describe(header.source_rank) + " sent a segment twice."});
    return;
  }
  advance(part);
  if (is_finished()) return;
  // What could not be used at once must outlive the frame that brought it.
  if (header.stage == kStageUp) {
    for (Child& child : part.children) {
      if (child.rank != header.source_rank) continue;
      const auto waiting = child.waiting.find(header.segment);
      if (waiting != child.waiting.end()) waiting->second.keep();
    }
  } else if (header.stage >= kStageExchange) {
    const auto waiting = part.partner_values.find(header.stage - kStageExchange);
    if (waiting != part.partner_values.end()) waiting->second.keep();
  }
  maybe_finish();
}

// False: this segment has been here before.
bool CollectiveOperation::on_data(Part& part, const FrameHeader& header, Payload payload) {
  if (header.stage == kStageDown) {
    std::byte* target = part.output + offset_of(part, header.segment);
    // A segment that is still arriving in place can't come by another way, too.
    if (part.have[header.segment] || (part.placed[header.segment] && payload.data() != target))
      return false;
    if (part.is_coded) {
      if (!take_coded_final(part, header.segment, std::move(payload))) return false;
    } else if (payload.size() > 0 && payload.data() != target) {
      // Who passes the segment on reads it at once.
      const bool stays = part.bytes < kCachedBytesMax || !part.down.empty();
      (stays ? std::memcpy : kernels::copy_past_cache)(target, payload.data(), payload.size());
    }
    part.have[header.segment] = true;
    part.final_weight = header.weight;
    while (part.finals < part.segments && part.have[part.finals]) part.finals += 1;
    return true;
  }
  if (header.stage >= kStageExchange) {
    const auto round = static_cast<uint16_t>(header.stage - kStageExchange);
    const bool is_over =
        part.plan->exchanges_at_once ? part.round == part.plan->rounds.size() : round < part.round;
    part.partner_weights[round] = header.weight;
    return !is_over && part.partner_values.emplace(round, std::move(payload)).second;
  }
  for (Child& child : part.children) {
    if (child.rank != header.source_rank) continue;
    child.weight = header.weight;
    return header.segment >= part.combined && header.segment < child.granted &&
           child.waiting.emplace(header.segment, std::move(payload)).second;
  }
  return false;
}

void CollectiveOperation::on_grant(Part& part, const FrameHeader& header) {
  const auto raise = [&part, &header](OutStream& stream) {
    // It may speak of segments that this rank has not heard of yet.
    const uint32_t most = part.is_open ? UINT32_MAX : part.segments;
    stream.credit = std::max(stream.credit, std::min(header.segment, most));
    stream.is_granted = true;
  };
  if (header.stage == kStageUp && part.up && part.up->rank == header.source_rank) raise(*part.up);
  if (header.stage == kStageDown) {
    for (OutStream& stream : part.down) {
      if (stream.rank == header.source_rank) raise(stream);
    }
  }
  if (header.stage >= kStageExchange) {
    const int sent_as = header.stage - kStageExchange;
    for (size_t i = 0; i < part.plan->rounds.size(); ++i) {
      const ChunkPlan::Round& round = part.plan->rounds[i];
      if (round.partner == header.source_rank && round.sent_as == sent_as)
        part.granted_rounds.insert(i);
    }
  }
  advance(part);
}

void CollectiveOperation::grant_all() {
  for (Part& part : parts_) {
    if (part.is_done) continue;
    for (Child& child : part.children)
      send_grant(child.rank, kStageUp, part.plan->chunk, child.granted);
    for (size_t i = part.round; i < part.plan->rounds.size(); ++i) {
      const ChunkPlan::Round& round = part.plan->rounds[i];
      const auto stage = static_cast<uint16_t>(kStageExchange + round.arrives_as);
      send_grant(round.partner, stage, part.plan->chunk, 1);
    }
    if (part.plan->down_parent >= 0)
      send_grant(part.plan->down_parent, kStageDown, part.plan->chunk, granted_down(part));
  }
}

}  // namespace pccl
