// What comes from outside and is no member, or a member that breaks the rules.
#include <doctest/doctest.h>
#include <sys/eventfd.h>

#include <random>
#include <string>
#include <vector>

#include "raw_socket.h"
#include "transport_nodes.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

// A member by hand, whose handshake was welcome.
RawSocket join(const MemberAddress& address, uint8_t own_id = 1) {
  RawSocket raw = RawSocket::connect_to(address);
  raw.send(hello_to(address, own_id).encode());
  CHECK(raw.read_reply().answer == Answer::Welcome);
  return raw;
}

// The same through memory; `rings` is the dialing side's view.
struct RawMemory {
  explicit RawMemory(const MemberAddress& address)
      : file(SharedRings::create()),
        own_bell(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        peer_bell(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
        rings(file.get()),
        socket(connect(address)) {
    Hello hello = hello_to(address);
    hello.road = Road::Memory;
    const std::vector<int> descriptors = {file.get(), own_bell.get(), peer_bell.get()};
    socket.send(hello.encode(), descriptors);
    CHECK(socket.read_reply().answer == Answer::Welcome);
  }
  static RawSocket connect(const MemberAddress& address) {
    std::string error;
    RawSocket raw(connect_memory(address.memory_name, error));
    REQUIRE(error == "");
    return raw;
  }
  // Publishes `bytes` of the ring as written, and wakes the reader.
  void publish(uint64_t bytes) {
    rings.control(0).head.store(bytes);
    const uint64_t one = 1;
    CHECK(::write(peer_bell.get(), &one, sizeof(one)) == sizeof(one));
  }

  FileDescriptor file;
  FileDescriptor own_bell;
  FileDescriptor peer_bell;
  SharedRings rings;
  RawSocket socket;
};

EndpointOptions memory_options() {
  EndpointOptions options = tcp_options();
  options.shared_memory = true;
  return options;
}

// The error with which `node` lost its only peer.
Error lost_error(Node& node) {
  REQUIRE(node.wait_for([&] { return !node.lost.empty(); }));
  return node.lost[0].error;
}

void check_still_works(Node& node) {
  Node friendly(tcp_options());
  friendly.run([&] { friendly.send(node.endpoint.address(), 5, 997); });
  CHECK(node.wait_for([&] { return !node.received.empty(); }));
}

}  // namespace

TEST_CASE("a client that is no member gets a sentence and a closed socket, and is counted") {
  Node node(tcp_options());
  for (const std::string& garbage : {std::string("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
                                     std::string(100000, 'x'), std::string(64, '\0')}) {
    const uint64_t before = node.endpoint.statistics().refused_connections;
    RawSocket raw = RawSocket::connect_to(node.endpoint.address());
    raw.send(garbage);
    // Who has sent more than was read may see the reset only.
    if (garbage.size() > 1000) {
      raw.read(garbage.size());
    } else {
      const Reply reply = raw.read_reply();
      CHECK(reply.answer == Answer::Refused);
      CHECK(reply.reason.find("no pccl handshake") != std::string::npos);
    }
    CHECK(raw.is_closed_by_peer());
    CHECK(node.endpoint.statistics().refused_connections == before + 1);
  }
  check_still_works(node);
}

TEST_CASE("a client that speaks TLS to a member without it gets a sentence, and is counted") {
  EndpointOptions options = tcp_options();
  options.tls = TlsUse::Never;
  Node node(options);
  RawSocket raw = RawSocket::connect_to(node.endpoint.address());
  raw.send(std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11));
  const Reply reply = raw.read_reply();
  CHECK(reply.answer == Answer::Refused);
  CHECK(reply.reason.find("TLS meets a member without it") != std::string::npos);
  CHECK(raw.is_closed_by_peer());
  CHECK(node.endpoint.statistics().refused_connections == 1);
  CHECK(node.endpoint.statistics().refused_plain == 1);
}

TEST_CASE("a client that closes in the middle of its Hello is counted") {
  Node node(tcp_options());
  const Bytes hello = hello_to(node.endpoint.address()).encode();
  uint64_t expected = 0;
  for (const size_t size : {size_t{1}, size_t{8}, size_t{9}, hello.size() - 1}) {
    RawSocket raw = RawSocket::connect_to(node.endpoint.address());
    raw.send(std::span(hello).first(size));
    raw.close();
    expected += 1;
  }
  const TimePoint deadline = soon();
  while (node.endpoint.statistics().refused_connections < expected && Clock::now() < deadline) {
  }
  CHECK(node.endpoint.statistics().refused_connections == expected);
  // Nobody is refused who said nothing, like a member whose dial became superfluous.
  RawSocket::connect_to(node.endpoint.address()).close();
  check_still_works(node);
  CHECK(node.endpoint.statistics().refused_connections == expected);
}

TEST_CASE("a Hello that comes byte by byte is a Hello") {
  Node node(tcp_options());
  RawSocket raw = RawSocket::connect_to(node.endpoint.address());
  const Bytes hello = hello_to(node.endpoint.address()).encode();
  for (const std::byte& byte : hello) raw.send(std::span(&byte, 1));
  CHECK(raw.read_reply().answer == Answer::Welcome);
}

TEST_CASE("a client that says nothing is let go after five seconds") {
  Node node(tcp_options());
  RawSocket raw = RawSocket::connect_to(node.endpoint.address());
  const TimePoint begin = Clock::now();
  const Reply reply = raw.read_reply();
  CHECK(reply.answer == Answer::Refused);
  CHECK(reply.reason.find("in time") != std::string::npos);
  CHECK(Clock::now() - begin > std::chrono::seconds(4));
}

TEST_CASE("a Hello of another version, run or member, or from itself, is refused in words") {
  Node node(tcp_options());
  const MemberAddress address = node.endpoint.address();
  const auto refusal = [&](const Bytes& bytes) {
    RawSocket raw = RawSocket::connect_to(address);
    raw.send(bytes);
    const Reply reply = raw.read_reply();
    CHECK(reply.answer == Answer::Refused);
    return reply.reason;
  };
  Bytes bytes = hello_to(address).encode();
  bytes[4] ^= std::byte{0x40};
  CHECK(refusal(bytes).find("protocol version") != std::string::npos);
  Hello hello = hello_to(address);
  hello.from.run = "other";
  CHECK(refusal(hello.encode()).find("wrong run") != std::string::npos);
  hello = hello_to(address);
  hello.to.fill(9);
  CHECK(refusal(hello.encode()).find("wrong member") != std::string::npos);
  hello = hello_to(address);
  hello.from.member_id = address.member_id;
  CHECK(refusal(hello.encode()).find("itself") != std::string::npos);
  hello = hello_to(address);
  hello.road = Road::Memory;  // over TCP
  CHECK(refusal(hello.encode()).find("malformed") != std::string::npos);
  CHECK(node.endpoint.statistics().refused_connections == 5);
}

TEST_CASE("a second connection of the same member is a duplicate") {
  Node node(tcp_options());
  RawSocket first = join(node.endpoint.address());
  RawSocket second = RawSocket::connect_to(node.endpoint.address());
  second.send(hello_to(node.endpoint.address()).encode());
  CHECK(second.read_reply().answer == Answer::Duplicate);
}

TEST_CASE("one connection has no more sockets than the limit") {
  Node node(tcp_options());
  std::vector<RawSocket> stripes;
  stripes.push_back(join(node.endpoint.address()));
  for (uint16_t index = 1; index < kSocketsMax + 5; ++index) {
    RawSocket raw = RawSocket::connect_to(node.endpoint.address());
    Hello hello = hello_to(node.endpoint.address());
    hello.socket_index = index;
    raw.send(hello.encode());
    const bool is_welcome = raw.read_reply().answer == Answer::Welcome;
    CHECK(is_welcome == (index < kSocketsMax));
    stripes.push_back(std::move(raw));
  }
}

TEST_CASE("a socket that closes without goodbye is a lost member; with one it is not") {
  SUBCASE("without") {
    Node node(tcp_options());
    join(node.endpoint.address()).close();
    const Error error = lost_error(node);
    CHECK(error.kind == ErrorKind::MemberLost);
    CHECK(error.message.find("without a goodbye") != std::string::npos);
  }
  SUBCASE("with") {
    Node node(tcp_options());
    RawSocket raw = join(node.endpoint.address());
    FrameHeader goodbye;
    goodbye.type = FrameType::Goodbye;
    raw.send(bytes_of(goodbye));
    raw.close();
    CHECK_FALSE(lost_error(node));
  }
  SUBCASE("through memory") {
    Node node(memory_options());
    RawMemory raw(node.endpoint.address());
    raw.socket.close();
    CHECK(lost_error(node).kind == ErrorKind::MemberLost);
  }
}

TEST_CASE("a frame with a fault closes the connection and says which") {
  Node node(tcp_options());
  RawSocket raw = join(node.endpoint.address());
  FrameHeader header = frame_header(0, 10);
  header.length = kPayloadBytesMax + 1;
  raw.send(bytes_of(header));
  const Error error = lost_error(node);
  CHECK(error.kind == ErrorKind::RemoteProtocol);
  CHECK(error.message.find("payload of") != std::string::npos);
  CHECK(raw.is_closed_by_peer());
}

TEST_CASE("a frame that comes byte by byte, or cut anywhere, is a frame") {
  Node node(tcp_options());
  RawSocket raw = join(node.endpoint.address());
  const Bytes payload = pattern(0, 97);
  const FrameHeader header = frame_header(0, payload.size());
  Bytes frame(bytes_of(header).begin(), bytes_of(header).end());
  frame.insert(frame.end(), payload.begin(), payload.end());
  for (const std::byte& byte : frame) raw.send(std::span(&byte, 1));
  REQUIRE(node.wait_for([&] { return node.received.size() == 1; }));
  node.run([&] { CHECK(node.has_all(1)); });
}

TEST_CASE("a ring with a fault in it closes the connection and says which") {
  Node node(memory_options());
  RawMemory raw(node.endpoint.address());
  const char* expected = nullptr;
  SUBCASE("no frame") {
    raw.publish(kRecordHeaderBytes);
    expected = "no frame magic";
  }
  SUBCASE("more than the ring holds") {
    raw.publish(kRingBytes + 64);
    expected = "out of range";
  }
  SUBCASE("a record longer than what was written") {
    const FrameHeader header = frame_header(0, 1000);
    std::memcpy(raw.rings.data(0), &header, sizeof(header));
    raw.publish(kRecordHeaderBytes);
    expected = "beyond what was written";
  }
  SUBCASE("a frame that breaks a rule") {
    FrameHeader header = frame_header(0, 0);
    header.type = static_cast<FrameType>(99);
    std::memcpy(raw.rings.data(0), &header, sizeof(header));
    raw.publish(kRecordHeaderBytes);
    expected = "frame type 99";
  }
  const Error error = lost_error(node);
  CHECK(error.kind == ErrorKind::RemoteProtocol);
  CHECK_MESSAGE(error.message.find(expected) != std::string::npos, error.message);
}

TEST_CASE("random bytes from a member end its connection and hurt nobody") {
  constexpr uint32_t kSeed = 99;
  CAPTURE(kSeed);
  std::mt19937 random(kSeed);
  Node node(tcp_options());
  for (uint8_t member = 1; member <= 20; ++member) {
    RawSocket raw = join(node.endpoint.address(), member);
    Bytes bytes(1 + random() % 5000);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
    raw.send(bytes);
    raw.close();
  }
  CHECK(node.wait_for([&] { return node.lost.size() == 20; }));
  check_still_works(node);
}

TEST_CASE("memory that an owner takes back is not read any more, and the stream stays whole") {
  Node node(tcp_options());
  RawSocket raw = join(node.endpoint.address());
  // More than the kernel buffers, so that some are half sent and some still queued.
  constexpr uint32_t kCount = 40;
  MemberAddress peer = hello_to(node.endpoint.address()).from;
  node.run([&] {
    for (uint32_t i = 0; i < kCount; ++i) node.send(peer, i, kPayloadBytesMax);
  });
  const auto read_frame = [&raw] {
    const Bytes bytes = raw.read(sizeof(FrameHeader));
    REQUIRE(bytes.size() == sizeof(FrameHeader));
    FrameHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    REQUIRE_FALSE(find_fault(header));
    const bool is_right = raw.read(header.length) == pattern(header.chunk, header.length);
    CHECK(is_right);
    return header.chunk;
  };
  CHECK(read_frame() == 0);
  node.run([&] {
    CHECK(node.sent < kCount);
    node.connection_to(peer).abandon(&node);
    node.sources.clear();
    OutFrame last;
    last.header = frame_header(kCount, 0);
    node.connection_to(peer).send(std::move(last));
    node.endpoint.mark_unsent(node.connection_to(peer));
  });
  uint32_t next = 1;
  for (uint32_t number = read_frame(); number != kCount; number = read_frame()) {
    CHECK(number == next++);
  }
  CHECK(next < kCount);
}
