// One TLS 1.3 session without a socket: bytes of the network go in and come out, and so do plain
// ones. Both sides show a key; whose it is may be asked once is_ready().
//
// What is inside is bounded: of what came, what feed() was given and read() has not taken; of what
// goes out, what drop_outgoing() has not taken, at most what one write() makes.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transport/identity.h"

struct bio_st;
struct ssl_st;
struct x509_st;

namespace pccl::transport {

// Bytes that only the two ends of one session know (RFC 9266 "tls-exporter"): what is bound to them
// is worth nothing in another session.
using ChannelBinding = std::array<uint8_t, 32>;

class TlsSession {
 public:
  enum class Role : uint8_t { Dials, Answers };
  // After so many bytes new keys are taken: AES-GCM is good for 2^24.5 records of 16 KiB, 390 GiB.
  static constexpr uint64_t kRekeyBytes = uint64_t{64} << 30;

  TlsSession(std::shared_ptr<const Identity> identity, Role role,
             uint64_t rekey_bytes = kRekeyBytes);
  ~TlsSession();
  TlsSession(const TlsSession&) = delete;
  TlsSession& operator=(const TlsSession&) = delete;

  // Both sides have proved their keys.
  bool is_ready() const;
  // Goes on with the handshake; false: it failed, see fault().
  bool advance();

  void feed(std::span<const std::byte> bytes);
  // >0: plain bytes; 0: there are none in what came so far; -1: it is broken, see fault().
  long read(std::byte* target, size_t size);
  // False: it is broken. Requires: is_ready().
  bool write(std::span<const std::byte> plain);
  std::span<const std::byte> outgoing() const { return std::span(outgoing_).subspan(sent_); }
  void drop_outgoing(size_t bytes);

  // Of the other side. Requires: is_ready().
  const Fingerprint& peer() const { return peer_; }
  const ChannelBinding& channel() const { return channel_; }
  const std::string& fault() const { return fault_; }

 private:
  struct Closer {
    void operator()(ssl_st* session) const;
  };
  void collect();
  bool note_failure(int result);  // false: only more bytes are needed
  void learn_peer();

  const std::shared_ptr<const Identity> identity_;
  const uint64_t rekey_bytes_;
  std::unique_ptr<ssl_st, Closer> session_;
  bio_st* incoming_;  // session_ owns both
  bio_st* made_;
  std::vector<std::byte> outgoing_;
  size_t sent_ = 0;  // of outgoing_
  uint64_t written_ = 0;
  bool is_known_ = false;
  Fingerprint peer_{};
  ChannelBinding channel_{};
  std::string fault_;
};

// nullopt: OpenSSL has no memory.
std::optional<Fingerprint> fingerprint_of(x509_st* certificate);
// HMAC-SHA256.
std::array<uint8_t, 32> authenticate(std::span<const uint8_t> secret,
                                     std::span<const uint8_t> message);

}  // namespace pccl::transport
