// The first bytes on every socket: who calls, which run, which version; and the answer, in words
// when it is a refusal.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/address.h"
#include "transport/token.h"

namespace pccl::transport {

// Magic, version, length of the body: the same in every version, so that versions can refuse each
// other in words.
inline constexpr size_t kHandshakePrefixBytes = 8;
inline constexpr size_t kHandshakeBytesMax = kHandshakePrefixBytes + kAddressBytesMax + 128;

enum class Road : uint8_t { Tcp = 0, Memory = 1 };

enum class Intent : uint8_t {
  Open = 0,     // a new connection, or a further socket of one that is being made
  Resume = 1,   // a socket in place of one that broke
  Probe = 2,    // only to hear whether the process is there
  Examine = 3,  // of a coordinator: to hear how it sees the caller; see transport/examination.h
};
// Whether it makes no connection, and changes nothing.
constexpr bool asks_only(Intent intent) {
  return intent == Intent::Probe || intent == Intent::Examine;
}

struct Hello {
  MemberAddress from;
  MemberId to{};       // all zero: whoever answers, if it is a coordinator
  uint64_t nonce = 0;  // the same for all sockets of one connection
  uint16_t socket_index = 0;
  Road road = Road::Tcp;
  Intent intent = Intent::Open;
  bool resumes = false;   // the caller numbers its frames and would resume this connection
  uint32_t attempt = 0;   // counts the caller's dials for this connection: no Hello counts twice
  uint32_t consumed = 0;  // Resume: frames of this connection below it have been consumed
  TokenId token_id{};
  TokenProof proof{};  // of the token, for this TLS channel

  std::vector<std::byte> encode() const;
};

enum class Answer : uint8_t {
  Welcome = 0,
  Refused = 1,
  Duplicate = 2,  // the other side is dialing us, or has: wait for its connection
  Alive = 3,      // to a Probe: it is the wanted member
  Over = 4,       // to a Resume: it is the wanted member, and has ended that connection for good
  Stranger = 5,   // to a Probe or Resume: it is another member
  NotYet = 6,     // the caller's key is not known here, and may be soon
};
inline constexpr uint8_t kAnswerMax = 6;

struct Reply {
  Answer answer = Answer::Welcome;
  std::string reason;
  bool resumes = false;   // both do: frames are numbered
  uint32_t consumed = 0;  // as in Hello

  std::vector<std::byte> encode() const;
};

// How many bytes the handshake message that begins with `bytes` has in all; nullopt while fewer
// than kHandshakePrefixBytes are there. `fault` gets the refusal if the prefix is none of ours or
// of another version.
std::optional<size_t> handshake_bytes(std::span<const std::byte> bytes, uint32_t magic,
                                      std::string& fault);
inline constexpr uint32_t kHelloMagic = 0x48434350;  // "PCCH"
inline constexpr uint32_t kReplyMagic = 0x57434350;  // "PCCW"

// nullopt: malformed. Requires whole messages, as told by handshake_bytes().
std::optional<Hello> decode_hello(std::span<const std::byte> bytes);
std::optional<Reply> decode_reply(std::span<const std::byte> bytes);

}  // namespace pccl::transport
