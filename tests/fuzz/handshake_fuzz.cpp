// Handshakes and addresses: what is understood is said again in the same words.
#include "fuzz.h"
#include "transport/handshake.h"

using namespace pccl::transport;

std::vector<fuzz::Bytes> make_seeds() {
  Hello hello;
  hello.from.run = "run";
  hello.from.member_id.fill(7);
  hello.to.fill(9);
  return {hello.encode(), Reply{Answer::Welcome, ""}.encode(),
          Reply{Answer::Refused, "wrong run"}.encode(), hello.from.encode()};
}

void try_input(std::span<const std::byte> input) {
  std::string fault;
  for (const uint32_t magic : {kHelloMagic, kReplyMagic}) {
    const auto whole = handshake_bytes(input, magic, fault);
    if (!whole) continue;
    fuzz::require(*whole <= 1 << 16, "a handshake is bounded");
    if (input.size() < *whole) continue;
    const auto message = input.first(*whole);
    if (magic == kHelloMagic) {
      const auto hello = decode_hello(message);
      if (hello) {
        const auto again = decode_hello(hello->encode());
        fuzz::require(again.has_value(), "a Hello is understood again");
        fuzz::require(again->encode() == hello->encode(), "a Hello stays as it is");
      }
    } else if (const auto reply = decode_reply(message)) {
      const auto again = decode_reply(reply->encode());
      fuzz::require(again && again->encode() == reply->encode(), "a Reply stays as it is");
    }
  }
  if (const auto address = MemberAddress::decode(input)) {
    const auto again = MemberAddress::decode(address->encode());
    fuzz::require(again && again->encode() == address->encode(), "an address stays as it is");
  }
}
