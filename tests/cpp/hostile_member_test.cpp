// A member of the group that breaks the rules: rank 1 is played by hand against a real rank 0. Its
// group ends with an error that names it; no memory is touched that is not its business.
#include <doctest/doctest.h>

#include <algorithm>
#include <random>

#include "cluster.h"
#include "raw_socket.h"
#include "transport_nodes.h"

using namespace pccl;
using transport::Collective;
using transport::FrameHeader;
using transport::FrameType;
using transport::RawSocket;

namespace {

constexpr uint64_t kCount = 100'000;  // one segment over TCP, more than the staging buffer
const CallOptions kShort{.timeout_seconds = 0.2};

// Rank 0 for real, rank 1 by hand.
struct Duel {
  explicit Duel(uint8_t id = 1)
      : context(make_context(kWays[0])),
        victim(*transport::MemberAddress::decode(context->address())),
        hello(transport::hello_to(victim, id)),
        raw(join(0)),
        comm(context, "duel", 0, {context->address(), hello.from.encode()}, {kSoonSeconds}) {}

  RawSocket join(uint16_t socket_index) {
    RawSocket socket = RawSocket::connect_to(victim);
    hello.socket_index = socket_index;
    socket.send(hello.encode());
    CHECK(socket.read_reply().answer == transport::Answer::Welcome);
    return socket;
  }
  // Call 0 is a broadcast of rank 0, from which we take over what both must agree on.
  FrameHeader learn() {
    Bytes tensor = blank(DataType::Float32, kCount);
    const auto work = comm.broadcast(tensor.data(), kCount, DataType::Float32, 0, {});
    FrameHeader header;
    const Bytes bytes = raw.read(sizeof(header));
    REQUIRE(bytes.size() == sizeof(header));
    std::memcpy(&header, bytes.data(), sizeof(header));
    REQUIRE(raw.read(header.length) == tensor);
    FrameHeader answer = header;
    answer.type = FrameType::Matched;
    answer.length = 0;
    answer.source_rank = 1;
    raw.send(transport::bytes_of(answer));
    finish(work);
    return header;
  }
  // A segment of call 1, a broadcast of rank 1.
  FrameHeader next_broadcast() {
    FrameHeader header = learn();
    header.operation = 1;
    header.source_rank = 1;
    header.root = 1;
    return header;
  }
  std::shared_ptr<Work> receive_broadcast(Bytes& tensor) {
    return comm.broadcast(tensor.data(), kCount, DataType::Float32, 1, {});
  }

  std::shared_ptr<Context> context;
  transport::MemberAddress victim;
  transport::Hello hello;
  RawSocket raw;
  Communicator comm;
};

void check_error(const Error& error, ErrorKind kind, const std::string& words) {
  CHECK_MESSAGE(error.kind == kind, error.message);
  CHECK_MESSAGE(error.message.find(words) != std::string::npos, error.message);
}

}  // namespace

TEST_CASE("who keeps the rules by hand takes part") {
  Duel duel;
  const FrameHeader header = duel.next_broadcast();
  Bytes tensor = blank(DataType::Float32, kCount);
  const auto work = duel.receive_broadcast(tensor);
  const Bytes payload = transport::pattern(1, header.length);
  duel.raw.stream(transport::bytes_of(header));
  duel.raw.stream(payload);
  finish(work);
  CHECK(tensor == payload);
}

TEST_CASE("a member that speaks for another rank breaks the group") {
  Duel duel;
  FrameHeader header = duel.next_broadcast();
  Bytes tensor = blank(DataType::Float32, kCount);
  const auto work = duel.receive_broadcast(tensor);
  header.source_rank = 0;
  duel.raw.stream(transport::bytes_of(header));
  duel.raw.stream(transport::pattern(1, header.length));
  check_error(outcome(work), ErrorKind::RemoteProtocol, "not that rank");
}

TEST_CASE("a frame with a fault breaks the group with the fault, not with a lost member") {
  Duel duel;
  FrameHeader header = duel.next_broadcast();
  Bytes tensor = blank(DataType::Float32, kCount);
  const auto work = duel.receive_broadcast(tensor);
  header.length += 1;
  duel.raw.stream(transport::bytes_of(header));
  check_error(outcome(work), ErrorKind::RemoteProtocol, "segment length");
}

TEST_CASE("who claims or assigns more for a chunk that gets none breaks the group") {
  for (const FrameType type : {FrameType::Claim, FrameType::Assign}) {
    Duel duel;
    FrameHeader header = duel.next_broadcast();
    Bytes tensor = blank(DataType::Float32, kCount);
    const auto work = duel.receive_broadcast(tensor);
    header.type = type;
    header.length = 0;
    duel.raw.stream(transport::bytes_of(header));
    check_error(outcome(work), ErrorKind::RemoteProtocol, "gets none");
  }
}

TEST_CASE("a segment that comes twice breaks the group") {
  Duel duel;
  FrameHeader header = duel.next_broadcast();
  header.transfer_bytes = 2 * header.segment_bytes;
  header.count = header.transfer_bytes / sizeof(float);
  header.length = static_cast<uint32_t>(header.segment_bytes);
  Bytes tensor = blank(DataType::Float32, header.count);
  const auto work = duel.comm.broadcast(tensor.data(), header.count, DataType::Float32, 1, {});
  for (int i = 0; i < 2; ++i) {
    duel.raw.stream(transport::bytes_of(header));
    duel.raw.stream(transport::pattern(1, header.length));
  }
  check_error(outcome(work), ErrorKind::RemoteProtocol, "twice");
}

TEST_CASE("a segment on two sockets at once breaks the group, and is never written afterwards") {
  Duel duel;
  const FrameHeader header = duel.next_broadcast();
  RawSocket second = duel.join(1);
  auto tensor = std::make_unique<Bytes>(blank(DataType::Float32, kCount));
  const auto work = duel.receive_broadcast(*tensor);
  const Bytes payload = transport::pattern(1, header.length);
  duel.context->statistics();  // after which the call has started
  // The first half is on its way to its place when the whole comes by the other socket.
  duel.raw.stream(transport::bytes_of(header));
  duel.raw.stream(std::span(payload).first(payload.size() / 2));
  while (duel.context->statistics().bytes_received_tcp < payload.size() / 2) {
  }
  second.stream(transport::bytes_of(header));
  second.stream(payload);
  check_error(outcome(work), ErrorKind::RemoteProtocol, "twice");
  tensor.reset();
  duel.raw.stream(std::span(payload).subspan(payload.size() / 2));
  const uint64_t all = 2 * payload.size();
  const TimePoint deadline = transport::soon();
  while (duel.context->statistics().bytes_received_tcp < all && Clock::now() < deadline) {
  }
  CHECK(duel.context->statistics().bytes_received_tcp >= all);
}

TEST_CASE("no frame writes beyond the caller's memory, whatever type it says it is") {
  for (const auto type : {FrameType::Membership, FrameType::Finals, FrameType::Data}) {
    CAPTURE(static_cast<int>(type));
    Duel duel;
    FrameHeader header = duel.next_broadcast();
    header.type = type;
    header.length = transport::kPayloadBytesMax;
    // With a codec in its flags the transport does not know how long a segment is.
    if (type == FrameType::Data) header.flags |= 3U << 8U;
    Bytes tensor(transport::kPayloadBytesMax, std::byte{0x5A});
    const auto work = duel.receive_broadcast(tensor);
    duel.raw.stream(transport::bytes_of(header));
    duel.raw.stream(transport::pattern(1, header.length));
    CHECK(outcome(work));
    const auto* end = tensor.data() + kCount * sizeof(float);
    const auto* changed =
        std::find_if(end, static_cast<const std::byte*>(tensor.data()) + tensor.size(),
                     [](std::byte byte) { return byte != std::byte{0x5A}; });
    CHECK(changed == tensor.data() + tensor.size());
  }
}

TEST_CASE("a member that sends without end for calls that nobody made breaks the group") {
  Duel duel;
  FrameHeader header = duel.next_broadcast();
  header.length = 0;
  header.transfer_bytes = 0;
  Bytes burst;
  for (int i = 0; i < 1000; ++i) {
    header.operation += 1;
    const auto bytes = transport::bytes_of(header);
    burst.insert(burst.end(), bytes.begin(), bytes.end());
  }
  const size_t bursts = transport::Connection::kEarlyBytesMax / burst.size() + 2;
  for (size_t i = 0; i < bursts; ++i) REQUIRE(duel.raw.stream(burst));
  check_error(outcome(duel.comm.barrier({})), ErrorKind::RemoteProtocol, "more than a member may");
}

TEST_CASE("frames with random fields end calls with errors, and do no other harm") {
  constexpr uint32_t kSeed = 4242;
  CAPTURE(kSeed);
  std::mt19937 random(kSeed);
  for (uint32_t round = 0; round < 60; ++round) {
    CAPTURE(round);
    Duel duel;
    const FrameHeader valid = duel.next_broadcast();
    Bytes tensor = blank(DataType::Float32, kCount);
    Bytes other = blank(DataType::Float32, 16);
    std::vector<std::shared_ptr<Work>> works;
    works.push_back(duel.receive_broadcast(tensor));
    works.push_back(duel.comm.all_reduce(other.data(), other.data(), 16, DataType::Float32,
                                         ReduceOp::Sum, 1, kShort));
    works.push_back(duel.comm.recv(other.data(), 16, DataType::UInt8, 1, 3, kShort));
    works.push_back(duel.comm.send(other.data(), 16, DataType::UInt8, 1, 3, kShort));
    for (int i = 0; i < 60; ++i) {
      FrameHeader header = valid;
      header.type = static_cast<FrameType>(1 + random() % 6);
      if (random() % 2 == 0) header.collective = static_cast<Collective>(random() % 11);
      header.operation = random() % 4;
      header.chunk = static_cast<uint32_t>(random() % 4);
      header.segment = static_cast<uint32_t>(random() % 3);
      header.stage = static_cast<uint16_t>(random() % 4);
      header.flags = static_cast<uint16_t>(random() % 2);
      header.root = static_cast<int32_t>(random() % 3) - 1;
      if (random() % 4 == 0) header.count = random() % 20;
      header.transfer_bytes = random() % 3 == 0 ? valid.transfer_bytes : random() % 100;
      const uint64_t offset = header.segment * header.segment_bytes;
      const bool has_payload = header.type == FrameType::Data || header.type == FrameType::Message;
      if (has_payload && offset > header.transfer_bytes) header.segment = 0;
      header.length = 0;
      if (has_payload) {
        const uint64_t rest = header.transfer_bytes - header.segment * header.segment_bytes;
        header.length = static_cast<uint32_t>(std::min<uint64_t>(header.segment_bytes, rest));
      }
      if (header.type == FrameType::Abort) header.length = static_cast<uint32_t>(random() % 50);
      if (!duel.raw.stream(transport::bytes_of(header))) break;
      if (!duel.raw.stream(transport::pattern(random(), header.length))) break;
    }
    duel.raw.close();
    for (const auto& work : works) CHECK(work->wait(transport::soon()));
  }
}
