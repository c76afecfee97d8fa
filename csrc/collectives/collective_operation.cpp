#include "collectives/collective_operation.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "collectives/element_ranges.h"
#include "collectives/group.h"
#include "kernels/reduce.h"

namespace pccl {
namespace {

// Doubles up to here hold every integer.
constexpr double kWholeWeightMax = 9e15;

}  // namespace

using transport::Collective;
using transport::FrameHeader;
using transport::FrameType;
using transport::kStageDown;
using transport::kStageUp;
using transport::Payload;

CollectiveOperation::CollectiveOperation(Group& group, CollectiveCall call,
                                         std::shared_ptr<Work> work)
    : Operation(group, call.signature, std::move(work)),
      call_(std::move(call)),
      element_bytes_(element_bytes(call_.signature.dtype)) {
  queued_frames_max_ = call_.queued_frames_max;
  const Collective collective = call_.signature.collective;
  const bool is_rooted = collective == Collective::Broadcast || collective == Collective::Reduce ||
                         collective == Collective::Gather || collective == Collective::Scatter;
  const bool is_blockwise =
      collective == Collective::AllGather || collective == Collective::ReduceScatter;
  const bool has_empty_block =
      is_blockwise && std::any_of(call_.blocks.begin(), call_.blocks.end(),
                                  [](const BlockMemory& block) { return block.count == 0; });
  // Elsewhere every rank ends only when it has heard of all others, so a mismatch leaves nobody
  // satisfied, and nobody leaves before the others have started.
  if (is_rooted || has_empty_block) {
    unmatched_.insert(call_.plan->sends_only.begin(), call_.plan->sends_only.end());
    unthanked_.insert(call_.plan->receives_only.begin(), call_.plan->receives_only.end());
  }
}

// --- a segment's way -----------------------------------------------------------------------------

void CollectiveOperation::start() {
  parts_.resize(call_.plan->chunks.size());
  parts_left_ = parts_.size();
  started_at_ = Clock::now();
  for (size_t i = 0; i < parts_.size(); ++i) {
    Part& part = parts_[i];
    const ChunkPlan& plan = call_.plan->chunks[i];
    const BlockMemory& block = call_.blocks[plan.block];
    const uint64_t count = plan.count == topology::Chunk::kWholeBlock ? block.count : plan.count;
    part.plan = &plan;
    part.bytes = count * element_bytes_;
    part.is_coded = plan.reduces && signature_.codec != Codec{};
    const uint64_t offset = memory_offset(part, plan.offset);
    if (block.input != nullptr) part.input = block.input + offset;
    if (block.output != nullptr) part.output = block.output + offset;
    // Exchanged values are small and travel whole.
    const uint32_t cut =
        i < call_.segment_bytes_of.size() ? call_.segment_bytes_of[i] : call_.segment_bytes;
    part.segment_bytes = plan.is_exchanged ? transport::kPayloadBytesMax : cut;
    part.segments =
        static_cast<uint32_t>((part.bytes + part.segment_bytes - 1) / part.segment_bytes);
    // An empty block of all_to_all still travels: only its two ends know its size, and one may
    // expect more.
    if (plan.count == topology::Chunk::kWholeBlock) part.segments = std::max(part.segments, 1U);
    for (const int32_t child : plan.up_children) {
      part.children.push_back({.rank = child, .waiting = {}, .granted = call_.window_segments});
    }
    if (plan.up_parent >= 0) {
      part.up.emplace();
      part.up->rank = plan.up_parent;
      part.up->stage = kStageUp;
      part.up->credit = call_.window_segments;
    }
    for (const int32_t child : plan.down_children)
      part.down.push_back({.rank = child, .stage = kStageDown, .credit = call_.window_segments});
    part.is_open = call_.plan->pool.count > 0 && plan.block == 0;
    if (plan.down_parent >= 0) {
      part.have.assign(part.segments, false);
      part.placed.assign(part.segments, false);
      if (part.segments > call_.window_segments || part.is_open)
        send_grant(plan.down_parent, kStageDown, plan.chunk, granted_down(part));
    }
    if (plan.is_core && !plan.reduces) part.finals = part.segments;
  }
  for (Part& part : parts_) {
    for (Child& child : part.children) grant_more(part, child);
  }
  for (Part& part : parts_) {
    if (is_finished()) return;
    advance(part);
  }
  for (Part& part : parts_) copy_own(part);
  maybe_finish();
}

// The core of a moving chunk also wants its own block in its output.
void CollectiveOperation::copy_own(Part& part) {
  if (!part.plan->is_core || part.plan->reduces || part.bytes == 0) return;
  if (part.output == nullptr || part.output == part.input) return;
  std::memcpy(part.output, part.input, part.bytes);
}

uint32_t CollectiveOperation::window_of(const Child& child) const {
  const uint64_t shared = call_.window_segments * uint64_t{parts_.size()} / parts_left_;
  const auto window = static_cast<uint32_t>(
      std::min<uint64_t>(shared, std::max(call_.window_segments, call_.window_segments_max)));
  const auto from = static_cast<size_t>(child.rank);
  return from < call_.windows_from.size() ? std::max(window, call_.windows_from[from]) : window;
}

void CollectiveOperation::grant_more(const Part& part, Child& child) {
  const uint32_t wanted = std::min(part.combined + window_of(child), part.segments);
  if (wanted <= child.granted) return;
  if (wanted - child.granted < call_.grant_segments && wanted < part.segments) return;
  child.granted = wanted;
  send_grant(child.rank, kStageUp, part.plan->chunk, wanted);
}

void CollectiveOperation::advance(Part& part) {
  if (is_finished() || part.is_done) return;
  do {
    if (part.plan->reduces) {
      advance_up(part);
      if (is_finished()) return;
      if (!part.plan->rounds.empty()) advance_exchange(part);
    }
    pump_down(part);
  } while (part.is_open && claim_more(part));
  check_done(part);
}

void CollectiveOperation::advance_up(Part& part) {
  while (part.combined < part.segments) {
    const uint32_t segment = part.combined;
    const uint32_t length = length_of(part, segment);
    for (const Child& child : part.children) {
      if (!child.waiting.contains(segment)) return;
    }
    if (part.up && !can_send(*part.up, wire_length_of(part, segment))) return;
    part.is_coded ? combine_coded(part, length) : combine(part, length);
    if (is_finished()) return;
    part.combined += 1;
    for (Child& child : part.children) {
      child.waiting.erase(segment);
      grant_more(part, child);
    }
    pump_down(part);
  }
}

void CollectiveOperation::combine(Part& part, uint32_t length) {
  const uint32_t segment = part.combined;
  const uint64_t offset = offset_of(part, segment);
  const bool is_weighted = call_.signature.op == ReduceOp::WeightedAvg;
  const bool is_scaled = call_.signature.op == ReduceOp::PremulSum || is_weighted;
  part.weight = is_weighted ? call_.factor : 0;
  for (const Child& child : part.children) part.weight += child.weight;
  if (part.up && part.children.empty() && !is_scaled) {
    send_segment(*part.up, data_header(part, segment, length), part.input + offset, index_of(part));
    return;
  }
  const std::byte* own = part.input + offset;
  transport::BufferPool::Buffer scaled;
  if (is_scaled) {
    scaled = group_.pool().take(length);
    if (is_weighted && call_.factor == 0) {
      // Nothing, even if there are infinities in what does not count.
      std::memset(scaled.bytes.get(), 0, length);
    } else {
      kernels::scale(scaled.bytes.get(), own, length / element_bytes_, call_.signature.dtype,
                     call_.factor);
    }
    own = scaled.bytes.get();
  }
  std::vector<const void*> sources{own};
  for (const Child& child : part.children) sources.push_back(child.waiting.at(segment).data());
  if (part.up) {
    if (std::byte* room = reserve_segment(*part.up, length)) {
      reduce_into(room, sources, length, false, part.weight);
      commit_segment(*part.up, data_header(part, segment, length));
    } else {
      transport::BufferPool::Buffer buffer = group_.pool().take(length);
      std::byte* bytes = buffer.bytes.get();
      reduce_into(bytes, sources, length, false, part.weight);
      send_segment(*part.up, data_header(part, segment, length), bytes, index_of(part),
                   std::move(buffer));
    }
  } else if (!part.plan->rounds.empty()) {
    part.value.resize(length);
    reduce_into(part.value.data(), sources, length, false, part.weight);
  } else {
    reduce_into(part.output + offset, sources, length, true, part.weight);
    part.final_weight = part.weight;
    part.finals += 1;
  }
  group_.pool().give_back(std::move(scaled));
}

void CollectiveOperation::reduce_into(std::byte* target, std::vector<const void*>& sources,
                                      uint32_t length, bool is_final, double weight) const {
  const size_t count = length / element_bytes_;
  const bool is_weighted = is_final && call_.signature.op == ReduceOp::WeightedAvg;
  ReduceOp op = call_.signature.op;
  int64_t divisor = is_final ? call_.divisor : 1;
  // Equal weights of 1 give the bytes of an average.
  const bool is_whole = is_weighted && weight >= 1 && weight < kWholeWeightMax &&
                        weight == static_cast<double>(static_cast<int64_t>(weight));
  if (is_whole) {
    op = ReduceOp::Avg;
    divisor = static_cast<int64_t>(weight);
  }
  // More sources than the kernel takes at once: the first ones are combined into the target, which
  // then leads the rest.
  size_t used = 0;
  while (sources.size() - used > kernels::kSourcesMax) {
    kernels::reduce(target, std::span(sources).subspan(used, kernels::kSourcesMax), count,
                    call_.signature.dtype, op);
    used += kernels::kSourcesMax - 1;
    sources[used] = target;
  }
  kernels::reduce(target, std::span(sources).subspan(used), count, call_.signature.dtype, op,
                  divisor);
  if (is_weighted && !is_whole)
    kernels::scale(target, target, count, call_.signature.dtype, weight > 0 ? 1 / weight : 0);
}

void CollectiveOperation::pump_down(Part& part) {
  const std::byte* source = part.plan->is_core && !part.plan->reduces ? part.input : part.output;
  for (OutStream& stream : part.down) {
    while (stream.next < part.finals) {
      const uint32_t length = wire_length_of(part, stream.next);
      if (!can_send(stream, length)) break;
      const uint64_t offset = offset_of(part, stream.next);
      FrameHeader header = data_header(part, stream.next, length);
      header.weight = part.final_weight;
      const std::byte* final =
          part.is_coded ? part.coded_finals.at(stream.next).data() : source + offset;
      send_segment(stream, header, final, index_of(part));
    }
  }
}

void CollectiveOperation::check_done(Part& part) {
  if (part.is_done || part.is_open) return;
  const auto is_sent = [&part](const OutStream& stream) {
    return stream.next == part.segments && stream.in_flight == 0;
  };
  const bool wants_final = part.plan->is_core || part.plan->down_parent >= 0;
  if (part.up && !is_sent(*part.up)) return;
  if (wants_final && part.finals < part.segments) return;
  if (!std::all_of(part.down.begin(), part.down.end(), is_sent)) return;
  part.is_done = true;
  parts_left_ -= 1;
}

void CollectiveOperation::maybe_finish() {
  if (parts_left_ == 0 && unmatched_.empty()) finish();
}

void CollectiveOperation::on_stream_sent(uint32_t owner_index) {
  advance(parts_[owner_index]);
  maybe_finish();
}

void CollectiveOperation::pump() {
  for (Part& part : parts_) advance(part);
  if (!is_finished()) maybe_finish();
}

// --- telling -------------------------------------------------------------------------------------

FrameHeader CollectiveOperation::data_header(const Part& part, uint32_t segment,
                                             uint32_t length) const {
  FrameHeader header = header_for(FrameType::Data);
  header.transfer_bytes = part.bytes;
  header.segment_bytes = part.segment_bytes;
  header.chunk = part.plan->chunk;
  header.length = length;
  if (claimed_with(part, segment) != nullptr) header.flags |= transport::kFlagClaimed;
  header.weight = part.weight;
  return header;
}

bool CollectiveOperation::needs(int32_t rank) const {
  if (unmatched_.contains(rank)) return true;
  for (const Part& part : parts_) {
    if (part.is_done) continue;
    if (part.is_open && rank == assigner_of(part)) return true;
    if (part.finals < part.segments && part.plan->down_parent == rank) return true;
    if (part.up && part.up->rank == rank && part.up->next < part.segments) return true;
    for (const Child& child : part.children) {
      // What a child that left has sent may wait here for what another child sends.
      const uint64_t arrived = part.combined + child.waiting.size();
      if (child.rank == rank && arrived < part.segments) return true;
    }
    for (size_t i = part.round; i < part.plan->rounds.size(); ++i) {
      const ChunkPlan::Round& round = part.plan->rounds[i];
      const bool is_over = i < part.rounds_sent && part.partner_values.contains(round.arrives_as);
      if (round.partner == rank && !is_over) return true;
    }
    for (const OutStream& stream : part.down) {
      if (stream.rank == rank && (stream.next < part.segments || stream.in_flight > 0)) return true;
    }
  }
  return false;
}

std::string CollectiveOperation::progress() const {
  std::set<int32_t> silent;
  uint64_t segments = 0;
  uint64_t done = 0;
  for (const Part& part : parts_) {
    segments += part.segments;
    done += std::max(part.finals, part.up ? part.combined : 0);
    if (part.is_done) continue;
    bool waits_for_child = false;
    for (const Child& child : part.children) {
      if (part.combined < part.segments && !child.waiting.contains(part.combined)) {
        silent.insert(child.rank);
        waits_for_child = true;
      }
    }
    for (size_t i = part.round; i < part.plan->rounds.size(); ++i) {
      const ChunkPlan::Round& round = part.plan->rounds[i];
      if (!part.partner_values.contains(round.arrives_as)) silent.insert(round.partner);
      if (!part.plan->exchanges_at_once) break;
    }
    if (part.is_open && part.combined == part.segments) silent.insert(assigner_of(part));
    if (waits_for_child) continue;
    if (part.up && part.up->next < part.segments) silent.insert(part.up->rank);
    for (const OutStream& stream : part.down) {
      if (stream.next < part.finals || stream.in_flight > 0) silent.insert(stream.rank);
    }
    if (part.finals < part.segments && part.plan->down_parent >= 0)
      silent.insert(part.plan->down_parent);
  }
  silent.insert(unmatched_.begin(), unmatched_.end());
  return std::to_string(done) + " of " + std::to_string(segments) + " segments done, waiting for " +
         group_.describe(silent);
}

std::string CollectiveOperation::buffer_state() const {
  switch (call_.signature.collective) {
    case Collective::Barrier:
      return "";
    case Collective::AllReduce:
      return call_.on_end ? "" : reduced_state();
    default:
      break;
  }
  return "Outputs may be partly written: do not use them. Inputs are unchanged.";
}

std::string CollectiveOperation::reduced_state() const {
  if (call_.is_encoded) return "Its encoded bytes are partly the result: do not use them.";
  std::vector<ElementRange> results;
  for (const FinalRange& range : finals()) results.push_back({range.begin, range.end});
  std::vector<ElementRange> torn;
  for (const Part& part : parts_) {
    if (is_attached(part)) continue;
    for (uint32_t segment = part.finals; segment < part.placed.size(); ++segment) {
      if (part.placed[segment] && !part.have[segment]) torn.push_back(elements_of(part, segment));
    }
  }
  const BlockMemory& block = call_.blocks[0];
  return describe_reduced(std::move(results), std::move(torn), block.count,
                          block.input == block.output);
}

ElementRange CollectiveOperation::elements_of(const Part& part, uint32_t segment) const {
  const uint64_t begin = part.plan->offset + offset_of(part, segment) / element_bytes_;
  return {begin, begin + length_of(part, segment) / element_bytes_};
}

std::vector<FinalRange> CollectiveOperation::finals() const {
  std::vector<FinalRange> ranges;
  for (const Part& part : parts_) {
    if (is_attached(part)) continue;
    for (uint32_t segment = 0; segment < part.segments; ++segment) {
      const bool is_final =
          segment < part.finals || (segment < part.have.size() && part.have[segment]);
      if (!is_final) continue;
      const auto [begin, end] = elements_of(part, segment);
      if (begin == end) continue;
      if (!ranges.empty() && ranges.back().end == begin &&
          ranges.back().weight == part.final_weight) {
        ranges.back().end = end;
      } else {
        ranges.push_back({begin, end, part.final_weight});
      }
    }
  }
  return ranges;
}

void CollectiveOperation::settle(const Error& error, int32_t source_rank) {
  if (!error && call_.attachment) call_.attachment->on_complete();
  if (call_.on_end) {
    call_.on_end(*this, error);
  } else {
    Operation::settle(error, source_rank);
  }
}

void CollectiveOperation::abandon_connections() {
  for (const int32_t rank : call_.plan->peers) group_.to(rank).abandon(this);
}

}  // namespace pccl
