// What a group does for its plans: it looks at its links, and tries them.
#include <array>
#include <utility>

#include "collectives/group.h"

namespace pccl {

using transport::Connection;
using transport::FrameType;

void Group::plan_by(std::shared_ptr<PlanSource> plans) {
  plans_ = std::move(plans);
  plans_->serve(*this);
}

bool Group::reach(int32_t peer) {
  if (broken_ || is_frozen_) return false;
  if (to(peer).state == Connection::State::Idle) endpoint_.dial(to(peer));
  return to(peer).state == Connection::State::Up;
}

bool Group::has_left(int32_t peer) const {
  const Connection* connection = connections_[static_cast<size_t>(peer)];
  return observer_ == nullptr && connection->state == Connection::State::Closed;
}

uint32_t Group::send_probe(int32_t peer) {
  static const std::array<std::byte, transport::kProbeBytes> filler{};
  transport::OutFrame frame;
  frame.header.type = FrameType::Probe;
  frame.header.group = id;
  frame.header.source_rank = rank;
  frame.header.length = transport::kProbeBytes;
  frame.payload = filler.data();
  frame.stays = true;
  endpoint_.note_probe(transport::kProbeBytes);
  send(peer, std::move(frame));
  return transport::kProbeBytes;
}

void Group::tell_turn(int32_t peer, uint64_t round) {
  tell_of_links(peer, {.type = FrameType::Turn, .operation = round}, {});
}

void Group::tell_figures(int32_t peer, std::vector<std::byte> bytes) {
  tell_of_links(peer, {.type = FrameType::Figures}, std::move(bytes));
}

void Group::tell_of_links(int32_t peer, const transport::FrameHeader& header,
                          std::vector<std::byte> bytes) {
  if (broken_ || is_frozen_ || to(peer).state == Connection::State::Closed) return;
  transport::OutFrame frame;
  frame.header = header;
  frame.header.group = id;
  frame.header.source_rank = rank;
  frame.header.length = static_cast<uint32_t>(bytes.size());
  frame.owned = std::move(bytes);
  to(peer).send_control(std::move(frame));
  mark_unsent(peer);
}

}  // namespace pccl
