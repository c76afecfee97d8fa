// The exchange of a chunk whose core has several ranks: in rounds, or all at once.
#include <cstring>
#include <utility>

#include "collectives/collective_operation.h"
#include "collectives/group.h"

namespace pccl {

using transport::FrameHeader;
using transport::kStageExchange;

void CollectiveOperation::advance_exchange(Part& part) {
  if (part.combined < part.segments) return;
  if (part.plan->exchanges_at_once) {
    exchange_at_once(part);
    return;
  }
  const auto length = static_cast<uint32_t>(part.bytes);
  while (part.round < part.plan->rounds.size()) {
    const ChunkPlan::Round& round = part.plan->rounds[part.round];
    if (part.rounds_sent == part.round && !send_value(part)) return;
    const auto found = part.partner_values.find(round.arrives_as);
    if (found == part.partner_values.end()) return;
    const bool is_last = part.round + 1 == part.plan->rounds.size();
    std::byte* target = is_last ? part.output : part.value.data();
    std::vector<const void*> sources{part.value.data(), found->second.data()};
    if (round.partner_first) std::swap(sources[0], sources[1]);
    part.weight += part.partner_weights[round.arrives_as];
    reduce_into(target, sources, length, is_last, part.weight);
    part.partner_values.erase(found);
    part.round += 1;
    if (is_last) {
      part.finals = part.segments;
      part.final_weight = part.weight;
    }
  }
}

// All ranks add weights and values in the order of the core.
void CollectiveOperation::exchange_at_once(Part& part) {
  const std::vector<ChunkPlan::Round>& rounds = part.plan->rounds;
  while (part.rounds_sent < rounds.size()) {
    if (!send_value(part)) return;
  }
  if (part.round == rounds.size() || part.partner_values.size() < rounds.size()) return;
  std::vector<const void*> sources;
  double weight = 0;
  const auto add_own = [&] {
    sources.push_back(part.value.data());
    weight += part.weight;
  };
  bool has_own = false;
  for (const ChunkPlan::Round& round : rounds) {
    if (!round.partner_first && !std::exchange(has_own, true)) add_own();
    sources.push_back(part.partner_values.at(round.arrives_as).data());
    weight += part.partner_weights.at(round.arrives_as);
  }
  if (!has_own) add_own();
  part.final_weight = part.weight = weight;
  reduce_into(part.output, sources, static_cast<uint32_t>(part.bytes), true, weight);
  part.partner_values.clear();
  part.round = static_cast<uint32_t>(rounds.size());
  part.finals = part.segments;
}

// The partial result to the next partner; false: not now.
bool CollectiveOperation::send_value(Part& part) {
  const auto length = static_cast<uint32_t>(part.bytes);
  const ChunkPlan::Round& round = part.plan->rounds[part.rounds_sent];
  OutStream stream{.rank = round.partner,
                   .stage = static_cast<uint16_t>(kStageExchange + round.sent_as)};
  stream.is_granted = part.granted_rounds.contains(part.rounds_sent);
  if (!can_send(stream, length)) return false;
  FrameHeader header = data_header(part, 0, length);
  if (std::byte* room = reserve_segment(stream, length)) {
    std::memcpy(room, part.value.data(), length);
    commit_segment(stream, header);
  } else {
    header.stage = stream.stage;
    if (!stream.is_granted) {
      header.flags |= transport::kFlagUngranted;
      group_.to(round.partner).note_ungranted_sent(length);
    }
    transport::OutFrame frame;
    frame.header = header;
    frame.buffer = group_.pool().take(length);
    std::memcpy(frame.buffer.bytes.get(), part.value.data(), length);
    group_.send(round.partner, std::move(frame));
  }
  part.rounds_sent += 1;
  return true;
}

}  // namespace pccl
