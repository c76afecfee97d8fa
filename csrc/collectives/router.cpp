#include "collectives/router.h"

#include <iterator>
#include <utility>

namespace pccl {

using transport::Connection;
using transport::FrameHeader;
using transport::FrameType;
using transport::Payload;

namespace {

bool speaks_for_itself(const Group& group, const Connection& from, const FrameHeader& header) {
  const int32_t rank = group.rank_of(from);
  return rank >= 0 && rank == header.source_rank;
}

}  // namespace

bool Router::add(std::unique_ptr<Group> group) {
  const uint64_t id = group->id;
  if (is_closed_ || groups_.contains(id) || ended_.contains(id)) return false;
  groups_[id] = std::move(group);
  const auto waiting = unknown_.find(id);
  if (waiting == unknown_.end()) return true;
  std::vector<Waiting> frames = std::move(waiting->second);
  unknown_.erase(waiting);
  for (Waiting& entry : frames) {
    entry.from->note_early_taken(entry.frame.header);
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

void Router::close(const Error& error) {
  is_closed_ = true;
  for (Group* group : groups()) remove(group->id, error);
  // Payloads go back to the endpoint's pool, so they must not outlive it.
  unknown_.clear();
}

Group* Router::find(uint64_t id) {
  const auto found = groups_.find(id);
  return found == groups_.end() ? nullptr : found->second.get();
}

std::vector<Group*> Router::groups() {
  std::vector<Group*> all;
  all.reserve(groups_.size());
  for (auto& [id, group] : groups_) all.push_back(group.get());
  return all;
}

void Router::sweep() {
  for (auto& [id, group] : groups_) group->sweep();
}

transport::Placement Router::place(Connection& from, const FrameHeader& header) {
  Group* group = find(header.group);
  if (group == nullptr || !speaks_for_itself(*group, from, header)) return {};
  return group->place(header);
}

void Router::on_frame(Connection& from, const FrameHeader& header, Payload payload) {
  if (is_closed_) {
    from.goodbye |= header.type == FrameType::Goodbye;
    return;
  }
  if (header.type == FrameType::Probe) return;
  const bool was_crowded = from.is_crowded();
  deliver(from, header, std::move(payload));
  if (was_crowded || !from.is_crowded()) return;
  for (Group* group : groups()) {
    if (group->rank_of(from) >= 0) group->on_mailbox_filling();
  }
}

void Router::deliver(Connection& from, const FrameHeader& header, Payload payload) {
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
    if (!speaks_for_itself(*group, from, header)) {
      group->fail({ErrorKind::RemoteProtocol,
                   "a frame came with rank " + std::to_string(header.source_rank) + " from " +
                       from.peer.describe() +
                       ", which is not that rank: the members do not agree who is who."});
      return;
    }
    group->on_frame(header, std::move(payload));
    return;
  }
  if (ended_.contains(header.group) || !from.has_room_for(header) ||
      (unknown_.size() >= kUnknownGroupsMax && !unknown_.contains(header.group))) {
    if ((header.flags & transport::kFlagUngranted) != 0)
      from.note_ungranted_consumed(header.length);
    return;
  }
  payload.keep();
  from.note_early(header);
  unknown_[header.group].push_back({&from, {header, std::move(payload)}});
}

void Router::on_lost(Connection& connection, const Error& error) {
  if (error) forget(connection);
  for (Group* group : groups()) {
    const int32_t rank = group->rank_of(connection);
    if (rank >= 0) group->on_connection_lost(rank, error);
  }
}

void Router::forget(const Connection& from) {
  for (auto entry = unknown_.begin(); entry != unknown_.end();) {
    std::erase_if(entry->second, [&from](const Waiting& waiting) { return waiting.from == &from; });
    entry = entry->second.empty() ? unknown_.erase(entry) : std::next(entry);
  }
}

void Router::note_running(FlightRecorder& /*recorder*/) {
  for (Group* group : groups()) group->note_running();
}

TimePoint Router::on_time(TimePoint now) {
  TimePoint next = TimePoint::max();
  for (Group* group : groups()) next = std::min(next, group->on_time(now));
  return next;
}

}  // namespace pccl
