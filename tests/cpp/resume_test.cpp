// A connection outlives its sockets: whatever breaks on the way, every frame comes once, and whole.
#include <doctest/doctest.h>
#include <signal.h>

#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "child_process.h"
#include "communicator.h"
#include "faulty_proxy.h"
#include "share.h"
#include "transport_nodes.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

// Two members with a bad network between them; `a` has called `b`.
struct Pair {
  explicit Pair(const EndpointOptions& options, uint32_t seed = 1)
      : a(options), b(options), proxy(b.endpoint.address(), seed) {
    b_seen = proxy.disguise(b.endpoint.address());
    // Over TLS only who is known is welcome.
    if (options.tls == TlsUse::Always) b.run([this] { b.connection_to(a.endpoint.address()); });
    a.run([this] { a.send(b_seen, 0, 1); });
    REQUIRE(b.wait_for([this] { return b.received.size() == 1; }));
    b.run([this] { b.send(a.endpoint.address(), 0, 1); });
    REQUIRE(a.wait_for([this] { return a.received.size() == 1; }));
  }
  // While there is a network.
  ~Pair() {
    a.endpoint.close(soon());
    b.endpoint.close(soon());
  }
  void send_both_ways(uint32_t first, uint32_t last, const std::vector<size_t>& sizes) {
    a.run([&] {
      for (uint32_t i = first; i < last; ++i) a.send(b_seen, i, sizes[i % sizes.size()]);
    });
    b.run([&] {
      for (uint32_t i = first; i < last; ++i)
        b.send(a.endpoint.address(), i, sizes[(i * 7) % sizes.size()]);
    });
  }
  void expect_all(uint32_t count) {
    for (Node* node : {&a, &b}) {
      CHECK(node->wait_for([&] { return node->received.size() >= count && node->sent == count; }));
      node->run([&] {
        CHECK(node->has_all(count));
        CHECK(node->lost.empty());
      });
    }
  }
  Connection& from_a() { return a.connection_to(b_seen); }

  Node a;
  Node b;
  FaultyProxy proxy;
  MemberAddress b_seen;
};

const std::vector<size_t> kSizes = {0, 1, 997, 65456, 65457, 200'003, kPayloadBytesMax};

double seconds_since(TimePoint begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace

TEST_CASE("every frame comes once and whole though sockets are reset at random bytes") {
  for (const int sockets : {1, 3}) {
    for (const bool places : {false, true}) {
      for (const uint32_t mean_bytes : {3'000U, 400'000U}) {
        const bool is_secure = sockets == 3 || places;
        const uint32_t seed = std::random_device{}();
        CAPTURE(sockets);
        CAPTURE(places);
        CAPTURE(mean_bytes);
        CAPTURE(seed);
        EndpointOptions options = hidden_options(sockets);
        if (is_secure) options.tls = TlsUse::Always;
        Pair pair(options, seed);
        pair.a.run([&] { pair.a.places = places; });
        pair.b.run([&] { pair.b.places = places; });
        constexpr int kResets = 40;
        pair.proxy.reset_often(kResets, mean_bytes);
        const std::vector<size_t> small = {0, 1, 64, 997, 2000};
        uint32_t count = 1;
        // Until all resets are used up.
        const TimePoint deadline = soon();
        while (pair.proxy.resets() < kResets && Clock::now() < deadline) {
          pair.send_both_ways(count, count + 50, mean_bytes < 10'000 ? small : kSizes);
          count += 50;
          pair.expect_all(count);
        }
        CHECK(pair.proxy.resets() >= kResets);
        const Statistics statistics = pair.a.endpoint.statistics();
        CHECK(statistics.resent_frames > 0);
        CHECK(statistics.resent_bytes >= statistics.resent_frames * sizeof(FrameHeader));
        CHECK((sockets > 1 || statistics.resumed_connections > 0));
        CHECK(statistics.connections == 1);
        CHECK((statistics.secure_sockets > 0) == is_secure);
      }
    }
  }
}

TEST_CASE("one of three sockets dies: the others carry what it had, and it is replaced") {
  Pair pair(hidden_options(3));
  const TimePoint deadline = soon();
  const auto links = [&] {
    size_t count = 0;
    pair.a.run([&] { count = pair.from_a().link_count(); });
    return count;
  };
  while (links() < 3 && Clock::now() < deadline) {
  }
  uint32_t count = 1;
  for (int round = 0; round < 10; ++round) {
    pair.send_both_ways(count, count + 30, kSizes);
    pair.proxy.reset_one();
    count += 30;
    pair.expect_all(count);
  }
  while (links() < 3 && Clock::now() < deadline) {
  }
  CHECK(links() == 3);
  CHECK(pair.a.endpoint.statistics().replaced_sockets >= 10);
  CHECK(pair.a.endpoint.statistics().resumed_connections == 0);
}

TEST_CASE("a socket that is closed in one direction only is replaced") {
  Pair pair(hidden_options());
  uint32_t count = 1;
  for (int round = 0; round < 5; ++round) {
    pair.proxy.half_close();
    pair.send_both_ways(count, count + 20, kSizes);
    count += 20;
    pair.expect_all(count);
  }
}

TEST_CASE("both sides may call again, at the same time") {
  // Both can be called; both notice.
  Pair pair(tcp_options("127.0.0.1", 2));
  uint32_t count = 1;
  pair.proxy.reset_now();
  for (int round = 0; round < 20; ++round) {
    pair.send_both_ways(count, count + 5, kSizes);
    pair.proxy.reset_now();
    count += 5;
    pair.expect_all(count);
  }
}

TEST_CASE("small frames do not wait for the receiver's acknowledgement, and little is kept") {
  Pair pair(hidden_options());
  pair.send_both_ways(1, 20'000, {0, 1, 5});
  pair.expect_all(20'000);
  // An acknowledgement is no event that wait_for() hears of.
  bool is_acknowledged = false;
  for (const TimePoint deadline = soon(); !is_acknowledged && Clock::now() < deadline;)
    pair.a.run([&] { is_acknowledged = !pair.from_a().outgoing.has_unacknowledged(); });
  CHECK(is_acknowledged);
  CHECK(pair.a.endpoint.statistics().resent_frames == 0);
}

TEST_CASE("who leaves while its socket breaks has still sent everything") {
  for (int round = 0; round < 10; ++round) {
    CAPTURE(round);
    Node b(hidden_options());
    uint32_t count = 20;
    FaultyProxy proxy(b.endpoint.address(), static_cast<uint32_t>(round));
    {
      Node a(hidden_options());
      proxy.reset_often(3, 2'000'000);
      a.run([&] {
        for (uint32_t i = 0; i < count; ++i)
          a.send(proxy.disguise(b.endpoint.address()), i, kPayloadBytesMax / 2);
      });
      REQUIRE(b.wait_for([&] { return !b.received.empty(); }));
    }
    CHECK(b.wait_for([&] { return !b.lost.empty(); }));
    b.run([&] {
      CHECK(b.has_all(count));
      REQUIRE(b.lost.size() == 1);
      CHECK_MESSAGE(!b.lost[0].error, b.lost[0].error.message);
    });
  }
}

TEST_CASE("memory that is taken back is sent again as it was") {
  Pair pair(hidden_options());
  // The stall keeps frames unacknowledged; the reset makes them go again.
  pair.proxy.stall(true);
  auto bytes = std::make_unique<Bytes>(pattern(1, 100'000));
  pair.a.run([&] {
    for (uint32_t i = 1; i < 4; ++i) {
      OutFrame frame;
      frame.header = frame_header(1, bytes->size());
      frame.header.chunk = i;
      frame.payload = bytes->data();
      frame.stays = i == 1;
      pair.a.sources.push_back(std::make_unique<Bytes>());
      frame.cookie = pair.a.sources.size() - 1;
      frame.owner = &pair.a;
      pair.from_a().send(std::move(frame));
    }
    pair.a.endpoint.mark_unsent(pair.from_a());
  });
  pair.a.wait_for([&] { return pair.a.sent >= 2; });
  pair.a.run([&] {
    pair.from_a().abandon(&pair.a);
    std::fill(bytes->begin(), bytes->end(), std::byte{0xEE});
    bytes.reset();
  });
  // In this order: else what was stalled may pass before the reset.
  pair.proxy.reset_now();
  pair.proxy.stall(false);
  CHECK(pair.b.wait_for([&] { return pair.b.received.size() >= 2; }));
  pair.b.run([&] {
    for (size_t i = 1; i < pair.b.received.size(); ++i)
      CHECK(pair.b.received[i].payload == pattern(1, 100'000));
  });
  CHECK(pair.a.endpoint.statistics().resent_frames >= 2);
}

TEST_CASE("a thousand resets fail no all_reduce in place, and change no result") {
  int resets = 0;
  const auto enough = static_cast<int>(share(500));
  for (const int sockets : {1, 3}) {
    CAPTURE(sockets);
    std::vector<std::shared_ptr<pccl::Context>> contexts;
    std::vector<std::unique_ptr<FaultyProxy>> proxies;
    std::vector<std::vector<std::byte>> addresses;
    const uint32_t seed = std::random_device{}();
    CAPTURE(seed);
    for (uint32_t rank = 0; rank < 2; ++rank) {
      contexts.push_back(std::make_shared<pccl::Context>(hidden_options(sockets)));
      const auto own = *MemberAddress::decode(contexts.back()->address());
      proxies.push_back(std::make_unique<FaultyProxy>(own, seed + rank));
      addresses.push_back(proxies.back()->disguise(own).encode());
    }
    const auto loop = [&](int32_t rank) {
      pccl::Communicator comm(contexts[rank], "resets", rank, addresses, {60});
      // Until both have had enough, which they tell each other in the sum.
      for (int round = 0; round < 100'000; ++round) {
        const bool is_large = round % 4 == 0;
        std::vector<float> tensor(is_large ? 300'007 : 3, static_cast<float>(rank + round % 100));
        tensor[0] = proxies[0]->resets() + proxies[1]->resets() < enough ? 0.0F : 1.0F;
        auto* bytes = reinterpret_cast<std::byte*>(tensor.data());
        const auto work =
            comm.all_reduce(bytes, bytes, tensor.size(), DataType::Float32, ReduceOp::Sum, 1, {});
        if (!work->wait(after(Clock::now(), 90))) return std::string("it does not end");
        if (work->error()) return work->error().message;
        const auto expected = static_cast<float>(1 + 2 * (round % 100));
        const bool is_right = std::all_of(tensor.begin() + 1, tensor.end(),
                                          [expected](float value) { return value == expected; });
        if (!is_right) return "round " + std::to_string(round) + " is wrong";
        if (tensor[0] == 2) return std::string();
      }
      return std::string("too few resets");
    };
    // Less would leave no frame of 512 KiB whole, and without end.
    for (auto& proxy : proxies) proxy->reset_often(100'000, 800'000);
    std::string other;
    std::thread thread([&] { other = loop(1); });
    const std::string own = loop(0);
    thread.join();
    CHECK_MESSAGE(own.empty(), own);
    CHECK_MESSAGE(other.empty(), other);
    const int here = proxies[0]->resets() + proxies[1]->resets();
    CHECK(here >= enough);
    resets += here;
    for (auto& proxy : proxies) proxy->reset_often(0, 1);
    for (auto& context : contexts) context->close();
  }
  CHECK(resets >= 2 * enough);
}

// --- when it can't be had again
// -------------------------------------------------------------------

TEST_CASE("when the grace is over, the error says what broke and for how long") {
  Pair pair(hidden_options(1, 0.5));
  pair.proxy.lock_out(true);
  const TimePoint begin = Clock::now();
  pair.proxy.reset_now();
  for (Node* node : {&pair.a, &pair.b}) {
    REQUIRE(node->wait_for([&] { return !node->lost.empty(); }));
    const std::string message = node->lost[0].error.message;
    CHECK(node->lost[0].error.kind == ErrorKind::MemberLost);
    CHECK_FALSE(node->lost[0].has_ended);
    CHECK_MESSAGE(message.find("within 0.5 s") != std::string::npos, message);
    CHECK_MESSAGE(message.find("reset by peer") != std::string::npos, message);
  }
  CHECK(seconds_since(begin) > 0.45);
  CHECK(seconds_since(begin) < 5);
}

TEST_CASE("an outage that is shorter than the grace is only a pause") {
  Pair pair(hidden_options(2));
  pair.proxy.lock_out(true);
  pair.proxy.reset_now();
  pair.send_both_ways(1, 30, kSizes);
  const TimePoint begin = Clock::now();
  // Several dials in vain.
  const int calls = pair.proxy.calls();
  while (pair.proxy.calls() < calls + 20 && seconds_since(begin) < 8) std::this_thread::yield();
  pair.proxy.lock_out(false);
  pair.expect_all(30);
}

TEST_CASE("with no grace nothing is resumed") {
  Pair pair(hidden_options(1, 0));
  pair.proxy.reset_now();
  for (Node* node : {&pair.a, &pair.b}) {
    REQUIRE(node->wait_for([&] { return !node->lost.empty(); }));
    CHECK(node->lost[0].error.kind == ErrorKind::MemberLost);
    CHECK(node->endpoint.statistics().resumed_connections == 0);
  }
}

TEST_CASE("one side without a grace is enough for that") {
  Node b(hidden_options(1, 0));
  Node a(hidden_options(1, 10));
  FaultyProxy proxy(b.endpoint.address(), 1);
  a.run([&] { a.send(proxy.disguise(b.endpoint.address()), 0, 1); });
  REQUIRE(b.wait_for([&] { return b.received.size() == 1; }));
  proxy.reset_now();
  CHECK(a.wait_for([&] { return !a.lost.empty(); }));
  CHECK(b.wait_for([&] { return !b.lost.empty(); }));
}

TEST_CASE("child: a member that sends until it is killed" * doctest::skip()) {
  Node node(tcp_options());
  say_and_wait(node.endpoint.address().encode());
}

TEST_CASE("a process that was killed is known to have ended at once, not after the grace") {
  for (const int sockets : {1, 3}) {
    for (const bool is_busy : {false, true}) {
      CAPTURE(sockets);
      CAPTURE(is_busy);
      Node node(tcp_options("127.0.0.1", sockets));
      ChildProcess child("child: a member that sends until it is killed");
      const auto address = MemberAddress::decode(child.hear());
      REQUIRE(address);
      node.run([&] { node.send(*address, 0, 997); });
      REQUIRE(node.wait_for([&] { return node.sent == 1; }));
      if (is_busy) {
        child.signal(SIGSTOP);
        node.run([&] {
          for (uint32_t i = 1; i < 40; ++i) node.send(*address, i, kPayloadBytesMax);
        });
      }
      const TimePoint begin = Clock::now();
      child.kill();
      REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
      CHECK(seconds_since(begin) < 0.5);
      CHECK(node.lost[0].has_ended);
      CHECK(node.lost[0].error.message.find("the process is gone") != std::string::npos);
    }
  }
}

TEST_CASE("a process that is stopped is lost after two graces, and one that goes on is not") {
  EndpointOptions options = tcp_options();
  options.grace_seconds = 1;
  for (const bool goes_on : {true, false}) {
    CAPTURE(goes_on);
    Node node(options);
    ChildProcess child("child: a member that sends until it is killed");
    const auto address = MemberAddress::decode(child.hear());
    node.run([&] { node.send(*address, 0, 997); });
    REQUIRE(node.wait_for([&] { return node.sent == 1; }));
    const TimePoint begin = Clock::now();
    child.signal(SIGSTOP);
    node.run([&] { node.send(*address, 1, 997); });
    if (goes_on) {
      const auto is_suspended = [&] {
        return node.connection_to(*address).state == Connection::State::Suspended;
      };
      bool seen = false;
      while (!seen && seconds_since(begin) < 10) node.run([&] { seen = is_suspended(); });
      CHECK(seen);
      child.signal(SIGCONT);
      bool is_up = false;
      while (!is_up && seconds_since(begin) < 15) {
        node.run([&] { is_up = node.connection_to(*address).state == Connection::State::Up; });
      }
      CHECK(is_up);
      node.run([&] { CHECK(node.lost.empty()); });
    } else {
      REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
      CHECK(seconds_since(begin) < 6);
      CHECK_FALSE(node.lost[0].has_ended);
      const std::string message = node.lost[0].error.message;
      CHECK_MESSAGE(message.find("no acknowledgement for 1.") != std::string::npos, message);
      child.signal(SIGCONT);
    }
  }
}
