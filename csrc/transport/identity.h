// Who a member is: an ed25519 key, shown in a certificate that it signs itself. No authority.
//
// The identity is the fingerprint: SHA-256 of the public key (its SubjectPublicKeyInfo). Dates and
// names in certificates mean nothing.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "transport/address.h"

struct evp_pkey_st;
struct ssl_ctx_st;
struct ssl_st;

namespace pccl::transport {

// Immutable. shared_ptr: an endpoint and its sessions own it.
class Identity {
 public:
  // A new key.
  static std::shared_ptr<const Identity> generate();
  // Throws std::invalid_argument: no ed25519 private key.
  static std::shared_ptr<const Identity> from_pem(const std::string& pem);
  ~Identity();
  Identity(const Identity&) = delete;
  Identity& operator=(const Identity&) = delete;

  const Fingerprint& fingerprint() const { return fingerprint_; }
  std::string private_pem() const;
  // Bytes that only the holder of this key can find, the same each time; others for another label.
  std::array<uint8_t, 16> derive_secret(const std::string& label) const;
  // A new TLS session with this identity; the caller frees it.
  ssl_st* new_session() const;

 private:
  struct KeyCloser {
    void operator()(evp_pkey_st* key) const;
  };
  struct ContextCloser {
    void operator()(ssl_ctx_st* context) const;
  };
  explicit Identity(evp_pkey_st* key);  // takes it

  std::unique_ptr<evp_pkey_st, KeyCloser> key_;
  std::unique_ptr<ssl_ctx_st, ContextCloser> context_;
  Fingerprint fingerprint_{};
};

// What to show people and to paste: base64url, 43 characters.
std::string to_text(const Fingerprint& fingerprint);
std::string base64url(std::span<const uint8_t> bytes);

}  // namespace pccl::transport
