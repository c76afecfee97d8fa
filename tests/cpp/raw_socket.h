// A member or a stranger for tests of the transport, played by hand on a raw socket.
#pragma once

#include <doctest/doctest.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "transport/frame.h"
#include "transport/handshake.h"
#include "transport/socket.h"
#include "transport_nodes.h"

namespace pccl::transport {

// A socket used by hand, with blocking calls.
class RawSocket {
 public:
  explicit RawSocket(FileDescriptor socket) : socket_(std::move(socket)) {}
  static RawSocket connect_to(const MemberAddress& address) {
    std::string error;
    FileDescriptor socket = begin_connect(resolve(address).at(0), error);
    RawSocket raw(std::move(socket));
    raw.await(POLLOUT);
    REQUIRE(connect_error(raw.socket_.get()) == "");
    return raw;
  }
  void await(short events) {
    pollfd entry{socket_.get(), events, 0};
    REQUIRE(::poll(&entry, 1, 20000) == 1);
  }
  void send(std::span<const std::byte> bytes, std::span<const int> descriptors = {}) {
    REQUIRE(send_all(socket_.get(), bytes, descriptors));
  }
  // Sends as the other side takes it; false if that closed the connection.
  bool stream(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      await(POLLOUT);
      const ssize_t count =
          ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count < 0 && errno == EAGAIN) continue;
      if (count < 0) return false;
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
    return true;
  }
  void send(const std::string& text) { send(std::as_bytes(std::span(text))); }
  // Reads exactly `size` bytes, fewer at the end of the stream.
  Bytes read(size_t size) {
    Bytes bytes(size);
    size_t got = 0;
    while (got < size) {
      await(POLLIN);
      const ssize_t count = ::recv(socket_.get(), bytes.data() + got, size - got, MSG_DONTWAIT);
      if (count <= 0) break;
      got += static_cast<size_t>(count);
    }
    bytes.resize(got);
    return bytes;
  }
  Reply read_reply() {
    Bytes bytes = read(kHandshakePrefixBytes);
    std::string fault;
    const auto size = handshake_bytes(bytes, kReplyMagic, fault);
    REQUIRE(size);
    const Bytes body = read(*size - bytes.size());
    bytes.insert(bytes.end(), body.begin(), body.end());
    const auto reply = decode_reply(bytes);
    REQUIRE(reply);
    return *reply;
  }
  // Whether the other side's kernel gets all that was sent, soon.
  bool is_drained() {
    const TimePoint deadline = soon();
    while (socket_state(socket_.get()).is_waiting && Clock::now() < deadline) {
    }
    return !socket_state(socket_.get()).is_waiting;
  }
  bool is_closed_by_peer() { return read(1).empty(); }
  void close() { socket_.reset(); }

 private:
  FileDescriptor socket_;
};

inline std::span<const std::byte> bytes_of(const FrameHeader& header) {
  return std::as_bytes(std::span(&header, 1));
}

inline Hello hello_to(const MemberAddress& to, uint8_t own_id = 1) {
  Hello hello;
  hello.from.member_id.fill(own_id);
  hello.from.run = to.run;
  hello.from.port = 1;
  hello.from.hosts = {"127.0.0.1"};
  hello.to = to.member_id;
  hello.nonce = 77;
  return hello;
}

}  // namespace pccl::transport
