#include "collectives/router.h"

#include <utility>

namespace pccl {

using transport::Connection;
using transport::FrameHeader;
using transport::FrameType;
using transport::Payload;

bool Router::add(std::unique_ptr<Group> group) {
  const uint64_t id = group->id;
  if (groups_.contains(id) || ended_.contains(id)) return false;
  groups_[id] = std::move(group);
  const auto waiting = unknown_.find(id);
  if (waiting == unknown_.end()) return true;
  std::vector<Waiting> frames = std::move(waiting->second);
  unknown_.erase(waiting);
  for (Waiting& entry : frames) {
    entry.from->early_bytes -= entry.frame.header.length;
    on_frame(*entry.from, entry.frame.header, std::move(entry.frame.payload));
  }
  return true;
}

void Router::remove(uint64_t id, const Error& error) {
  const auto found = groups_.find(id);
  if (found == groups_.end()) return;
  found->second->close(error);
  found->second->sweep();
  groups_.erase(found);
  ended_.insert(id);
}

Group* Router::find(uint64_t id) {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : found->second.get();
}

std::vector<Group*> Router::groups() {
  std::vector<Group*> all;
  for (auto& [id, group] : groups_) all.push_back(group.get());
  return all;
}

void Router::sweep() {
  for (auto& [id, group] : groups_) group->sweep();
}

transport::Placement Router::place(Connection& from, const FrameHeader& header) {
  Group* group = find(header.group);
  if (group == nullptr || group->rank_of(from) != header.source_rank) return {};
  return group->place(header);
}

void Router::on_frame(Connection& from, const FrameHeader& header, Payload payload) {
  if (header.type == FrameType::Goodbye) {
    from.goodbye = true;
    return;
  }
  if (header.type == FrameType::Credit) {
    from.on_credit(header.count);
    for (Group* group : groups()) {
      const int32_t rank = group->rank_of(from);
      if (rank >= 0) group->on_credit(rank);
    }
    return;
  }
  if (Group* group = find(header.group)) {
    // A member may speak for itself only.
    if (group->rank_of(from) != header.source_rank) {
      group->fail({ErrorKind::RemoteProtocol,
                   "a frame came with rank " + std::to_string(header.source_rank) + " from " +
                       from.peer.describe() +
                       ", which is not that rank: the members do not agree who is who."});
      return;
    }
    group->on_frame(from, header, std::move(payload));
    return;
  }
  if (ended_.contains(header.group) ||
      (unknown_.size() >= kUnknownGroupsMax && !unknown_.contains(header.group))) {
    if ((header.flags & transport::kFlagUngranted) != 0)
      from.note_ungranted_consumed(header.length);
    return;
  }
  payload.keep();
  from.early_bytes += header.length;
  unknown_[header.group].push_back({&from, {header, std::move(payload)}});
}

void Router::on_lost(Connection& connection, const Error& error) {
  for (Group* group : groups()) {
    const int32_t rank = group->rank_of(connection);
    if (rank >= 0) group->on_connection_lost(rank, error);
  }
}

TimePoint Router::on_time(TimePoint now) {
  TimePoint next = TimePoint::max();
  for (Group* group : groups()) next = std::min(next, group->on_time(now));
  return next;
}

}  // namespace pccl
