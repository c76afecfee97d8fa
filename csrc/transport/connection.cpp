#include "transport/connection.h"

#include <algorithm>
#include <cstring>

namespace pccl::transport {
namespace {

// In what arrives, where the round trip is not known.
constexpr double kPauseSecondsMax = 0.05;

}  // namespace

void Connection::send(OutFrame frame) { data_.push_back(std::move(frame)); }

void Connection::abandon(const FrameOwner* owner) {
  std::erase_if(data_, [this, owner](const OutFrame& frame) {
    if (frame.owner != owner) return false;
    // The receiver can't give credit back for what it never gets.
    if ((frame.header.flags & kFlagUngranted) != 0) on_credit(frame.header.length);
    return true;
  });
  outgoing.detach(owner);
  for (auto& link : links_) link->abandon(owner);
  for (Arrival& arrival : arrivals_) {
    if (arrival.placement.owner == owner) arrival.placement = {};
  }
  forget_broken_arrivals();
}

// What was placed must come to the same place; the rest leaves nothing behind.
void Connection::forget_broken_arrivals() {
  std::erase_if(arrivals_, [](const Arrival& arrival) {
    return arrival.link == nullptr && arrival.placement.target == nullptr;
  });
}

void Connection::clear() {
  control_.clear();
  data_.clear();
  outgoing.clear();
  arrivals_.clear();
}

std::byte* Connection::reserve(uint32_t length) {
  if (state != State::Up || links_.size() != 1 || !control_.empty() || !data_.empty())
    return nullptr;
  return links_.front()->reserve(length);
}

void Connection::commit(const FrameHeader& header) { links_.front()->commit(header); }

void Connection::flush() {
  if (state != State::Up) return;
  // Links may be closed by their own flush; the endpoint then takes them away after the loop that
  // it drives.
  for (size_t i = 0; i < links_.size() && (has_to_send() || links_[i]->has_unsent()); ++i) {
    links_[i]->flush();
  }
}

bool Connection::has_to_send() const {
  return !control_.empty() || !data_.empty() || outgoing.has_lost() || ack_is_due_;
}

bool Connection::has_unsent() const {
  return !control_.empty() || !data_.empty() || outgoing.has_lost() ||
         std::any_of(links_.begin(), links_.end(),
                     [](const auto& link) { return link->has_unsent(); });
}

OutFrame* Connection::front_frame() {
  if (!control_.empty()) return &control_.front();
  return data_.empty() ? nullptr : &data_.front();
}

OutFrame Connection::pop_frame() {
  std::deque<OutFrame>& queue = control_.empty() ? data_ : control_;
  OutFrame frame = std::move(queue.front());
  queue.pop_front();
  return frame;
}

// --- sockets -------------------------------------------------------------------------------------

bool Connection::is_resting(const Link& link) const {
  if (!stripes || links_.size() <= static_cast<size_t>(stripes->sockets())) return false;
  return std::none_of(links_.begin(), links_.begin() + stripes->sockets(),
                      [&link](const auto& one) { return one.get() == &link; });
}

SentFrame* Connection::take_frame(const Link& link) {
  if (is_resting(link)) return nullptr;
  if (SentFrame* lost = outgoing.take_lost(link)) {
    if (lost->was_begun) {
      traffic.resent_frames += 1;
      traffic.resent_bytes += sizeof(FrameHeader) + lost->frame.header.length;
    }
    return lost;
  }
  if (front_frame() == nullptr || !outgoing.has_room()) return nullptr;
  return &outgoing.add(pop_frame(), link);
}

void Connection::on_written(SentFrame& sent) {
  FrameOwner* owner = sent.is_reported ? nullptr : sent.frame.owner;
  const uint64_t cookie = sent.frame.cookie;
  sent.is_reported = true;
  outgoing.on_written(sent);
  if (owner != nullptr) owner->on_sent(cookie);
}

std::optional<FrameHeader> Connection::take_ack(bool has_company) {
  if (!ack_is_due_ && !(has_company && owed_bytes_ >= kAckBytesInCompany)) return std::nullopt;
  ack_is_due_ = false;
  owed_frames_ = 0;
  owed_bytes_ = 0;
  ack_at_ = TimePoint::max();
  return FrameHeader{.type = FrameType::Ack, .sequence = incoming.consumed()};
}

std::unique_ptr<Link> Connection::take_link(uint16_t index) {
  const auto found = std::find_if(links_.begin(), links_.end(),
                                  [index](const auto& link) { return link->index == index; });
  if (found == links_.end()) return nullptr;
  std::unique_ptr<Link> taken = std::move(*found);
  links_.erase(found);
  taken->cut();
  outgoing.lose(*taken);
  for (Arrival& arrival : arrivals_) {
    if (arrival.link == taken.get()) arrival.link = nullptr;
  }
  forget_broken_arrivals();
  return taken;
}

std::vector<Link*> Connection::links() const {
  std::vector<Link*> all;
  all.reserve(links_.size());
  for (const auto& link : links_) all.push_back(link.get());
  return all;
}

LinkTraffic Connection::counted() const {
  LinkTraffic sum{.to = peer.member_id,
                  .bytes_sent = traffic.bytes_sent,
                  .busy_us = traffic.busy_us,
                  .delivered_bytes = traffic.delivered_bytes,
                  .received_bytes = traffic.bytes_received,
                  .receiving_us = traffic.receiving_us,
                  .full_us = traffic.full_us,
                  .replaced_sockets = traffic.replaced_sockets};
  uint64_t busy_us = 0;
  uint64_t full_us = 0;
  for (const auto& link : links_) {
    const LinkState now = link->state();
    busy_us = std::max(busy_us, now.busy_us);  // they are busy at the same time
    full_us = std::max(full_us, now.full_us);
    sum.delivered_bytes += now.delivered_bytes;
    sum.delivery_bytes_per_second += now.delivery_bytes_per_second;
    sum.round_trip_seconds = std::max(sum.round_trip_seconds, now.round_trip_seconds);
    sum.round_trip_seconds_min = std::max(sum.round_trip_seconds_min, now.round_trip_seconds_min);
  }
  sum.busy_us += busy_us;
  sum.full_us += full_us;
  return sum;
}

std::optional<std::string> Connection::find_numbering_fault(const FrameHeader& header) const {
  if (header.type == FrameType::Ack) {
    if (!is_numbered) return "an acknowledgement where frames have no numbers";
    if (outgoing.may_acknowledge(header.sequence)) return std::nullopt;
    return "frames below " + std::to_string(header.sequence) +
           " are acknowledged, and only those " + "below " + std::to_string(outgoing.next()) +
           " were sent";
  }
  if (!is_numbered) return std::nullopt;
  if (incoming.look(header.sequence) == ReceiveWindow::Sight::Outside) {
    return "frame " + std::to_string(header.sequence) + " comes when " +
           std::to_string(incoming.consumed()) + " is next";
  }
  for (const Arrival& arrival : arrivals_) {
    if (arrival.header.sequence != header.sequence) continue;
    // It has no padding, and every bit counts, also of a weight.
    // NOLINTNEXTLINE(bugprone-suspicious-memory-comparison)
    if (std::memcmp(&arrival.header, &header, sizeof(header)) != 0)
      return "frame " + std::to_string(header.sequence) + " comes again as another";
  }
  return std::nullopt;
}

Connection::Arrival* Connection::find_arrival(uint32_t sequence) {
  const auto found = std::find_if(
      arrivals_.begin(), arrivals_.end(),
      [sequence](const Arrival& arrival) { return arrival.header.sequence == sequence; });
  return found == arrivals_.end() ? nullptr : &*found;
}

Placement Connection::begin_arrival(const FrameHeader& header, Link& link, FrameSink& sink) {
  if (Arrival* arrival = find_arrival(header.sequence)) {
    // The sender has given that socket up, and this end has not noticed yet.
    if (arrival->link != nullptr) arrival->link->divert();
    arrival->link = &link;
    return arrival->placement;
  }
  const Placement placement = sink.place(*this, header);
  arrivals_.push_back({header, placement, &link});
  return placement;
}

bool Connection::consume(const FrameHeader& header, const Link& link, Payload& payload,
                         BufferPool& pool) {
  if (incoming.look(header.sequence) != ReceiveWindow::Sight::Fresh) {
    std::erase_if(arrivals_, [&](const Arrival& arrival) {
      return arrival.link == &link && arrival.header.sequence == header.sequence;
    });
    return false;
  }
  incoming.consume(header.sequence);
  if (Arrival* arrival = arrivals_.empty() ? nullptr : find_arrival(header.sequence)) {
    std::byte* target = arrival->placement.target;
    if (arrival->link != nullptr && arrival->link != &link) arrival->link->divert();
    if (target != nullptr && payload.data() != target) {
      std::memcpy(target, payload.data(), payload.size());
      payload = Payload(target, payload.size(), &pool);
    }
    *arrival = arrivals_.back();
    arrivals_.pop_back();
  }
  if (owed_frames_ == 0 && !ack_is_due_) ack_at_ = Clock::now() + kAckDelay;
  owed_frames_ += 1;
  owed_bytes_ += sizeof(FrameHeader) + header.length;
  ack_is_due_ |=
      owed_frames_ >= kAckFrames || owed_bytes_ >= kAckBytes || header.type == FrameType::Goodbye;
  return true;
}

void Connection::note_received(size_t bytes) {
  traffic.bytes_received += bytes;
  const TimePoint now = Clock::now();
  const double pause_max = round_trip_seconds > 0 ? round_trip_seconds : kPauseSecondsMax;
  if (now < after(received_at_, pause_max))
    traffic.receiving_us += microseconds(now - received_at_);
  received_at_ = now;
}

void Connection::prove(const SocketAddress& address) {
  const bool is_known = std::find(proven.begin(), proven.end(), address) != proven.end();
  if (!is_known && proven.size() < kHostsMax) proven.push_back(address);
}

void Connection::note_ungranted_consumed(uint32_t length) {
  ungranted_consumed_ += cost(length);
  if (ungranted_consumed_ < kUngrantedBytesMax / 8) return;
  send_control(FrameHeader{.type = FrameType::Credit, .count = ungranted_consumed_});
  ungranted_consumed_ = 0;
}

}  // namespace pccl::transport
