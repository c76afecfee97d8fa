#include "transport/socket_link.h"

#include <sys/epoll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace pccl::transport {

SocketLink::SocketLink(LinkHost& host, Connection& connection, FileDescriptor socket)
    : host_(host),
      connection_(connection),
      socket_(std::move(socket)),
      staging_(std::make_unique_for_overwrite<std::byte[]>(kStagingBytes)) {
  host_.engine().add(socket_.get(), this);
}

SocketLink::~SocketLink() { cut(); }

void SocketLink::cut() {
  if (is_down_) return;
  is_down_ = true;
  host_.engine().remove(socket_.get(), this);
}

void SocketLink::stop(const Error& error) {
  if (is_down_) return;
  cut();
  host_.on_link_down(connection_, error);
}

void SocketLink::shutdown_writing() {
  if (!is_down_) ::shutdown(socket_.get(), SHUT_WR);
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

// --- sending -------------------------------------------------------------------------------------

void SocketLink::flush() {
  while (!is_down_ && writable_) {
    while (sending_.size() < kBatchFrames && queued_bytes_ < kBatchBytes) {
      if (connection_.front_frame() == nullptr) break;
      OutFrame frame = connection_.pop_frame();
      queued_bytes_ += sizeof(FrameHeader) + frame.header.length;
      sending_.push_back(std::move(frame));
    }
    if (sending_.empty()) return;
    std::array<iovec, 2 * kBatchFrames> parts;
    size_t count = 0;
    size_t skip = sent_of_front_;
    for (OutFrame& frame : sending_) {
      if (count + 2 > parts.size()) break;
      auto* header = reinterpret_cast<std::byte*>(&frame.header);
      if (skip < sizeof(FrameHeader)) parts[count++] = {header + skip, sizeof(FrameHeader) - skip};
      const size_t begin = skip < sizeof(FrameHeader) ? 0 : skip - sizeof(FrameHeader);
      const std::byte* payload = frame.payload != nullptr ? frame.payload : frame.owned.data();
      if (frame.header.length > begin) {
        parts[count++] = {const_cast<std::byte*>(payload) + begin, frame.header.length - begin};
      }
      skip = 0;
    }
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = count;
    const ssize_t sent = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0) {
      if (errno == EINTR) continue;
      if (errno == EAGAIN || errno == EWOULDBLOCK) {
        writable_ = false;
        return;
      }
      // What the peer sent before it died may still lie in the socket, an abort with the reason for
      // example.
      receive();
      stop({ErrorKind::MemberLost, std::string("send: ") + std::strerror(errno)});
      return;
    }
    drop_sent(static_cast<size_t>(sent));
  }
}

void SocketLink::drop_sent(size_t bytes) {
  connection_.traffic.bytes_sent += bytes;
  queued_bytes_ -= bytes;
  sent_of_front_ += bytes;
  while (!sending_.empty()) {
    OutFrame& front = sending_.front();
    const size_t size = sizeof(FrameHeader) + front.header.length;
    if (sent_of_front_ < size) break;
    sent_of_front_ -= size;
    FrameOwner* owner = front.owner;
    const uint64_t cookie = front.cookie;
    sending_.pop_front();
    if (owner != nullptr) owner->on_sent(cookie);
  }
}

void SocketLink::abandon(const FrameOwner* owner) {
  for (size_t i = 0; i < sending_.size(); ++i) {
    OutFrame& frame = sending_[i];
    if (frame.owner != owner) continue;
    // The bytes must still go out, for the frames behind them; they are simply not the owner's any
    // more.
    if (frame.payload != nullptr) {
      frame.owned.assign(frame.payload, frame.payload + frame.header.length);
      frame.payload = nullptr;
    }
    frame.owner = nullptr;
  }
  if (in_payload_ && placement_.owner == owner && placement_.target != nullptr) {
    buffer_ = host_.pool().take(header_.length);
    payload_ = buffer_.bytes.get();
    placement_ = {};
  }
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

// Returns the number of bytes, 0 when there are none for now, -1 after stop().
static ssize_t receive_some(int socket, std::byte* target, size_t size, Error& error) {
  while (true) {
    const ssize_t count = ::recv(socket, target, size, MSG_DONTWAIT);
    if (count > 0) return count;
    if (count == 0) return -1;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    error = {ErrorKind::MemberLost, std::string("recv: ") + std::strerror(errno)};
    return -1;
  }
}

bool SocketLink::receive_payload() {
  const size_t wanted = header_.length - payload_received_;
  Error error;
  const ssize_t count = receive_some(socket_.get(), payload_ + payload_received_, wanted, error);
  if (count < 0) stop(error);
  if (count <= 0) return false;
  connection_.traffic.bytes_received += static_cast<uint64_t>(count);
  payload_received_ += static_cast<size_t>(count);
  if (payload_received_ == header_.length) {
    finish_payload();
    return true;
  }
  // Edge-triggered: a short read means that the socket is empty, unless the peer closed it.
  return static_cast<size_t>(count) == wanted || peer_closed_;
}

bool SocketLink::receive_staging() {
  const size_t room = kStagingBytes - staging_end_;
  Error error;
  const ssize_t count = receive_some(socket_.get(), staging_.get() + staging_end_, room, error);
  if (count < 0) stop(error);
  if (count <= 0) return false;
  connection_.traffic.bytes_received += static_cast<uint64_t>(count);
  staging_end_ += static_cast<size_t>(count);
  parse_staging();
  return static_cast<size_t>(count) == room || peer_closed_ || in_payload_;
}

void SocketLink::parse_staging() {
  while (!is_down_ && !in_payload_ && staging_end_ - staging_begin_ >= sizeof(FrameHeader)) {
    FrameHeader header;
    std::memcpy(&header, staging_.get() + staging_begin_, sizeof(header));
    if (const auto fault = find_fault(header)) {
      host_.on_bad_frame(connection_, *fault);
      stop({ErrorKind::RemoteProtocol, *fault});
      return;
    }
    const size_t available = staging_end_ - staging_begin_ - sizeof(header);
    if (available >= header.length) {
      const std::byte* data = staging_.get() + staging_begin_ + sizeof(header);
      staging_begin_ += sizeof(header) + header.length;
      host_.sink().on_frame(connection_, header, Payload(data, header.length, &host_.pool()));
      continue;
    }
    staging_begin_ += sizeof(header);
    begin_payload(header, available);
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
  placement_ = host_.sink().place(connection_, header);
  if (placement_.target == nullptr) buffer_ = host_.pool().take(header.length);
  payload_ = placement_.target != nullptr ? placement_.target : buffer_.bytes.get();
  std::memcpy(payload_, staging_.get() + staging_begin_, available);
  payload_received_ = available;
  staging_begin_ = staging_end_;
}

void SocketLink::finish_payload() {
  in_payload_ = false;
  Payload payload = buffer_.bytes ? Payload(std::move(buffer_), header_.length, &host_.pool())
                                  : Payload(payload_, header_.length, &host_.pool());
  buffer_ = {};
  placement_ = {};
  host_.sink().on_frame(connection_, header_, std::move(payload));
}

}  // namespace pccl::transport
