// What is asked of the kernel for one TCP socket, over loopback.
#include "transport/socket.h"

#include <doctest/doctest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>

#include <cstddef>
#include <vector>

using namespace pccl;
using namespace pccl::transport;

namespace {

struct SocketPair {
  SocketPair() {
    const FileDescriptor listener = listen_tcp("127.0.0.1", 0);
    sockaddr_in address{};
    socklen_t length = sizeof(address);
    REQUIRE(getsockname(listener.get(), reinterpret_cast<sockaddr*>(&address), &length) == 0);
    sender = FileDescriptor(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::connect(sender.get(), reinterpret_cast<sockaddr*>(&address), length) == 0);
    pollfd entry{listener.get(), POLLIN, 0};
    REQUIRE(::poll(&entry, 1, 10000) == 1);
    receiver = FileDescriptor(::accept(listener.get(), nullptr, nullptr));
    REQUIRE(receiver.get() >= 0);
  }

  // Sends and reads `bytes`, the same value in each; false if others arrive.
  bool move(size_t bytes, std::byte value) const {
    std::vector<std::byte> part(64 << 10, value);
    std::vector<std::byte> read(part.size());
    for (size_t moved = 0; moved < bytes; moved += part.size()) {
      if (::send(sender.get(), part.data(), part.size(), MSG_NOSIGNAL) !=
          static_cast<ssize_t>(part.size()))
        return false;
      if (::recv(receiver.get(), read.data(), read.size(), MSG_WAITALL) !=
              static_cast<ssize_t>(read.size()) ||
          read != part)
        return false;
    }
    return true;
  }

  FileDescriptor sender;
  FileDescriptor receiver;
};

}  // namespace

TEST_CASE("BBR begins anew on a socket with bytes under way, and none is lost") {
  const SocketPair pair;
  if (!set_congestion_control(pair.sender.get(), "bbr")) {
    MESSAGE("this kernel has no BBR for this process: nothing to renew");
    CHECK_FALSE(renew_bbr(pair.sender.get()));
    return;
  }
  for (int part = 0; part < 10; ++part) {
    REQUIRE(pair.move(1 << 20, std::byte(part)));
    const std::vector<std::byte> waiting(1000, std::byte{7});
    REQUIRE(::send(pair.sender.get(), waiting.data(), waiting.size(), 0) == 1000);
    CHECK(renew_bbr(pair.sender.get()));
    CHECK(congestion_control(pair.sender.get()) == "bbr");
    const SocketState state = socket_state(pair.sender.get());
    CHECK(state.is_ramping);
    CHECK(state.bbr_bytes_per_second == 0);
    std::vector<std::byte> read(1000);
    REQUIRE(::recv(pair.receiver.get(), read.data(), read.size(), MSG_WAITALL) == 1000);
    CHECK(read == waiting);
  }
}

TEST_CASE("another congestion control than BBR has no rate of its own") {
  const SocketPair pair;
  REQUIRE(set_congestion_control(pair.sender.get(), "reno"));
  REQUIRE(pair.move(1 << 20, std::byte{1}));
  const SocketState state = socket_state(pair.sender.get());
  CHECK_FALSE(state.is_ramping);
  CHECK(state.bbr_bytes_per_second == 0);
  CHECK(state.bytes_acknowledged > 0);
}
