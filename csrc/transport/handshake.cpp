#include "transport/handshake.h"

#include "base/bytes.h"
#include "transport/frame.h"

namespace pccl::transport {
namespace {

std::vector<std::byte> with_prefix(uint32_t magic, const std::vector<std::byte>& body) {
  ByteWriter out;
  out.put(magic);
  out.put(kProtocolVersion);
  out.put(static_cast<uint16_t>(body.size()));
  out.put_bytes(body);
  return out.bytes();
}

}  // namespace

std::vector<std::byte> Hello::encode() const {
  ByteWriter body;
  const std::vector<std::byte> address = from.encode();
  body.put_text(std::string_view(reinterpret_cast<const char*>(address.data()), address.size()));
  body.put(to);
  body.put(nonce);
  body.put(socket_index);
  body.put(static_cast<uint8_t>(road));
  body.put(static_cast<uint8_t>(intent));
  body.put(static_cast<uint8_t>(resumes));
  body.put(attempt);
  body.put(consumed);
  body.put(token_id);
  body.put(proof);
  return with_prefix(kHelloMagic, body.bytes());
}

std::vector<std::byte> Reply::encode() const {
  ByteWriter body;
  body.put(static_cast<uint8_t>(answer));
  body.put_text(std::string_view(reason).substr(0, 1024));
  body.put(static_cast<uint8_t>(resumes));
  body.put(consumed);
  return with_prefix(kReplyMagic, body.bytes());
}

std::optional<size_t> handshake_bytes(std::span<const std::byte> bytes, uint32_t magic,
                                      std::string& fault) {
  if (bytes.size() < kHandshakePrefixBytes) return std::nullopt;
  ByteReader in(bytes);
  if (in.get<uint32_t>() != magic) {
    fault = "this is a pccl member, and what came is no pccl handshake";
    return std::nullopt;
  }
  const auto version = in.get<uint16_t>();
  if (version != kProtocolVersion) {
    fault = "protocol version " + std::to_string(version) + " meets version " +
            std::to_string(kProtocolVersion) + ": install the same pccl on every machine";
    return std::nullopt;
  }
  const size_t size = kHandshakePrefixBytes + in.get<uint16_t>();
  if (size > kHandshakeBytesMax) {
    fault = "handshake of " + std::to_string(size) + " bytes, the limit is " +
            std::to_string(kHandshakeBytesMax);
    return std::nullopt;
  }
  return size;
}

std::optional<Hello> decode_hello(std::span<const std::byte> bytes) {
  ByteReader in(bytes.subspan(kHandshakePrefixBytes));
  const std::string address_bytes = in.get_text(kAddressBytesMax);
  Hello hello;
  auto from =
      MemberAddress::decode(std::as_bytes(std::span(address_bytes.data(), address_bytes.size())));
  if (!in.ok() || !from) return std::nullopt;
  hello.from = std::move(*from);
  hello.to = in.get<MemberId>();
  hello.nonce = in.get<uint64_t>();
  hello.socket_index = in.get<uint16_t>();
  const auto road = in.get<uint8_t>();
  const auto intent = in.get<uint8_t>();
  const auto resumes = in.get<uint8_t>();
  hello.attempt = in.get<uint32_t>();
  hello.consumed = in.get<uint32_t>();
  hello.token_id = in.get<TokenId>();
  hello.proof = in.get<TokenProof>();
  if (!in.ok() || !in.at_end() || road > 1 || intent > 3 || resumes > 1) return std::nullopt;
  hello.road = static_cast<Road>(road);
  hello.intent = static_cast<Intent>(intent);
  hello.resumes = resumes != 0;
  return hello;
}

std::optional<Reply> decode_reply(std::span<const std::byte> bytes) {
  ByteReader in(bytes.subspan(kHandshakePrefixBytes));
  Reply reply;
  const auto answer = in.get<uint8_t>();
  reply.reason = in.get_text(1024);
  const auto resumes = in.get<uint8_t>();
  reply.consumed = in.get<uint32_t>();
  if (!in.ok() || !in.at_end() || answer > kAnswerMax || resumes > 1) return std::nullopt;
  reply.resumes = resumes != 0;
  reply.answer = static_cast<Answer>(answer);
  return reply;
}

}  // namespace pccl::transport
