#include "transport/tls_session.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <climits>
#include <stdexcept>
#include <string_view>

namespace pccl::transport {

void TlsSession::Closer::operator()(SSL* session) const { SSL_free(session); }

TlsSession::TlsSession(std::shared_ptr<const Identity> identity, Role role, uint64_t rekey_bytes)
    : identity_(std::move(identity)),
      rekey_bytes_(rekey_bytes),
      session_(identity_->new_session()),
      incoming_(BIO_new(BIO_s_mem())),
      made_(BIO_new(BIO_s_mem())) {
  if (incoming_ == nullptr || made_ == nullptr) throw std::bad_alloc();
  // An empty one means: come again, not: it has ended.
  BIO_set_mem_eof_return(incoming_, -1);
  SSL_set_bio(session_.get(), incoming_, made_);
  role == Role::Dials ? SSL_set_connect_state(session_.get())
                      : SSL_set_accept_state(session_.get());
}

TlsSession::~TlsSession() = default;

bool TlsSession::is_ready() const { return is_known_; }

bool TlsSession::advance() {
  if (is_known_) return true;
  if (!fault_.empty()) return false;
  ERR_clear_error();
  const int result = SSL_do_handshake(session_.get());
  const bool has_failed = result <= 0 && note_failure(result);
  collect();
  if (has_failed) return false;
  if (result == 1) learn_peer();
  return fault_.empty();
}

void TlsSession::learn_peer() {
  const std::unique_ptr<X509, decltype(&X509_free)> certificate(
      SSL_get1_peer_certificate(session_.get()), &X509_free);
  const auto fingerprint =
      certificate ? fingerprint_of(certificate.get()) : std::optional<Fingerprint>();
  constexpr std::string_view kLabel = "EXPORTER-Channel-Binding";
  const int exported = SSL_export_keying_material(session_.get(), channel_.data(), channel_.size(),
                                                  kLabel.data(), kLabel.size(), nullptr, 0, 1);
  if (!fingerprint || exported != 1) {
    fault_ = "TLS: the other side shows no key";
    return;
  }
  peer_ = *fingerprint;
  is_known_ = true;
}

bool TlsSession::note_failure(int result) {
  const int code = SSL_get_error(session_.get(), result);
  if (code == SSL_ERROR_WANT_READ || code == SSL_ERROR_WANT_WRITE) return false;
  const char* reason = ERR_reason_error_string(ERR_peek_last_error());
  if (code == SSL_ERROR_ZERO_RETURN) reason = "the other side has ended it";
  fault_ = std::string("TLS: ") + (reason == nullptr ? "broken off" : reason);
  ERR_clear_error();
  return true;
}

void TlsSession::collect() {
  const size_t pending = BIO_ctrl_pending(made_);
  if (pending == 0) return;
  if (sent_ == outgoing_.size()) {
    outgoing_.clear();
    sent_ = 0;
  }
  const size_t before = outgoing_.size();
  outgoing_.resize(before + pending);
  BIO_read(made_, outgoing_.data() + before, static_cast<int>(pending));
}

void TlsSession::drop_outgoing(size_t bytes) { sent_ = std::min(sent_ + bytes, outgoing_.size()); }

void TlsSession::feed(std::span<const std::byte> bytes) {
  BIO_write(incoming_, bytes.data(), static_cast<int>(bytes.size()));
}

long TlsSession::read(std::byte* target, size_t size) {
  if (!advance()) return -1;
  if (!is_known_ || size == 0) return 0;
  ERR_clear_error();
  const int count =
      SSL_read(session_.get(), target, static_cast<int>(std::min<size_t>(size, INT_MAX)));
  if (count > 0) return count;
  const bool has_failed = note_failure(count);
  collect();  // an alert, or the answer to new keys
  return has_failed ? -1 : 0;
}

bool TlsSession::write(std::span<const std::byte> plain) {
  if (!fault_.empty()) return false;
  ERR_clear_error();
  if (written_ >= rekey_bytes_) {
    SSL_key_update(session_.get(), SSL_KEY_UPDATE_NOT_REQUESTED);
    written_ = 0;
  }
  written_ += plain.size();
  // A memory BIO takes everything.
  const int count = SSL_write(session_.get(), plain.data(), static_cast<int>(plain.size()));
  if (count <= 0 && !note_failure(count)) fault_ = "TLS: written before the handshake";
  collect();
  return count > 0;
}

std::optional<Fingerprint> fingerprint_of(X509* certificate) {
  unsigned char* encoded = nullptr;
  const int size = i2d_X509_PUBKEY(X509_get_X509_PUBKEY(certificate), &encoded);
  if (size <= 0) return std::nullopt;
  Fingerprint fingerprint{};
  const int is_hashed = EVP_Digest(encoded, static_cast<size_t>(size), fingerprint.data(), nullptr,
                                   EVP_sha256(), nullptr);
  OPENSSL_free(encoded);
  return is_hashed == 1 ? std::optional(fingerprint) : std::nullopt;
}

std::array<uint8_t, 32> authenticate(std::span<const uint8_t> secret,
                                     std::span<const uint8_t> message) {
  std::array<uint8_t, 32> code{};
  HMAC(EVP_sha256(), secret.data(), static_cast<int>(secret.size()), message.data(), message.size(),
       code.data(), nullptr);
  return code;
}

}  // namespace pccl::transport
