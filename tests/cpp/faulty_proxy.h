// A TCP proxy that is a bad network: it forwards, resets, half-closes and stalls.
//
// Each call goes on from a new port, as through a router that has forgotten the call before.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "base/file_descriptor.h"
#include "transport/address.h"
#include "transport/socket.h"

namespace pccl::transport {

class FaultyProxy {
 public:
  FaultyProxy(const MemberAddress& target, uint32_t seed)
      : target_(resolve("127.0.0.1", target.port).at(0)),
        random_(seed),
        listener_(listen_tcp("127.0.0.1", 0)),
        bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        port_(local_port(listener_.get())),
        thread_([this] { run(); }) {}
  ~FaultyProxy() {
    is_over_ = true;
    ring();
    thread_.join();
  }

  // `member`, as it is reached through here.
  MemberAddress disguise(MemberAddress member) const {
    member.hosts = {"127.0.0.1"};
    member.port = port_;
    member.memory_name.clear();
    return member;
  }
  // From now on, `count` times: a call is reset when about `mean_bytes` have passed, wherever that
  // is in a frame.
  void reset_often(int count, uint32_t mean_bytes) {
    mean_bytes_ = mean_bytes;
    resets_left_ = count;
    reset_now();
  }
  void reset_now() { command(Command::Reset); }       // every call
  void reset_one() { command(Command::ResetOne); }    // the oldest
  void half_close() { command(Command::HalfClose); }  // towards the caller, of every call
  void stall(bool is_stalled) { is_stalled_ = is_stalled, ring(); }  // nothing passes, nobody knows
  // Calls are taken, and reset at once.
  void lock_out(bool is_locked) { is_locked_ = is_locked, ring(); }
  int resets() const { return resets_; }
  int calls() const { return calls_; }

 private:
  enum class Command : uint8_t { None, Reset, ResetOne, HalfClose };
  struct Way {
    std::vector<std::byte> bytes;  // read, not yet written
    bool is_ended = false;         // the reading end closed
    bool is_shut = false;          // and the other one was told
  };
  struct Call {
    std::array<FileDescriptor, 2> ends;  // caller, target
    std::array<Way, 2> ways;             // from the caller, from the target
    uint64_t budget = UINT64_MAX;        // bytes until it is reset
  };

  void ring() {
    const uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = ::write(bell_.get(), &one, sizeof(one));
  }
  void command(Command command) {
    command_ = command;
    ring();
    // One at a time; the thread is never far.
    while (command_ != Command::None && !is_over_) std::this_thread::yield();
  }
  static void reset(FileDescriptor& socket) {
    const linger now{1, 0};
    setsockopt(socket.get(), SOL_SOCKET, SO_LINGER, &now, sizeof(now));
    socket.reset();
  }
  void end(Call& call) {
    for (FileDescriptor& socket : call.ends) reset(socket);
    resets_ += 1;
  }

  void run() {
    while (!is_over_) {
      std::vector<pollfd> entries = {{bell_.get(), POLLIN, 0}, {listener_.get(), POLLIN, 0}};
      for (const auto& call : calls_now_) {
        for (size_t end = 0; end < 2; ++end) {
          const bool has_room = call->ways[end].bytes.empty() && !call->ways[end].is_ended;
          const bool has_bytes = !call->ways[1 - end].bytes.empty();
          const int events = is_stalled_ ? 0 : (has_room ? POLLIN : 0) | (has_bytes ? POLLOUT : 0);
          entries.push_back({call->ends[end].get(), static_cast<short>(events), 0});
        }
      }
      if (is_stalled_) entries.resize(1);
      ::poll(entries.data(), entries.size(), 100);
      uint64_t rung = 0;
      [[maybe_unused]] const ssize_t read = ::read(bell_.get(), &rung, sizeof(rung));
      obey();
      if (is_stalled_) continue;
      accept();
      for (auto& call : calls_now_) forward(*call);
      std::erase_if(calls_now_, [](const auto& call) { return !call->ends[0] || !call->ends[1]; });
    }
  }
  void obey() {
    const Command command = command_;
    for (auto& call : calls_now_) {
      if (command == Command::HalfClose) ::shutdown(call->ends[0].get(), SHUT_WR);
      if (command == Command::Reset || command == Command::ResetOne) end(*call);
      if (command == Command::ResetOne) break;
    }
    std::erase_if(calls_now_, [](const auto& call) { return !call->ends[0]; });
    if (command != Command::None) command_ = Command::None;
  }
  void accept() {
    while (true) {
      FileDescriptor caller(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!caller) return;
      calls_ += 1;
      if (is_locked_) {
        reset(caller);
        continue;
      }
      FileDescriptor callee(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const auto* address = reinterpret_cast<const sockaddr*>(&target_.storage);
      if (::connect(callee.get(), address, target_.length) != 0) {
        reset(caller);
        continue;
      }
      auto call = std::make_unique<Call>();
      for (const int socket : {caller.get(), callee.get()}) {
        ::fcntl(socket, F_SETFL, ::fcntl(socket, F_GETFL) | O_NONBLOCK);
        set_stream_options(socket);
      }
      call->ends = {std::move(caller), std::move(callee)};
      if (resets_left_ > 0) {
        resets_left_ -= 1;
        call->budget = 1 + random_() % (2 * mean_bytes_);
      }
      calls_now_.push_back(std::move(call));
    }
  }
  void forward(Call& call) {
    for (size_t from = 0; from < 2 && call.ends[0]; ++from) {
      Way& way = call.ways[from];
      if (way.bytes.empty() && !way.is_ended) {
        way.bytes.resize(std::min<uint64_t>(call.budget, 64 << 10));
        const ssize_t got =
            ::recv(call.ends[from].get(), way.bytes.data(), way.bytes.size(), MSG_DONTWAIT);
        way.bytes.resize(got > 0 ? static_cast<size_t>(got) : 0);
        way.is_ended = got == 0 || (got < 0 && errno != EAGAIN);
        call.budget -= way.bytes.size();
      }
      const ssize_t put = ::send(call.ends[1 - from].get(), way.bytes.data(), way.bytes.size(),
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
      if (put > 0) way.bytes.erase(way.bytes.begin(), way.bytes.begin() + put);
      if (way.is_ended && way.bytes.empty() && !way.is_shut) {
        way.is_shut = true;
        ::shutdown(call.ends[1 - from].get(), SHUT_WR);
      }
      const bool is_lost = put < 0 && errno != EAGAIN;
      if (is_lost || (call.budget == 0 && way.bytes.empty())) {
        end(call);
        return;
      }
    }
    if (call.ways[0].is_shut && call.ways[1].is_shut) call.ends[0].reset();
  }

  const SocketAddress target_;
  std::mt19937 random_;
  FileDescriptor listener_;
  FileDescriptor bell_;
  const uint16_t port_;
  std::atomic<bool> is_over_{false};
  std::atomic<bool> is_stalled_{false};
  std::atomic<bool> is_locked_{false};
  std::atomic<Command> command_{Command::None};
  std::atomic<uint32_t> mean_bytes_{1};
  std::atomic<int> resets_left_{0};
  std::atomic<int> resets_{0};
  std::atomic<int> calls_{0};
  std::vector<std::unique_ptr<Call>> calls_now_;
  std::thread thread_;
};

}  // namespace pccl::transport
