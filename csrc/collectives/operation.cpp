#include "collectives/operation.h"

#include <cstring>
#include <utility>

#include "collectives/group.h"

namespace pccl {

using transport::FrameHeader;
using transport::FrameType;

Operation::Operation(Group& group, transport::Signature signature, std::shared_ptr<Work> work)
    : group_(group), signature_(signature), work_(std::move(work)) {}

std::string Operation::describe() const { return signature_.describe(); }

void Operation::record(FlightEvent event, TimePoint now) const {
  group_.recorder().record(event,
                           {.name = transport::collective_name(signature_.collective),
                            .dtype = signature_.dtype,
                            .op = signature_.op,
                            .root = signature_.root,
                            .group = group_.id,
                            .number = number,
                            .bytes = signature_.count * element_bytes(signature_.dtype)},
                           now);
}

void Operation::finish(int32_t source_rank) {
  if (is_finished_) return;
  is_finished_ = true;
  record(FlightEvent::Ended, Clock::now());
  // What may have to be sent again is copied now: from here on the caller may change it.
  release();
  settle({}, source_rank);
}

void Operation::fail(const Error& error) {
  if (is_finished_) return;
  is_finished_ = true;
  record(FlightEvent::Failed, Clock::now());
  group_.note_failure(*this, error);
  const std::string state = buffer_state();
  release();
  settle({error.kind, describe() + " of group '" + group_.name + "', call " +
                          std::to_string(number) + ", on rank " + std::to_string(group_.rank) +
                          ": " + error.message + " " + state},
         -1);
}

void Operation::discard() {
  if (is_finished_) return;
  is_finished_ = true;
  record(FlightEvent::Stopped, Clock::now());
  release();
}

void Operation::release() {
  abandon_connections();
  group_.on_finished(*this);
}

bool Operation::can_send(const OutStream& stream, uint32_t length) const {
  return stream.next < stream.credit && stream.in_flight < queued_frames_max_ &&
         (stream.is_granted || group_.to(stream.rank).may_send_ungranted(length));
}

void Operation::stamp(OutStream& stream, FrameHeader& header) {
  header.stage = stream.stage;
  header.segment = stream.next;
  stream.next += 1;
  if (!stream.is_granted) {
    header.flags |= transport::kFlagUngranted;
    group_.to(stream.rank).note_ungranted_sent(header.length);
  }
}

std::byte* Operation::reserve_segment(const OutStream& stream, uint32_t length) {
  return group_.to(stream.rank).reserve(length);
}

void Operation::commit_segment(OutStream& stream, FrameHeader header) {
  stamp(stream, header);
  group_.to(stream.rank).commit(header);
}

void Operation::send_segment(OutStream& stream, FrameHeader header, const std::byte* data,
                             uint32_t owner_index, transport::BufferPool::Buffer buffer) {
  if (std::byte* room = reserve_segment(stream, header.length)) {
    if (header.length > 0) std::memcpy(room, data, header.length);
    commit_segment(stream, header);
    group_.pool().give_back(std::move(buffer));
    return;
  }
  stamp(stream, header);
  uint32_t cookie = 0;
  if (free_cookies_.empty()) {
    cookie = static_cast<uint32_t>(sending_.size());
    sending_.emplace_back();
  } else {
    cookie = free_cookies_.back();
    free_cookies_.pop_back();
  }
  sending_[cookie] = {&stream, owner_index};
  stream.in_flight += 1;
  transport::OutFrame frame;
  frame.header = header;
  if (buffer.bytes) {
    frame.buffer = std::move(buffer);
  } else {
    // The caller's memory changes when the operation ends, or where a final came: then the receiver
    // has what was sent from there.
    frame.payload = data;
    frame.stays = true;
  }
  frame.owner = this;
  frame.cookie = cookie;
  group_.send(stream.rank, std::move(frame));
}

void Operation::on_sent(uint64_t cookie) {
  const Sending sending = sending_[cookie];
  sending_[cookie] = {};
  free_cookies_.push_back(static_cast<uint32_t>(cookie));
  sending.stream->in_flight -= 1;
  if (!is_finished_) on_stream_sent(sending.owner_index);
}

FrameHeader Operation::header_for(FrameType type) const {
  FrameHeader header;
  header.type = type;
  header.set_signature(signature_);
  header.group = group_.id;
  header.operation = number;
  header.source_rank = group_.rank;
  return header;
}

void Operation::send_grant(int32_t rank, uint16_t stage, uint32_t chunk, uint32_t segments) {
  FrameHeader header = header_for(FrameType::Grant);
  header.stage = stage;
  header.chunk = chunk;
  header.segment = segments;
  group_.send_control(rank, header);
}

}  // namespace pccl
