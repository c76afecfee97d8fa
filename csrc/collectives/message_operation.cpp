#include "collectives/message_operation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "collectives/group.h"

namespace pccl {

using transport::FrameHeader;
using transport::FrameType;
using transport::Payload;

namespace {

transport::Signature message_signature(const MessageMemory& memory) {
  transport::Signature signature;
  signature.collective = transport::Collective::SendRecv;
  signature.dtype = memory.dtype;
  signature.count = memory.count;
  return signature;
}

// An empty message is one empty segment.
uint32_t segment_count(uint64_t bytes, uint32_t segment_bytes) {
  return static_cast<uint32_t>(std::max<uint64_t>(1, (bytes + segment_bytes - 1) / segment_bytes));
}

}  // namespace

// --- SendOperation -------------------------------------------------------------------------------

SendOperation::SendOperation(Group& group, int32_t destination, uint32_t tag, MessageMemory memory,
                             std::shared_ptr<Work> work)
    : Operation(group, message_signature(memory), std::move(work)),
      tag_(tag),
      memory_(memory),
      bytes_(memory.count * element_bytes(memory.dtype)),
      segments_(segment_count(bytes_, memory.segment_bytes)) {
  stream_.rank = destination;
}

void SendOperation::pump() {
  while (!is_finished() && stream_.next < segments_) {
    const uint64_t offset = uint64_t{stream_.next} * memory_.segment_bytes;
    FrameHeader header = header_for(FrameType::Message);
    header.transfer_bytes = bytes_;
    header.segment_bytes = memory_.segment_bytes;
    header.chunk = tag_;
    header.length =
        static_cast<uint32_t>(std::min<uint64_t>(memory_.segment_bytes, bytes_ - offset));
    if (!can_send(stream_, header.length)) return;
    send_segment(stream_, header, memory_.data + offset, 0);
  }
  if (stream_.in_flight == 0) finish();
}

void SendOperation::on_stream_sent(uint32_t /*owner_index*/) { pump(); }

void SendOperation::on_frame(const FrameHeader& header, Payload /*payload*/) {
  stream_.credit = std::max(stream_.credit, std::min(header.segment, segments_));
  stream_.is_granted = true;
  pump();
}

std::string SendOperation::progress() const {
  return std::to_string(stream_.next) + " of " + std::to_string(segments_) + " segments sent to " +
         group_.describe(stream_.rank) + ", tag " + std::to_string(tag_) + " (no recv there?)";
}

void SendOperation::abandon_connections() { group_.to(stream_.rank).abandon(this); }

// --- ReceiveOperation ----------------------------------------------------------------------------

ReceiveOperation::ReceiveOperation(Group& group, int32_t source, uint32_t tag, MessageMemory memory,
                                   std::shared_ptr<Work> work)
    : Operation(group, message_signature(memory), std::move(work)),
      source_(source),
      tag_(tag),
      memory_(memory),
      bytes_(memory.count * element_bytes(memory.dtype)),
      segments_(segment_count(bytes_, memory.segment_bytes)) {}

bool ReceiveOperation::bind(const FrameHeader& header) {
  bound_source_ = header.source_rank;
  number = header.operation;
  if (header.signature() != signature_ || header.transfer_bytes != bytes_) {
    fail({ErrorKind::CallMismatch,
          "the message does not fit: " + group_.describe(bound_source_) + " sent " +
              header.signature().describe() + " with tag " + std::to_string(tag_) + ", rank " +
              std::to_string(group_.rank) + " receives " + describe() + "."});
    return false;
  }
  if (header.segment_bytes != memory_.segment_bytes) {
    fail({ErrorKind::CallMismatch,
          group_.describe(bound_source_) + " runs with other settings (segment size)."});
    return false;
  }
  have_.assign(segments_, false);
  placed_.assign(segments_, false);
  if (segments_ > kWindowSegments) grant_all();
  return true;
}

void ReceiveOperation::grant_all() {
  if (bound_source_ >= 0) send_grant(bound_source_, 0, tag_, segments_);
}

void ReceiveOperation::grant_message(uint64_t message_number) {
  number = message_number;
  send_grant(source_, 0, tag_, segments_);
}

transport::Placement ReceiveOperation::place(const FrameHeader& header) {
  if (header.segment >= segments_ || have_[header.segment] || header.transfer_bytes != bytes_)
    return {};
  if (header.segment_bytes != memory_.segment_bytes || placed_[header.segment]) return {};
  placed_[header.segment] = true;
  return {memory_.data + uint64_t{header.segment} * memory_.segment_bytes, this};
}

void ReceiveOperation::on_frame(const FrameHeader& header, Payload payload) {
  std::byte* target = memory_.data + uint64_t{header.segment} * memory_.segment_bytes;
  // A segment that is still arriving in place can't come by another way, too.
  const bool is_expected = header.transfer_bytes == bytes_ &&
                           header.segment_bytes == memory_.segment_bytes &&
                           header.segment < segments_ && !have_[header.segment] &&
                           (!placed_[header.segment] || payload.data() == target);
  if (!is_expected) {
    group_.fail({ErrorKind::RemoteProtocol,
                 group_.describe(header.source_rank) + " sent a segment twice."});
    return;
  }
  if (payload.size() > 0 && payload.data() != target)
    std::memcpy(target, payload.data(), payload.size());
  have_[header.segment] = true;
  received_ += 1;
  if (received_ == segments_) finish(bound_source_);
}

std::string ReceiveOperation::progress() const {
  const std::string from = source_ >= 0 ? group_.describe(source_) : "any rank";
  if (bound_source_ < 0)
    return "no message with tag " + std::to_string(tag_) + " came from " + from;
  return std::to_string(received_) + " of " + std::to_string(segments_) + " segments came from " +
         group_.describe(bound_source_);
}

std::string ReceiveOperation::buffer_state() const {
  return received_ == 0 ? "The tensor is unchanged."
                        : "The tensor is partly overwritten: do not use it.";
}

void ReceiveOperation::abandon_connections() {
  if (bound_source_ >= 0) group_.to(bound_source_).abandon(this);
}

// --- Messages ------------------------------------------------------------------------------------

void Messages::send(std::unique_ptr<SendOperation> operation) {
  SendOperation& started = *operation;
  started.number = next_sent_[{started.destination(), started.tag()}]++;
  sends_[{started.destination(), started.tag(), started.number}] = std::move(operation);
  started.start();
}

void Messages::receive(std::unique_ptr<ReceiveOperation> operation) {
  ReceiveOperation& posted = *operation;
  posted_.push_back(std::move(operation));
  // The oldest message that waits for such a receive.
  auto oldest = early_.end();
  for (auto entry = early_.begin(); entry != early_.end(); ++entry) {
    const Key& key = entry->first;
    if (key.tag != posted.tag() || (posted.source() >= 0 && key.source != posted.source()))
      continue;
    if (key.number != next_received_[{key.source, key.tag}]) continue;
    if (oldest == early_.end() || entry->second.arrival < oldest->second.arrival) oldest = entry;
  }
  if (oldest == early_.end()) return;
  auto frames = std::move(oldest->second.frames);
  early_.erase(oldest);
  replay(std::move(frames));
}

void Messages::replay(std::vector<std::pair<FrameHeader, Payload>>&& frames) {
  for (auto& [header, payload] : frames) {
    group_.take_out_of_mailbox(header);
    on_message(header, std::move(payload));
  }
}

void Messages::grant_posted() {
  std::map<std::pair<int32_t, uint32_t>, uint64_t> before;  // receives posted earlier
  for (auto& posted : posted_) {
    if (posted->source() < 0) continue;
    const std::pair<int32_t, uint32_t> from{posted->source(), posted->tag()};
    posted->grant_message(next_received_[from] + before[from]++);
  }
}

// The receive that takes this message; binds it if the message is new and its turn has come.
ReceiveOperation* Messages::match(const FrameHeader& header) {
  const Key key{header.source_rank, header.chunk, header.operation};
  const auto bound = bound_.find(key);
  if (bound != bound_.end()) return bound->second.get();
  uint64_t& next = next_received_[{key.source, key.tag}];
  if (key.number != next) return nullptr;
  const auto taker = std::find_if(posted_.begin(), posted_.end(), [&key](const auto& posted) {
    return posted->tag() == key.tag && (posted->source() < 0 || posted->source() == key.source);
  });
  if (taker == posted_.end()) return nullptr;
  next += 1;
  ReceiveOperation& receive = **taker;
  bound_[key] = std::move(*taker);
  posted_.erase(taker);
  return receive.bind(header) ? &receive : nullptr;
}

transport::Placement Messages::place(const FrameHeader& header) {
  ReceiveOperation* receive = match(header);
  return receive == nullptr ? transport::Placement{} : receive->place(header);
}

void Messages::on_message(const FrameHeader& header, Payload payload) {
  const Key key{header.source_rank, header.chunk, header.operation};
  if (ReceiveOperation* receive = match(header)) {
    group_.give_credit(header);
    receive->on_frame(header, std::move(payload));
    // The next message may already be here, and a receive for it, too.
    const auto next = early_.find({key.source, key.tag, next_received_[{key.source, key.tag}]});
    const bool is_wanted =
        next != early_.end() && std::any_of(posted_.begin(), posted_.end(), [&key](const auto& p) {
          return p->tag() == key.tag && (p->source() < 0 || p->source() == key.source);
        });
    if (is_wanted) {
      auto frames = std::move(next->second.frames);
      early_.erase(next);
      replay(std::move(frames));
    }
    return;
  }
  if (key.number < next_received_[{key.source, key.tag}]) {
    // The rest of a message whose receive has failed.
    group_.give_credit(header);
    return;
  }
  if (!group_.put_into_mailbox(header)) return;
  payload.keep();
  EarlyMessage& early = early_[key];
  if (early.frames.empty()) early.arrival = arrivals_++;
  early.frames.emplace_back(header, std::move(payload));
}

void Messages::on_grant(const FrameHeader& header) {
  const auto found = sends_.find({header.source_rank, header.chunk, header.operation});
  if (found != sends_.end()) found->second->on_frame(header, {});
}

std::vector<Operation*> Messages::running() {
  std::vector<Operation*> all;
  all.reserve(sends_.size() + posted_.size() + bound_.size());
  for (auto& [key, operation] : sends_) all.push_back(operation.get());
  for (auto& operation : posted_) all.push_back(operation.get());
  for (auto& [key, operation] : bound_) all.push_back(operation.get());
  return all;
}

std::unique_ptr<Operation> Messages::take(Operation& operation) {
  for (auto entry = sends_.begin(); entry != sends_.end(); ++entry) {
    if (entry->second.get() != &operation) continue;
    std::unique_ptr<Operation> taken = std::move(entry->second);
    sends_.erase(entry);
    return taken;
  }
  for (auto entry = bound_.begin(); entry != bound_.end(); ++entry) {
    if (entry->second.get() != &operation) continue;
    std::unique_ptr<Operation> taken = std::move(entry->second);
    bound_.erase(entry);
    return taken;
  }
  for (auto entry = posted_.begin(); entry != posted_.end(); ++entry) {
    if (entry->get() != &operation) continue;
    std::unique_ptr<Operation> taken = std::move(*entry);
    posted_.erase(entry);
    return taken;
  }
  return nullptr;
}

void Messages::clear() {
  for (const auto& [key, early] : early_) {
    for (const auto& [header, payload] : early.frames) {
      group_.take_out_of_mailbox(header);
      group_.give_credit(header);
    }
  }
  early_.clear();
}

}  // namespace pccl
