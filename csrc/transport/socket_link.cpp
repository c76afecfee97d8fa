#include "transport/socket_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>

#include "transport/socket.h"

namespace pccl::transport {

SocketLink::SocketLink(LinkHost& host, Connection& connection, Stream stream, bool renews_bbr)
    : host_(host),
      connection_(connection),
      stream_(std::move(stream)),
      renews_bbr_(renews_bbr),
      staging_(std::make_unique_for_overwrite<std::byte[]>(kStagingBytes)) {
  host_.engine().add(stream_.get(), this);
  // What came behind the handshake may be in the stream already.
  if (stream_.is_secure()) host_.engine().again(this);
}

SocketLink::~SocketLink() { cut(); }

void SocketLink::cut() {
  if (is_down_) return;
  const LinkState last = state();
  connection_.traffic.busy_us += last.busy_us;
  connection_.traffic.full_us += last.full_us;
  connection_.traffic.delivered_bytes += last.delivered_bytes;
  is_down_ = true;
  host_.engine().remove(stream_.get(), this);
  if (sent_of_front_ > 0) sending_.front()->was_begun = true;
  // The connection's window has them.
  sending_.clear();
  sent_of_front_ = 0;
  queued_bytes_ = 0;
  ack_left_ = 0;
}

void SocketLink::stop(const Error& error) {
  if (is_down_) return;
  cut();
  host_.on_link_down(connection_, *this, error);
}

void SocketLink::shutdown_writing() {
  if (is_down_ || is_shut_) return;
  is_shut_ = true;
  ::shutdown(stream_.get(), SHUT_WR);
}

void SocketLink::on_events(uint32_t epoll_events) {
  if ((epoll_events & EPOLLOUT) != 0) writable_ = true;
  if ((epoll_events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) peer_closed_ = true;
  if ((epoll_events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0) receive();
  if (!is_down_ && writable_) flush();
}

void SocketLink::on_turn() {
  receive();
  if (!is_down_ && writable_) flush();  // answers that receiving has queued
}

LinkState SocketLink::state() const {
  const SocketState now = socket_state(stream_.get());
  return {now.busy_us,
          full_us(Clock::now()),
          now.bytes_acknowledged,
          now.round_trip_seconds,
          now.round_trip_seconds_min,
          now.delivery_bytes_per_second,
          now.window_limited_us,
          now.buffer_limited_us,
          now.buffer_bytes,
          now.sent_segments,
          now.resent_segments};
}

std::string SocketLink::congestion_control() const {
  return transport::congestion_control(stream_.get());
}

bool SocketLink::set_congestion_control(const std::string& name) {
  return transport::set_congestion_control(stream_.get(), name);
}

// --- sending -------------------------------------------------------------------------------------

void SocketLink::flush() {
  write();
  if (has_unsent() == full_since_.has_value()) return;
  const TimePoint now = Clock::now();
  full_us_ = full_us(now);
  full_since_ = full_since_ ? std::nullopt : std::optional(now);
}

uint64_t SocketLink::full_us(TimePoint now) const {
  if (!full_since_) return full_us_;
  const auto spent = std::chrono::duration_cast<std::chrono::microseconds>(now - *full_since_);
  return full_us_ + static_cast<uint64_t>(spent.count());
}

void SocketLink::write() {
  while (!is_down_ && !is_shut_ && writable_) {
    while (sending_.size() < kBatchFrames && queued_bytes_ < kBatchBytes) {
      SentFrame* sent = connection_.take_frame(*this);
      if (sent == nullptr) break;
      queued_bytes_ += sizeof(FrameHeader) + sent->frame.header.length;
      sending_.push_back(sent);
    }
    if (ack_left_ == 0 && sent_of_front_ == 0) {
      if (const auto ack = connection_.take_ack(!sending_.empty())) {
        ack_ = *ack;
        ack_left_ = sizeof(ack_);
      }
    }
    if (!has_unsent()) return;
    std::array<iovec, 2 * kBatchFrames + 1> parts;
    const size_t count = gather(parts);
    std::string reason;
    const long sent = stream_.send(std::span(parts).first(count), reason);
    if (sent < 0) {
      // What the peer sent before it died may still lie in the socket, an abort with the reason for
      // example.
      receive();
      stop({ErrorKind::MemberLost, reason});
      return;
    }
    if (stream_.has_unsent() || (sent == 0 && count > 0)) writable_ = false;
    drop_sent(static_cast<size_t>(sent));
  }
}

size_t SocketLink::gather(std::span<iovec> parts) {
  size_t count = 0;
  if (ack_left_ > 0) {
    auto* end = reinterpret_cast<std::byte*>(&ack_ + 1);
    parts[count++] = {end - ack_left_, ack_left_};
  }
  size_t skip = sent_of_front_;
  for (SentFrame* sent : sending_) {
    if (count + 2 > parts.size()) break;
    OutFrame& frame = sent->frame;
    auto* header = reinterpret_cast<std::byte*>(&frame.header);
    if (skip < sizeof(FrameHeader)) parts[count++] = {header + skip, sizeof(FrameHeader) - skip};
    const size_t begin = skip < sizeof(FrameHeader) ? 0 : skip - sizeof(FrameHeader);
    if (frame.header.length > begin) {
      parts[count++] = {const_cast<std::byte*>(frame.bytes()) + begin, frame.header.length - begin};
    }
    skip = 0;
  }
  return count;
}

void SocketLink::drop_sent(size_t bytes) {
  connection_.traffic.bytes_sent += bytes;
  const size_t of_ack = std::min(bytes, ack_left_);
  ack_left_ -= of_ack;
  bytes -= of_ack;
  queued_bytes_ -= bytes;
  sent_of_front_ += bytes;
  while (!sending_.empty()) {
    SentFrame& front = *sending_.front();
    const size_t size = sizeof(FrameHeader) + front.frame.header.length;
    if (sent_of_front_ < size) break;
    sent_of_front_ -= size;
    sending_.pop_front();
    connection_.on_written(front);
  }
}

void SocketLink::abandon(const FrameOwner* owner) {
  if (in_payload_ && placement_.owner == owner) divert();
}

void SocketLink::divert() {
  if (!in_payload_ || placement_.target == nullptr) return;
  buffer_ = host_.pool().take(header_.length);
  std::memcpy(buffer_.bytes.get(), payload_, payload_received_);
  payload_ = buffer_.bytes.get();
  placement_ = {};
}

// A silence of this many round trips while something is under way, within these bounds, is an
// outage. The kernel would wait longer and longer before it tries again.
constexpr double kSilentRoundTrips = 10;
constexpr double kSilentSecondsMin = 1;
constexpr double kSilentSecondsMax = 5;

void SocketLink::watch(TimePoint now) {
  const SocketState state = socket_state(stream_.get());
  connection_.round_trip_seconds = state.round_trip_seconds;
  bytes_acknowledged_ = state.bytes_acknowledged;
  bound_unsent(state);
  pace(state, now);
  const std::chrono::duration<double> between = now - watched_at_;
  const bool was_watched = watched_at_ != TimePoint{} && between.count() < 2 * kSilentSecondsMin;
  watched_at_ = now;
  if (!state.is_waiting || !was_watched || state.heard_seconds < between.count()) {
    is_quiet_ = false;
    return;
  }
  if (!is_quiet_) quiet_since_ = now;
  is_quiet_ = true;
  const double round_trip = state.round_trip_seconds + 4 * state.deviation_seconds;
  const double seconds_max =
      std::clamp(kSilentRoundTrips * round_trip, kSilentSecondsMin, kSilentSecondsMax);
  const std::chrono::duration<double> quiet = now - quiet_since_;
  if (quiet.count() < seconds_max) return;
  char text[64];
  std::snprintf(text, sizeof(text), "no acknowledgement for %.1f s", quiet.count());
  stop({ErrorKind::MemberLost, text});
}

// What the kernel may take beyond what it sends is for so long; what comes behind it waits.
constexpr double kUnsentSeconds = 0.03;
constexpr double kUnsentBytesMin = 64 << 10;
// Before so much is delivered the rate is none.
constexpr uint64_t kUnsentKnownBytes = 1 << 20;
// Smaller changes are not worth a system call.
constexpr uint32_t kUnsentStep = 4;  // of its parts

void SocketLink::bound_unsent(const SocketState& state) {
  if (state.delivered_bytes < kUnsentKnownBytes) return;
  const auto wanted = static_cast<uint32_t>(std::clamp(
      kUnsentSeconds * state.delivery_bytes_per_second, kUnsentBytesMin, double{kUnsentBytesMax}));
  const uint32_t step = unsent_max_ / kUnsentStep;
  if (wanted >= unsent_max_ - step && wanted <= unsent_max_ + step) return;
  if (set_unsent_max(stream_.get(), wanted)) unsent_max_ = wanted;
}

void SocketLink::pace(const SocketState& state, TimePoint now) {
  PaceSight sight{.now = now,
                  .has_more = has_unsent(),
                  .is_ramping = state.is_ramping,
                  .is_recovering = state.is_recovering,
                  .found_rate = state.bbr_bytes_per_second,
                  .delivered_bytes = state.delivered_bytes,
                  .round_trip_seconds = state.round_trip_seconds,
                  .round_trip_seconds_min = state.round_trip_seconds_min};
  const bool begins_anew = renews_bbr_ && pacing_.begins_anew(sight);
  sight.is_ramping = sight.is_ramping || begins_anew;
  const uint64_t pace = pacing_.look(sight);
  if (pace != pace_ && set_pacing(stream_.get(), pace)) pace_ = pace;
  // Paced before: it begins by sending as fast as it may.
  if (begins_anew && pace == pace_) renews_bbr_ = renew_bbr(stream_.get());
}

// --- receiving -----------------------------------------------------------------------------------

void SocketLink::receive() {
  const uint64_t before = connection_.traffic.bytes_received;
  while (!is_down_) {
    if (connection_.traffic.bytes_received - before > kTurnBytes) {
      host_.engine().again(this);
      return;
    }
    if (!(in_payload_ ? receive_payload() : receive_staging())) return;
  }
}

// Bytes into `target`; 0 when there are none for now, -1 after stop().
long SocketLink::receive_some(std::byte* target, size_t size) {
  std::string reason;
  const long count = stream_.receive(target, size, reason);
  if (count < 0) stop(reason.empty() ? Error{} : Error{ErrorKind::MemberLost, reason});
  return count;
}

// Edge-triggered: a short read means that the socket is empty, unless the peer closed it. With TLS
// it only means the end of a record.
bool SocketLink::has_more(long count, size_t wanted) const {
  return static_cast<size_t>(count) == wanted || peer_closed_ || stream_.is_secure();
}

bool SocketLink::receive_payload() {
  const size_t wanted = header_.length - payload_received_;
  const long count = receive_some(payload_ + payload_received_, wanted);
  if (count <= 0) return false;
  connection_.note_received(static_cast<size_t>(count));
  payload_received_ += static_cast<size_t>(count);
  if (payload_received_ == header_.length) {
    finish_payload();
    return true;
  }
  return has_more(count, wanted);
}

bool SocketLink::receive_staging() {
  const size_t room = kStagingBytes - staging_end_;
  const long count = receive_some(staging_.get() + staging_end_, room);
  if (count <= 0) return false;
  connection_.note_received(static_cast<size_t>(count));
  staging_end_ += static_cast<size_t>(count);
  parse_staging();
  return has_more(count, room) || in_payload_;
}

void SocketLink::fail(const std::string& fault) {
  host_.on_bad_frame(connection_, fault);
  stop({ErrorKind::RemoteProtocol, fault});
}

void SocketLink::parse_staging() {
  while (!is_down_ && !in_payload_ && staging_end_ - staging_begin_ >= sizeof(FrameHeader)) {
    FrameHeader header;
    std::memcpy(&header, staging_.get() + staging_begin_, sizeof(header));
    auto fault = find_fault(header);
    if (!fault) fault = connection_.find_numbering_fault(header);
    if (fault) {
      fail(*fault);
      return;
    }
    const size_t available = staging_end_ - staging_begin_ - sizeof(header);
    if (header.type == FrameType::Ack) {
      staging_begin_ += sizeof(header);
      const bool was_full = !connection_.outgoing.has_room();
      connection_.outgoing.acknowledge(header.sequence);
      if (was_full) host_.mark_unsent(connection_);
    } else if (available >= header.length) {
      const std::byte* data = staging_.get() + staging_begin_ + sizeof(header);
      staging_begin_ += sizeof(header) + header.length;
      deliver(header, Payload(data, header.length, &host_.pool()));
    } else {
      staging_begin_ += sizeof(header);
      begin_payload(header, available);
    }
  }
  const size_t rest = staging_end_ - staging_begin_;
  if (rest > 0 && staging_begin_ > 0)
    std::memmove(staging_.get(), staging_.get() + staging_begin_, rest);
  staging_begin_ = 0;
  staging_end_ = rest;
}

void SocketLink::begin_payload(const FrameHeader& header, size_t available) {
  header_ = header;
  in_payload_ = true;
  const bool is_fresh = connection_.incoming.look(header.sequence) == ReceiveWindow::Sight::Fresh;
  placement_ = {};
  if (!connection_.is_numbered) {
    placement_ = host_.sink().place(connection_, header);
  } else if (is_fresh) {
    placement_ = connection_.begin_arrival(header, *this, host_.sink());
  }
  if (placement_.target == nullptr) buffer_ = host_.pool().take(header.length);
  payload_ = placement_.target != nullptr ? placement_.target : buffer_.bytes.get();
  std::memcpy(payload_, staging_.get() + staging_begin_, available);
  payload_received_ = available;
  staging_begin_ = staging_end_;
}

void SocketLink::finish_payload() {
  Payload payload = buffer_.bytes ? Payload(std::move(buffer_), header_.length, &host_.pool())
                                  : Payload(payload_, header_.length, &host_.pool());
  buffer_ = {};
  placement_ = {};
  in_payload_ = false;
  deliver(header_, std::move(payload));
}

void SocketLink::deliver(const FrameHeader& header, Payload payload) {
  if (connection_.is_numbered) {
    const bool was_owed = connection_.ack_at() != TimePoint::max();
    if (!connection_.consume(header, *this, payload, host_.pool())) return;
    if (connection_.is_ack_due()) {
      host_.mark_unsent(connection_);
    } else if (!was_owed) {
      host_.engine().wake_at(connection_.ack_at());
    }
  }
  host_.sink().on_frame(connection_, header, std::move(payload));
}

}  // namespace pccl::transport
