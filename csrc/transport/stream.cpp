#include "transport/stream.h"

#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>

namespace pccl::transport {
namespace {

// Of one recv: several records, and it stays in a core's cache.
constexpr size_t kReceiveBytes = 128 << 10;
// Sealed before the socket is asked to take it.
constexpr size_t kSealBytes = 256 << 10;
constexpr size_t kRecordBytes = 16 << 10;  // plain bytes of the longest record
// A refusal in plain words fits.
constexpr size_t kFirstBytesMax = 2048;

}  // namespace

void Stream::secure(std::shared_ptr<const Identity> identity, TlsSession::Role role) {
  tls_ = std::make_unique<TlsSession>(std::move(identity), role);
}

long Stream::receive_plain(std::byte* target, size_t size, std::string& error) {
  while (true) {
    const ssize_t count = ::recv(socket_.get(), target, size, MSG_DONTWAIT);
    if (count > 0) return count;
    if (count == 0) return -1;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    error = std::string("recv: ") + std::strerror(errno);
    return -1;
  }
}

long Stream::send_plain(std::span<const iovec> parts, std::string& error) {
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(parts.data());
  message.msg_iovlen = parts.size();
  while (true) {
    const ssize_t count = ::sendmsg(socket_.get(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count >= 0) return count;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    error = std::string("send: ") + std::strerror(errno);
    return -1;
  }
}

bool Stream::flush(std::string& error) {
  while (has_unsent()) {
    const std::span<const std::byte> rest = tls_->outgoing();
    const iovec part{const_cast<std::byte*>(rest.data()), rest.size()};
    const long count = send_plain({&part, 1}, error);
    if (count < 0) return false;
    if (count == 0) return true;
    tls_->drop_outgoing(static_cast<size_t>(count));
  }
  return true;
}

// Feeds the session once; false: nothing came, or `has_ended`.
bool Stream::fill(std::string& error, bool& has_ended) {
  std::array<std::byte, kReceiveBytes> bytes;
  const bool is_stranger = !tls_->is_ready();
  const size_t wanted = is_stranger ? kFirstBytesMax : bytes.size();
  const long count = receive_plain(bytes.data(), wanted, error);
  has_ended = count < 0;
  if (count <= 0) return false;
  const auto size = static_cast<size_t>(count);
  if (is_stranger) {
    handshake_bytes_ += size;
    if (handshake_bytes_ > kHandshakeBytesMax) {
      error = "TLS: more than " + std::to_string(kHandshakeBytesMax) + " bytes without a key";
      has_ended = true;
      return false;
    }
    const size_t kept = std::min(size, kFirstBytesMax - first_.size());
    first_.insert(first_.end(), bytes.begin(), bytes.begin() + static_cast<long>(kept));
  }
  tls_->feed({bytes.data(), size});
  return true;
}

int Stream::shake_hands(std::string& error) {
  while (true) {
    const bool is_whole = tls_->advance();
    std::string send_error;
    // After a failure the alert that says why.
    const bool is_flushed = flush(send_error);
    if (!is_whole || !is_flushed) {
      error = is_whole ? send_error : tls_->fault();
      return -1;
    }
    if (tls_->is_ready()) return 1;
    bool has_ended = false;
    if (fill(error, has_ended)) continue;
    return has_ended ? -1 : 0;
  }
}

long Stream::receive(std::byte* target, size_t size, std::string& error) {
  if (!tls_) return receive_plain(target, size, error);
  while (true) {
    const long count = tls_->read(target, size);
    if (count > 0) return count;
    if (!flush(error)) return -1;
    if (count < 0) {
      error = tls_->fault();
      return -1;
    }
    bool has_ended = false;
    if (!fill(error, has_ended)) return has_ended ? -1 : 0;
  }
}

long Stream::send(std::span<const iovec> parts, std::string& error) {
  if (!tls_) return send_plain(parts, error);
  if (!flush(error)) return -1;
  if (has_unsent() || !tls_->is_ready()) return 0;
  const long taken = seal(parts, error);
  return taken < 0 || !flush(error) ? -1 : taken;
}

bool Stream::send_whole(std::span<const std::byte> bytes) {
  const iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  std::string error;
  return send({&part, 1}, error) == static_cast<long>(bytes.size()) && !has_unsent();
}

// Small parts share a record.
long Stream::seal(std::span<const iovec> parts, std::string& error) {
  std::array<std::byte, kRecordBytes> record;
  size_t filled = 0;
  size_t taken = 0;
  const auto write = [&](std::span<const std::byte> plain) {
    if (tls_->write(plain)) return true;
    error = tls_->fault();
    return false;
  };
  for (const iovec& part : parts) {
    std::span<const std::byte> rest(static_cast<const std::byte*>(part.iov_base), part.iov_len);
    while (!rest.empty() && taken < kSealBytes) {
      const size_t count = std::min(rest.size(), kRecordBytes - filled);
      if (count == kRecordBytes) {
        if (!write(rest.first(count))) return -1;
      } else {
        std::memcpy(record.data() + filled, rest.data(), count);
        filled += count;
        if (filled == kRecordBytes && !write(record)) return -1;
        filled %= kRecordBytes;
      }
      rest = rest.subspan(count);
      taken += count;
    }
  }
  if (filled > 0 && !write(std::span(record).first(filled))) return -1;
  return static_cast<long>(taken);
}

}  // namespace pccl::transport
