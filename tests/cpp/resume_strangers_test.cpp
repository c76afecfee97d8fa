// Resumption by hand: who may take part, what is refused, and where a frame may break.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <string>

#include "raw_socket.h"
#include "transport_nodes.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

// The caller of a connection that resumes, by hand; nobody can call it back.
struct Caller {
  explicit Caller(Node& called) : node(called), hello(hello_to(node.endpoint.address())) {
    hello.from.hosts = {"127.0.0.9"};
    hello.resumes = true;
    hello.attempt = 1;
  }
  // Calls with `hello` as it is.
  Reply call(RawSocket& raw) {
    raw = RawSocket::connect_to(node.endpoint.address());
    raw.send(hello.encode());
    return raw.read_reply();
  }
  // Politely, so that nobody waits for it to call again.
  void leave(RawSocket& raw, uint32_t sequence) {
    FrameHeader goodbye;
    goodbye.type = FrameType::Goodbye;
    goodbye.sequence = sequence;
    raw.send(bytes_of(goodbye));
    FrameHeader ack;
    while (ack.sequence != sequence + 1) {
      const Bytes bytes = raw.read(sizeof(ack));
      REQUIRE(bytes.size() == sizeof(ack));
      std::memcpy(&ack, bytes.data(), sizeof(ack));
      REQUIRE(ack.type == FrameType::Ack);
    }
    raw.close();
    REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
    CHECK_MESSAGE(!node.lost[0].error, node.lost[0].error.message);
  }
  static FrameHeader numbered(uint32_t sequence, uint32_t number, size_t size) {
    FrameHeader header = frame_header(number, size);
    header.sequence = sequence;
    return header;
  }
  void send(RawSocket& raw, const FrameHeader& header) {
    raw.send(bytes_of(header));
    raw.stream(pattern(header.chunk, header.length));
  }

  Node& node;
  Hello hello;
};

}  // namespace

TEST_CASE("who does not know the connection can't resume it, nor disturb it") {
  Node node(tcp_options());
  Caller caller(node);
  RawSocket raw{FileDescriptor()};
  REQUIRE(caller.call(raw).resumes);
  caller.send(raw, Caller::numbered(0, 0, 997));
  REQUIRE(node.wait_for([&] { return node.received.size() == 1; }));
  for (const bool is_suspended : {false, true}) {
    CAPTURE(is_suspended);
    if (is_suspended) raw.close();
    const Hello right = caller.hello;
    const auto refused = [&](const std::string& words) {
      RawSocket other{FileDescriptor()};
      const Reply reply = caller.call(other);
      CHECK(reply.answer == Answer::Refused);
      CHECK_MESSAGE(reply.reason.find(words) != std::string::npos, reply.reason);
      CHECK(other.is_closed_by_peer());
      caller.hello = right;
      caller.hello.intent = Intent::Resume;
    };
    caller.hello.intent = Intent::Resume;
    refused("made before");  // a replay
    caller.hello.attempt = 2 + (is_suspended ? 100 : 0);
    caller.hello.nonce ^= 1;
    refused("no such connection");
    caller.hello.attempt = 3 + (is_suspended ? 100 : 0);
    caller.hello.consumed = 1;
    refused("not sent");
    caller.hello.attempt = 4 + (is_suspended ? 100 : 0);
    caller.hello.socket_index = kSocketsMax;
    refused("no such connection");
    caller.hello = right;
  }
  node.run([&] { CHECK(node.lost.empty()); });
  // The true caller goes on.
  caller.hello.intent = Intent::Resume;
  caller.hello.attempt = 200;
  const Reply reply = caller.call(raw);
  CHECK(reply.answer == Answer::Welcome);
  CHECK(reply.consumed == 1);
  caller.send(raw, Caller::numbered(1, 1, 997));
  CHECK(node.wait_for([&] { return node.received.size() == 2; }));
  CHECK(node.endpoint.statistics().resumed_connections == 1);
  caller.leave(raw, 2);
}

TEST_CASE("a socket may break anywhere in a frame, and the frame comes once") {
  for (const bool places : {false, true}) {
    constexpr size_t kSize = 300'000;
    for (const size_t cut : {size_t{1}, sizeof(FrameHeader), size_t{70'000}, kSize - 1}) {
      CAPTURE(places);
      CAPTURE(cut);
      Node node(tcp_options());
      node.run([&] { node.places = places; });
      Caller caller(node);
      RawSocket raw{FileDescriptor()};
      REQUIRE(caller.call(raw).resumes);
      const FrameHeader header = Caller::numbered(0, 0, kSize);
      Bytes frame(bytes_of(header).begin(), bytes_of(header).end());
      const Bytes payload = pattern(0, kSize);
      frame.insert(frame.end(), payload.begin(), payload.end());
      raw.stream(std::span(frame).first(cut));
      // The newer socket arrives before the older one breaks.
      caller.hello.intent = Intent::Resume;
      caller.hello.attempt = 2;
      RawSocket second{FileDescriptor()};
      const Reply reply = caller.call(second);
      CHECK(reply.answer == Answer::Welcome);
      CHECK(reply.consumed == 0);
      second.stream(frame);
      caller.send(second, Caller::numbered(0, 0, kSize));  // once more: dropped
      caller.send(second, Caller::numbered(1, 1, 10));
      REQUIRE(node.wait_for([&] { return node.received.size() == 2; }));
      node.run([&] {
        CHECK(node.has_all(2));
        CHECK(std::count_if(node.targets.begin(), node.targets.end(), [](const auto& target) {
                return target->size() == kSize;
              }) == (places ? 1 : 0));
      });
      CHECK(raw.is_closed_by_peer());
      caller.leave(second, 2);
    }
  }
}

TEST_CASE("frames overtake each other on several sockets, and come once") {
  Node node(tcp_options());
  Caller caller(node);
  RawSocket first{FileDescriptor()};
  RawSocket second{FileDescriptor()};
  REQUIRE(caller.call(first).resumes);
  caller.hello.socket_index = 1;
  caller.hello.attempt = 2;
  REQUIRE(caller.call(second).answer == Answer::Welcome);
  caller.send(second, Caller::numbered(2, 2, 100));
  caller.send(second, Caller::numbered(1, 1, 100));
  REQUIRE(node.wait_for([&] { return node.received.size() == 2; }));
  node.run(
      [&] { CHECK(node.endpoint.connection(caller.hello.from, {}).incoming.consumed() == 0); });
  caller.send(first, Caller::numbered(1, 1, 100));
  caller.send(first, Caller::numbered(0, 0, 100));
  caller.send(second, Caller::numbered(2, 2, 100));
  caller.send(second, Caller::numbered(3, 3, 100));
  REQUIRE(node.wait_for([&] { return node.received.size() == 4; }));
  node.run([&] {
    CHECK(node.has_all(4));
    CHECK(node.endpoint.connection(caller.hello.from, {}).incoming.consumed() == 4);
  });
  first.close();
  caller.leave(second, 4);
}

TEST_CASE("a member that breaks the rules of numbering loses its connection, with the reason") {
  Node node(tcp_options());
  Caller caller(node);
  RawSocket raw{FileDescriptor()};
  REQUIRE(caller.call(raw).resumes);
  const char* expected = nullptr;
  SUBCASE("a number far ahead") {
    caller.send(raw, Caller::numbered(ReceiveWindow::kFramesMax, 0, 10));
    expected = "is next";
  }
  SUBCASE("an acknowledgement of what was not sent") {
    FrameHeader header;
    header.type = FrameType::Ack;
    header.sequence = 1;
    raw.send(bytes_of(header));
    expected = "acknowledged";
  }
  SUBCASE("another frame under the same number") {
    const FrameHeader header = Caller::numbered(0, 0, 300'000);
    raw.send(bytes_of(header));
    raw.stream(pattern(0, 70'000));
    RawSocket second{FileDescriptor()};
    caller.hello.socket_index = 1;
    caller.hello.attempt = 2;
    REQUIRE(caller.call(second).answer == Answer::Welcome);
    // The first one's beginning has arrived.
    REQUIRE(raw.is_drained());
    caller.send(second, Caller::numbered(0, 1, 200'000));
    expected = "comes again as another";
  }
  REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
  CHECK(node.lost[0].error.kind == ErrorKind::RemoteProtocol);
  CHECK_MESSAGE(node.lost[0].error.message.find(expected) != std::string::npos,
                node.lost[0].error.message);
  // What is over stays over.
  caller.hello.intent = Intent::Resume;
  caller.hello.attempt = 9;
  RawSocket again{FileDescriptor()};
  CHECK(caller.call(again).answer == Answer::Over);
}

TEST_CASE("an acknowledgement where nothing is numbered is a fault") {
  Node node(tcp_options());
  RawSocket raw = RawSocket::connect_to(node.endpoint.address());
  raw.send(hello_to(node.endpoint.address()).encode());
  CHECK_FALSE(raw.read_reply().resumes);
  FrameHeader header;
  header.type = FrameType::Ack;
  raw.send(bytes_of(header));
  REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
  CHECK(node.lost[0].error.kind == ErrorKind::RemoteProtocol);
}
