// The bytes of one socket, plain or through TLS: what handshakes and links read and write.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "transport/tls_session.h"

namespace pccl::transport {

class Stream {
 public:
  // Bytes from a side that has not proved its key: two flights of TLS have less than 2 KiB.
  static constexpr size_t kHandshakeBytesMax = 16 << 10;

  Stream() = default;
  explicit Stream(FileDescriptor socket) : socket_(std::move(socket)) {}

  // From here on everything goes through TLS.
  void secure(std::shared_ptr<const Identity> identity, TlsSession::Role role);
  bool is_secure() const { return tls_ != nullptr; }
  // Requires: is_secure().
  const TlsSession& tls() const { return *tls_; }
  // Goes on with TLS's handshake: 1 done, 0 waits for the other side, -1 failed.
  int shake_hands(std::string& error);
  // The first that came from a side that did not speak TLS.
  std::span<const std::byte> first_bytes() const { return first_; }

  int get() const { return socket_.get(); }
  explicit operator bool() const { return static_cast<bool>(socket_); }
  void reset() { *this = Stream(); }
  FileDescriptor release() { return std::move(socket_); }

  // >0: bytes; 0: none for now; -1: the end, or a failure if `error` says so.
  long receive(std::byte* target, size_t size, std::string& error);
  // How many bytes of `parts` it took; -1: a failure. With TLS it has sealed what it took, and may
  // keep some of it: see has_unsent().
  long send(std::span<const iovec> parts, std::string& error);
  // All of `bytes`, a handshake message, which fits into an empty socket; false: it did not.
  bool send_whole(std::span<const std::byte> bytes);
  // Sealed bytes that the socket did not take; send() goes on with them.
  bool has_unsent() const { return tls_ != nullptr && !tls_->outgoing().empty(); }

 private:
  long receive_plain(std::byte* target, size_t size, std::string& error);
  long send_plain(std::span<const iovec> parts, std::string& error);
  bool fill(std::string& error, bool& has_ended);
  bool flush(std::string& error);
  long seal(std::span<const iovec> parts, std::string& error);

  FileDescriptor socket_;
  std::unique_ptr<TlsSession> tls_;
  size_t handshake_bytes_ = 0;  // received
  std::vector<std::byte> first_;
};

}  // namespace pccl::transport
