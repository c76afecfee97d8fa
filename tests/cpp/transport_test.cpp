// Two endpoints in one process, over real sockets and real shared memory.
#include <doctest/doctest.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <vector>

#include "transport_nodes.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

constexpr size_t kSegment = 256 << 10;
// Around the staging buffer (64 KiB), a segment, the longest payload.
const std::vector<size_t> kSizes = {
    0, 1, 63, 64, 997, 65463, 65464, 65536, kSegment, kSegment + 1, (512 << 10) - 1, 512 << 10};

struct Way {
  const char* name;
  EndpointOptions options;
};

std::vector<Way> roads() {
  EndpointOptions memory = tcp_options();
  memory.shared_memory = true;
  return {{"TCP, IPv4", tcp_options("127.0.0.1")},
          {"TCP, IPv6", tcp_options("::1")},
          {"TCP, any address", tcp_options("")},
          {"TCP, 3 sockets", tcp_options("127.0.0.1", 3)},
          {"TCP, 16 sockets", tcp_options("127.0.0.1", 16)},
          {"memory", memory}};
}

void send_all_sizes(Node& from, const Node& to, uint32_t rounds) {
  from.run([&] {
    for (uint32_t i = 0; i < rounds * kSizes.size(); ++i) {
      from.send(to.endpoint.address(), i, kSizes[(i * 7) % kSizes.size()]);
    }
  });
}

}  // namespace

TEST_CASE("frames of every size arrive whole and once, both ways at a time, on every road") {
  for (const Way& road : roads()) {
    INFO("road: ", std::string(road.name));
    for (const bool places : {false, true}) {
      CAPTURE(places);
      Node a(road.options);
      Node b(road.options);
      a.run([&] { a.places = places; });
      b.run([&] { b.places = places; });
      constexpr uint32_t kRounds = 3;
      const auto count = static_cast<uint32_t>(kRounds * kSizes.size());
      send_all_sizes(a, b, kRounds);
      send_all_sizes(b, a, kRounds);
      CHECK(b.wait_for([&] { return b.received.size() == count && b.sent == count; }));
      CHECK(a.wait_for([&] { return a.received.size() == count && a.sent == count; }));
      a.run([&] { CHECK(a.has_all(count)); });
      b.run([&] { CHECK(b.has_all(count)); });
      CHECK(a.endpoint.statistics().connections == 1);
      const bool is_memory = road.options.shared_memory;
      const Statistics statistics = a.endpoint.statistics();
      CHECK((statistics.bytes_sent_memory > 0) == is_memory);
      CHECK((statistics.bytes_sent_tcp > 0) == !is_memory);
    }
  }
}

TEST_CASE("more than any buffer holds goes through while the receiver keeps payloads") {
  for (const Way& road : roads()) {
    INFO("road: ", std::string(road.name));
    Node a(road.options);
    Node b(road.options);
    b.run([&] { b.keeps = true; });
    // 24 MiB: three times the window, twelve times the memory ring.
    constexpr uint32_t kCount = 96;
    a.run([&] {
      for (uint32_t i = 0; i < kCount; ++i) a.send(b.endpoint.address(), i, kSegment);
    });
    CHECK(b.wait_for([&] { return b.received.size() == kCount; }));
    b.run([&] {
      CHECK(b.has_all(kCount));
      for (size_t i = 0; i < b.kept.size(); ++i) {
        const Bytes& arrived = b.received[i].payload;
        CHECK(std::equal(arrived.begin(), arrived.end(), b.kept[i].data()));
      }
      b.kept.clear();
    });
  }
}

TEST_CASE("the longest payloads pass a memory ring at every offset") {
  Node a(roads().back().options);
  Node b(roads().back().options);
  // A small record before each long one moves its start through the ring.
  constexpr uint32_t kCount = 100;
  a.run([&] {
    for (uint32_t i = 0; i < kCount; ++i) {
      a.send(b.endpoint.address(), i, i % 2 == 0 ? kPayloadBytesMax : (i * 331) % 40000);
    }
  });
  CHECK(b.wait_for([&] { return b.received.size() == kCount; }));
  b.run([&] { CHECK(b.has_all(kCount)); });
}

TEST_CASE("a payload written into lent memory arrives like any other") {
  Node a(roads().back().options);
  Node b(roads().back().options);
  a.run([&] { a.send(b.endpoint.address(), 0, 10); });
  REQUIRE(b.wait_for([&] { return b.received.size() == 1; }));
  uint32_t lent = 0;
  a.run([&] {
    Connection& connection = a.connection_to(b.endpoint.address());
    for (uint32_t i = 1; i < 20; ++i) {
      const Bytes bytes = pattern(i, 997);
      std::byte* room = connection.reserve(997);
      if (room == nullptr) break;
      std::memcpy(room, bytes.data(), bytes.size());
      connection.commit(frame_header(i, 997));
      lent += 1;
    }
  });
  CHECK(lent == 19);
  CHECK(b.wait_for([&] { return b.received.size() == 1 + lent; }));
  b.run([&] { CHECK(b.has_all(1 + lent)); });
}

TEST_CASE("if both dial at once there is one connection, and nothing is lost") {
  for (const Way& road : roads()) {
    INFO("road: ", std::string(road.name));
    for (uint32_t round = 0; round < 10; ++round) {
      Node a(road.options);
      Node b(road.options);
      std::atomic<int> ready{0};
      const auto start = [&ready](Node& from, const Node& to) {
        ready += 1;
        while (ready < 2) std::this_thread::yield();
        from.run([&] {
          for (uint32_t i = 0; i < 5; ++i) from.send(to.endpoint.address(), i, 997);
        });
      };
      std::thread other([&] { start(b, a); });
      start(a, b);
      other.join();
      CHECK(a.wait_for([&] { return a.received.size() == 5; }));
      CHECK(b.wait_for([&] { return b.received.size() == 5; }));
      for (Node* node : {&a, &b}) {
        CHECK(node->endpoint.statistics().connections == 1);
        CHECK(node->endpoint.statistics().refused_connections == 0);
        node->run([&] {
          CHECK(node->has_all(5));
          CHECK(node->lost.empty());
        });
      }
    }
  }
}

TEST_CASE("who closes has sent everything, and the other hears of no error") {
  for (const Way& road : roads()) {
    INFO("road: ", std::string(road.name));
    Node b(road.options);
    TimePoint begin;
    {
      Node a(road.options);
      a.run([&] {
        for (uint32_t i = 0; i < 20; ++i) a.send(b.endpoint.address(), i, kSegment);
      });
      REQUIRE(b.wait_for([&] { return !b.received.empty(); }));
      begin = Clock::now();
    }
    CHECK_MESSAGE(Clock::now() - begin < std::chrono::seconds(5), "close() waited in vain");
    CHECK(b.wait_for([&] { return !b.lost.empty(); }));
    b.run([&] {
      CHECK(b.has_all(20));
      REQUIRE(b.lost.size() == 1);
      CHECK_MESSAGE(!b.lost[0].error, b.lost[0].error.message);
    });
  }
}

TEST_CASE("both may close at the same time") {
  for (const Way& road : roads()) {
    INFO("road: ", std::string(road.name));
    auto a = std::make_unique<Node>(road.options);
    auto b = std::make_unique<Node>(road.options);
    a->run([&] { a->send(b->endpoint.address(), 0, 997); });
    REQUIRE(b->wait_for([&] { return b->received.size() == 1; }));
    const TimePoint begin = Clock::now();
    std::thread other([&] { b->endpoint.close(soon()); });
    a->endpoint.close(soon());
    other.join();
    CHECK(Clock::now() - begin < std::chrono::seconds(10));
    for (const Node* node : {a.get(), b.get()}) {
      for (const Lost& lost : node->lost) CHECK_MESSAGE(!lost.error, lost.error.message);
    }
  }
}

TEST_CASE("a member that cannot be reached is an error that names the address and the reason") {
  Node a(tcp_options());
  MemberAddress nobody;
  {
    Node b(tcp_options());
    nobody = b.endpoint.address();
  }
  a.run([&] { a.send(nobody, 0, 1); });
  REQUIRE(a.wait_for([&] { return !a.lost.empty(); }));
  CHECK(a.lost[0].error.kind == ErrorKind::Connect);
  CHECK(a.lost[0].error.message.find(nobody.describe()) != std::string::npos);
  CHECK(a.lost[0].error.message.find("refused") != std::string::npos);
}

TEST_CASE("members of two runs refuse each other and name both") {
  Node a(tcp_options());
  EndpointOptions other = tcp_options();
  other.run = "elsewhere";
  Node b(other);
  a.run([&] { a.send(b.endpoint.address(), 0, 1); });
  REQUIRE(a.wait_for([&] { return !a.lost.empty(); }));
  const std::string message = a.lost[0].error.message;
  CHECK(message.find("wrong run") != std::string::npos);
  CHECK(message.find("'elsewhere'") != std::string::npos);
  CHECK(message.find("'test'") != std::string::npos);
  CHECK(b.endpoint.statistics().refused_connections > 0);
}

TEST_CASE("an address under which somebody else answers is passed over for the next") {
  Node wanted(tcp_options("127.0.0.1"));
  EndpointOptions same_port = tcp_options("127.0.0.2");
  same_port.port = wanted.endpoint.address().port;
  Node other(same_port);
  Node a(tcp_options());
  MemberAddress address = wanted.endpoint.address();
  address.hosts = {"127.0.0.2", "127.0.0.1"};
  a.run([&] { a.send(address, 0, 997); });
  CHECK(wanted.wait_for([&] { return wanted.received.size() == 1; }));
  CHECK(other.endpoint.statistics().refused_connections == 1);
}

TEST_CASE("a member that is gone, with another in its place, is a wrong member") {
  Node b(tcp_options());
  Node a(tcp_options());
  MemberAddress gone = b.endpoint.address();
  gone.member_id[0] ^= 1;
  a.run([&] { a.send(gone, 0, 1); });
  REQUIRE(a.wait_for([&] { return !a.lost.empty(); }));
  CHECK(a.lost[0].error.message.find("wrong member") != std::string::npos);
}

TEST_CASE("a host that is not there is passed over for the next one") {
  Node b(tcp_options());
  Node a(tcp_options());
  MemberAddress address = b.endpoint.address();
  address.hosts = {"no-such-host.invalid", "127.0.0.3", "127.0.0.1"};
  a.run([&] { a.send(address, 0, 997); });
  CHECK(b.wait_for([&] { return b.received.size() == 1; }));
}

TEST_CASE("if memory can't be had, members of one host talk over TCP") {
  EndpointOptions options = tcp_options();
  options.shared_memory = true;
  Node a(options);
  Node b(options);
  MemberAddress address = b.endpoint.address();
  address.memory_name = "pccl.nobody-listens-here";
  a.run([&] { a.send(address, 0, 997); });
  CHECK(b.wait_for([&] { return b.received.size() == 1; }));
  CHECK(b.endpoint.statistics().bytes_received_tcp > 0);
}

TEST_CASE("a port that is taken is an error that names it") {
  Node a(tcp_options());
  EndpointOptions same = tcp_options();
  same.port = a.endpoint.address().port;
  try {
    Node b(same);
    FAIL("two endpoints listen on one port");
  } catch (const ConnectError& error) {
    CHECK(std::string(error.what()).find(std::to_string(same.port)) != std::string::npos);
  }
}

TEST_CASE("options that make no sense are refused") {
  for (const int sockets : {-1, kSocketsMax + 1}) {
    CHECK_THROWS_AS(Node(tcp_options("127.0.0.1", sockets)), std::invalid_argument);
  }
  EndpointOptions options = tcp_options();
  options.run = "";
  CHECK_THROWS_AS(Node{options}, std::invalid_argument);
  options.run.assign(256, 'r');
  CHECK_THROWS_AS(Node{options}, std::invalid_argument);
  options = tcp_options();
  options.advertise_hosts.assign(kHostsMax + 1, "h");
  CHECK_THROWS_AS(Node{options}, std::invalid_argument);
  options.advertise_hosts.assign(1, std::string(256, 'h'));
  CHECK_THROWS_AS(Node{options}, std::invalid_argument);
  options = tcp_options("no-such-host.invalid");
  CHECK_THROWS_AS(Node{options}, ConnectError);
}
