// Members for tests of the transport: an endpoint that records what comes.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "transport/endpoint.h"
#include "transport/memory_link.h"
#include "transport/socket.h"

namespace pccl::transport {

using Bytes = std::vector<std::byte>;

// For what must happen: long enough for a loaded machine under a sanitizer.
inline TimePoint soon() { return after(Clock::now(), 20); }

// Bytes that differ for each `number` and place.
inline Bytes pattern(uint32_t number, size_t size) {
  Bytes bytes(size);
  uint64_t state = number * 0x9E3779B97F4A7C15U + 1;
  for (size_t at = 0; at < size; at += sizeof(state)) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    std::memcpy(bytes.data() + at, &state, std::min(sizeof(state), size - at));
  }
  return bytes;
}

// Frame `number`: one whole transfer.
inline FrameHeader frame_header(uint32_t number, size_t size) {
  FrameHeader header;
  header.type = FrameType::Message;
  header.chunk = number;
  header.length = static_cast<uint32_t>(size);
  header.transfer_bytes = size;
  header.segment_bytes = size == 0 ? 1 : size;
  return header;
}

struct Received {
  FrameHeader header;
  Bytes payload;
};

struct Lost {
  MemberId member_id;
  Error error;
  bool has_ended = false;
};

// One member. What it records is touched by its driver only: look at it in run() and wait_for().
class Node final : public FrameSink, public FrameOwner {
 public:
  explicit Node(EndpointOptions options) : endpoint(std::move(options), *this) { endpoint.start(); }
  ~Node() override { endpoint.close(soon()); }

  // Runs `task` on the driver and waits for it.
  void run(const std::function<void()>& task) {
    std::atomic<bool> done{false};
    REQUIRE(endpoint.engine().submit(
        [&] {
          task();
          done = true;
          endpoint.engine().notify_waiters();
        },
        false));
    while (!done) endpoint.engine().wait(done, soon());
  }
  // Whether `condition`, looked at after everything that happens here, becomes true.
  bool wait_for(const std::function<bool()>& condition) {
    std::atomic<bool> done{false};
    run([&] {
      awaited_ = [&] {
        if (!condition() || done) return;
        done = true;
        endpoint.engine().notify_waiters();
      };
      awaited_();
    });
    const TimePoint deadline = soon();
    endpoint.engine().wait(done, deadline);
    run([&] { awaited_ = nullptr; });
    return done;
  }

  Connection& connection_to(const MemberAddress& peer) {
    return endpoint.connection(peer, resolve(peer));
  }
  // Sends frame `number` to `peer`; dials if need be.
  void send(const MemberAddress& peer, uint32_t number, size_t size) {
    sources.push_back(std::make_unique<Bytes>(pattern(number, size)));
    Connection& connection = connection_to(peer);
    OutFrame frame;
    frame.header = frame_header(number, size);
    frame.payload = sources.back()->data();
    frame.owner = this;
    frame.cookie = sources.size() - 1;
    connection.send(std::move(frame));
    if (connection.state == Connection::State::Idle) endpoint.dial(connection);
    endpoint.mark_unsent(connection);
  }

  Placement place(Connection& /*from*/, const FrameHeader& header) override {
    if (!places) return {};
    targets.push_back(std::make_unique<Bytes>(header.length));
    return {targets.back()->data(), this};
  }
  void on_frame(Connection& from, const FrameHeader& header, Payload payload) override {
    if (header.type == FrameType::Goodbye) {
      from.goodbye = true;
    } else {
      received.push_back({header, Bytes(payload.data(), payload.data() + payload.size())});
      if (keeps) {
        payload.keep();
        kept.push_back(std::move(payload));
      }
    }
    if (awaited_) awaited_();
  }
  void on_lost(Connection& connection, const Error& error) override {
    lost.push_back({connection.peer.member_id, error, connection.has_ended});
    if (awaited_) awaited_();
  }
  TimePoint on_time(TimePoint /*now*/) override { return TimePoint::max(); }
  void on_sent(uint64_t cookie) override {
    sources[cookie].reset();
    sent += 1;
    if (awaited_) awaited_();
  }

  // Every frame 0..count-1 is here once, with its bytes.
  bool has_all(uint32_t count) const {
    std::vector<int> seen(count, 0);
    for (const Received& frame : received) {
      if (frame.header.chunk >= count) return false;
      seen[frame.header.chunk] += 1;
      if (frame.payload != pattern(frame.header.chunk, frame.payload.size())) return false;
    }
    for (const int times : seen) {
      if (times != 1) return false;
    }
    return true;
  }

  bool places = false;  // payloads go into `targets` while they arrive
  bool keeps = false;   // payloads are kept
  std::vector<std::unique_ptr<Bytes>> sources;
  std::vector<std::unique_ptr<Bytes>> targets;
  std::vector<Payload> kept;
  std::vector<Received> received;
  std::vector<Lost> lost;
  size_t sent = 0;

 private:
  std::function<void()> awaited_;

 public:
  Endpoint endpoint;  // last: it calls the others until it is closed
};

inline EndpointOptions tcp_options(std::string host = "127.0.0.1", int sockets = 1) {
  return {.run = "test",
          .bind_host = std::move(host),
          .sockets = sockets,
          .shared_memory = false,
          .connect_timeout_seconds = 20};
}

// A member that nobody can call: as behind a router. Only its own calls, through a proxy, count.
inline EndpointOptions hidden_options(int sockets = 1, double grace_seconds = 10) {
  EndpointOptions options = tcp_options("127.0.0.1", sockets);
  options.advertise_hosts = {"127.0.0.9"};
  options.grace_seconds = grace_seconds;
  return options;
}

}  // namespace pccl::transport
