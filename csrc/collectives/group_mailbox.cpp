// Frames that came before their calls, and the credit that bounds them.
#include <algorithm>

#include "collectives/group.h"

namespace pccl {

using transport::Connection;
using transport::FrameHeader;

bool Group::put_into_mailbox(const FrameHeader& header) {
  Connection& from = to(header.source_rank);
  if (!from.has_room_for(header)) {
    fail({ErrorKind::RemoteProtocol, describe(header.source_rank) +
                                         " sent more than a member may send for calls that this "
                                         "rank has not made."});
    return false;
  }
  from.note_early(header);
  return true;
}

void Group::take_out_of_mailbox(const FrameHeader& header) {
  to(header.source_rank).note_early_taken(header);
}

void Group::give_credit(const FrameHeader& header) {
  if ((header.flags & transport::kFlagUngranted) == 0) return;
  to(header.source_rank).note_ungranted_consumed(header.length);
  mark_unsent(header.source_rank);
}

bool Group::is_crowded(const std::vector<int32_t>& peers) {
  return std::any_of(peers.begin(), peers.end(),
                     [this](int32_t peer) { return to(peer).is_crowded(); });
}

void Group::on_mailbox_filling() {
  for (auto& [number, operation] : collectives_) operation->grant_all();
  for (Operation* operation : messages_.running()) operation->grant_all();
  messages_.grant_posted();
}

void Group::on_credit(int32_t peer) {
  for (Operation* operation : running()) {
    if (!operation->is_finished() && operation->needs(peer)) operation->pump();
  }
}

}  // namespace pccl
