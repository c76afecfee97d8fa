// The handshake's bytes: what a member says comes out as it went in, and garbage is no handshake.
#include "transport/handshake.h"

#include <doctest/doctest.h>

#include <cstring>
#include <random>
#include <string>

#include "transport/frame.h"

using namespace pccl::transport;

namespace {

using Bytes = std::vector<std::byte>;

MemberAddress address_of(uint8_t id) {
  MemberAddress address;
  address.member_id.fill(id);
  address.run = "run";
  address.host_key = "boot/1/2";
  address.memory_name = "pccl.x";
  address.port = 4123;
  address.hosts = {"10.0.0.7", "::1", "host.example"};
  return address;
}

Hello hello() {
  Hello hello;
  hello.from = address_of(1);
  hello.to.fill(2);
  hello.nonce = 0x0102030405060708;
  hello.socket_index = 3;
  hello.road = Road::Memory;
  hello.intent = Intent::Resume;
  hello.resumes = true;
  hello.attempt = 0x11121314;
  hello.consumed = 0xFFFFFFFE;
  return hello;
}

std::string fault_of(const Bytes& bytes, uint32_t magic = kHelloMagic) {
  std::string fault;
  CHECK_FALSE(handshake_bytes(bytes, magic, fault));
  return fault;
}

}  // namespace

TEST_CASE("a Hello comes out as it went in") {
  const Hello sent = hello();
  const Bytes bytes = sent.encode();
  std::string fault;
  CHECK(handshake_bytes(bytes, kHelloMagic, fault) == bytes.size());
  CHECK(fault.empty());
  const auto got = decode_hello(bytes);
  REQUIRE(got);
  CHECK(got->from.member_id == sent.from.member_id);
  CHECK(got->from.run == "run");
  CHECK(got->from.hosts == sent.from.hosts);
  CHECK(got->from.port == 4123);
  CHECK(got->to == sent.to);
  CHECK(got->nonce == sent.nonce);
  CHECK(got->socket_index == 3);
  CHECK(got->road == Road::Memory);
  CHECK(got->intent == Intent::Resume);
  CHECK(got->resumes);
  CHECK(got->attempt == 0x11121314);
  CHECK(got->consumed == 0xFFFFFFFE);
}

TEST_CASE("a Reply comes out as it went in, a long reason is cut at 1024 characters") {
  for (const Answer answer : {Answer::Welcome, Answer::Refused, Answer::Duplicate, Answer::Alive,
                              Answer::Over, Answer::Stranger}) {
    const Bytes bytes = Reply{answer, "because", true, 0xFFFFFFFD}.encode();
    std::string fault;
    CHECK(handshake_bytes(bytes, kReplyMagic, fault) == bytes.size());
    const auto got = decode_reply(bytes);
    REQUIRE(got);
    CHECK(got->answer == answer);
    CHECK(got->reason == "because");
    CHECK(got->resumes);
    CHECK(got->consumed == 0xFFFFFFFD);
  }
  const auto cut = decode_reply(Reply{Answer::Refused, std::string(5000, 'x')}.encode());
  REQUIRE(cut);
  CHECK(cut->reason == std::string(1024, 'x'));
}

TEST_CASE("fewer bytes than the prefix are no fault yet") {
  const Bytes bytes = hello().encode();
  for (size_t size = 0; size < kHandshakePrefixBytes; ++size) {
    CHECK(fault_of(Bytes(bytes.begin(), bytes.begin() + static_cast<long>(size))).empty());
  }
}

TEST_CASE("another magic is refused as no pccl handshake") {
  Bytes bytes = hello().encode();
  CHECK(fault_of(bytes, kReplyMagic).find("no pccl handshake") != std::string::npos);
  const std::string http = "GET / HTTP/1.1\r\n";
  const auto* begin = reinterpret_cast<const std::byte*>(http.data());
  CHECK(fault_of(Bytes(begin, begin + http.size())).find("no pccl handshake") != std::string::npos);
}

TEST_CASE("another version is refused with both versions and what to do") {
  Bytes bytes = hello().encode();
  const uint16_t other = kProtocolVersion + 41;
  std::memcpy(bytes.data() + 4, &other, sizeof(other));
  const std::string fault = fault_of(bytes);
  CHECK(fault.find(std::to_string(other)) != std::string::npos);
  CHECK(fault.find("version " + std::to_string(kProtocolVersion)) != std::string::npos);
  CHECK(fault.find("install the same pccl") != std::string::npos);
}

TEST_CASE("a handshake that claims to be longer than any can be is refused before it is read") {
  Bytes bytes = hello().encode();
  const auto longest = static_cast<uint16_t>(kHandshakeBytesMax - kHandshakePrefixBytes);
  std::memcpy(bytes.data() + 6, &longest, sizeof(longest));
  std::string fault;
  CHECK(handshake_bytes(bytes, kHelloMagic, fault) == kHandshakeBytesMax);
  const auto longer = static_cast<uint16_t>(longest + 1);
  std::memcpy(bytes.data() + 6, &longer, sizeof(longer));
  CHECK(fault_of(bytes).find("the limit is") != std::string::npos);
}

TEST_CASE("a Hello or Reply with bytes missing or left over is malformed") {
  const Bytes hello_bytes = hello().encode();
  const Bytes reply_bytes = Reply{Answer::Refused, "why"}.encode();
  for (size_t size = kHandshakePrefixBytes; size < hello_bytes.size(); ++size) {
    CHECK_FALSE(decode_hello(std::span(hello_bytes).first(size)));
  }
  for (size_t size = kHandshakePrefixBytes; size < reply_bytes.size(); ++size) {
    CHECK_FALSE(decode_reply(std::span(reply_bytes).first(size)));
  }
  Bytes longer = hello_bytes;
  longer.emplace_back();
  CHECK_FALSE(decode_hello(longer));
  longer = reply_bytes;
  longer.emplace_back();
  CHECK_FALSE(decode_reply(longer));
}

TEST_CASE("an unknown road, intent, answer or truth value is malformed") {
  // From the end: a token's proof and id, consumed and attempt, then these.
  for (const size_t from_end : {81, 82, 83}) {
    Bytes bytes = hello().encode();
    bytes[bytes.size() - from_end] = std::byte{4};
    CHECK_FALSE(decode_hello(bytes));
  }
  Bytes bytes = Reply{}.encode();
  bytes[kHandshakePrefixBytes] = std::byte{kAnswerMax + 1};
  CHECK_FALSE(decode_reply(bytes));
  bytes = Reply{}.encode();
  bytes[bytes.size() - 5] = std::byte{2};
  CHECK_FALSE(decode_reply(bytes));
}

TEST_CASE("random bytes behind a right prefix are malformed, or a whole message") {
  constexpr uint32_t kSeed = 7;
  CAPTURE(kSeed);
  std::mt19937 random(kSeed);
  const Bytes whole = hello().encode();
  for (int i = 0; i < 20000; ++i) {
    Bytes bytes = whole;
    // Some bytes are overturned, and the end is cut or grows.
    const size_t changes = random() % 6;
    for (size_t change = 0; change < changes; ++change) {
      bytes[kHandshakePrefixBytes + random() % (bytes.size() - kHandshakePrefixBytes)] =
          static_cast<std::byte>(random());
    }
    bytes.resize(kHandshakePrefixBytes + random() % (2 * whole.size()));
    if (const auto got = decode_hello(bytes)) {
      CHECK(got->encode().size() == bytes.size());
    }
    decode_reply(bytes);
  }
}
