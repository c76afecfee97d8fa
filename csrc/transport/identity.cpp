#include "transport/identity.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <algorithm>
#include <stdexcept>

#include "transport/tls_session.h"

namespace pccl::transport {
namespace {

// A certificate of ours has 300 bytes.
constexpr long kCertificateBytesMax = 4096;

using Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

void require(bool is_done, const char* what) {
  if (is_done) return;
  const char* reason = ERR_reason_error_string(ERR_get_error());
  throw std::runtime_error(std::string("identity: ") + what + ": " +
                           (reason == nullptr ? "OpenSSL gives no reason" : reason));
}

Certificate make_certificate(EVP_PKEY* key) {
  Certificate certificate(X509_new(), &X509_free);
  require(certificate != nullptr, "X509_new");
  X509* const raw = certificate.get();
  X509_NAME* const name = X509_get_subject_name(raw);
  const auto* common = reinterpret_cast<const unsigned char*>("pccl");
  // OpenSSL wants dates that are in order; nobody reads them.
  const bool is_made =
      X509_set_version(raw, 2) == 1 && ASN1_INTEGER_set(X509_get_serialNumber(raw), 1) == 1 &&
      ASN1_TIME_set_string_X509(X509_getm_notBefore(raw), "20000101000000Z") == 1 &&
      ASN1_TIME_set_string_X509(X509_getm_notAfter(raw), "99991231235959Z") == 1 &&
      X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, common, -1, -1, 0) == 1 &&
      X509_set_issuer_name(raw, name) == 1 && X509_set_pubkey(raw, key) == 1 &&
      X509_sign(raw, key, nullptr) > 0;
  require(is_made, "making a certificate");
  return certificate;
}

// Whoever holds the key of an ed25519 certificate may speak; TLS proves that it does. Whether it is
// welcome is decided by its fingerprint, and said in words.
int accept_ed25519(X509_STORE_CTX* store, void* /*unused*/) {
  X509* const certificate = X509_STORE_CTX_get0_cert(store);
  EVP_PKEY* const key = certificate == nullptr ? nullptr : X509_get0_pubkey(certificate);
  const bool is_accepted = key != nullptr && EVP_PKEY_is_a(key, "ED25519") == 1;
  if (!is_accepted) X509_STORE_CTX_set_error(store, X509_V_ERR_CERT_UNTRUSTED);
  return is_accepted ? 1 : 0;
}

}  // namespace

void Identity::KeyCloser::operator()(EVP_PKEY* key) const { EVP_PKEY_free(key); }
void Identity::ContextCloser::operator()(SSL_CTX* context) const { SSL_CTX_free(context); }

std::shared_ptr<const Identity> Identity::generate() {
  EVP_PKEY* const key = EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519");
  require(key != nullptr, "making a key");
  return std::shared_ptr<const Identity>(new Identity(key));
}

std::shared_ptr<const Identity> Identity::from_pem(const std::string& pem) {
  const std::unique_ptr<BIO, decltype(&BIO_free)> input(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free);
  // No password: OpenSSL would ask the terminal for it.
  const auto no_password = [](char*, int, int, void*) { return -1; };
  EVP_PKEY* const key = PEM_read_bio_PrivateKey(input.get(), nullptr, no_password, nullptr);
  if (key == nullptr || EVP_PKEY_is_a(key, "ED25519") != 1) {
    EVP_PKEY_free(key);
    ERR_clear_error();
    throw std::invalid_argument(
        "key: expected an ed25519 private key in PEM, without a password, as `pccl keygen` makes");
  }
  return std::shared_ptr<const Identity>(new Identity(key));
}

Identity::Identity(EVP_PKEY* key) : key_(key), context_(SSL_CTX_new(TLS_method())) {
  SSL_CTX* const context = context_.get();
  require(context != nullptr, "SSL_CTX_new");
  const Certificate certificate = make_certificate(key);
  // AES first: most CPUs have instructions for it.
  const bool is_set = SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
                      SSL_CTX_set_max_proto_version(context, TLS1_3_VERSION) == 1 &&
                      SSL_CTX_set_ciphersuites(
                          context, "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256") == 1 &&
                      SSL_CTX_set1_groups_list(context, "X25519") == 1 &&
                      SSL_CTX_set1_sigalgs_list(context, "ed25519") == 1 &&
                      SSL_CTX_use_certificate(context, certificate.get()) == 1 &&
                      SSL_CTX_use_PrivateKey(context, key) == 1 &&
                      SSL_CTX_set_num_tickets(context, 0) == 1;
  require(is_set, "setting TLS up");
  SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_cert_verify_callback(context, &accept_ed25519, nullptr);
  SSL_CTX_set_max_cert_list(context, kCertificateBytesMax);
  SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  const auto fingerprint = fingerprint_of(certificate.get());
  require(fingerprint.has_value(), "hashing a key");
  fingerprint_ = *fingerprint;
}

Identity::~Identity() = default;

std::string Identity::private_pem() const {
  const std::unique_ptr<BIO, decltype(&BIO_free)> output(BIO_new(BIO_s_mem()), &BIO_free);
  require(output && PEM_write_bio_PrivateKey(output.get(), key_.get(), nullptr, nullptr, 0, nullptr,
                                             nullptr) == 1,
          "writing a key");
  char* text = nullptr;
  const long size = BIO_get_mem_data(output.get(), &text);
  return {text, static_cast<size_t>(size)};
}

SSL* Identity::new_session() const {
  SSL* const session = SSL_new(context_.get());
  require(session != nullptr, "SSL_new");
  return session;
}

std::array<uint8_t, 16> Identity::derive_secret(const std::string& label) const {
  std::array<uint8_t, 32> raw{};
  size_t size = raw.size();
  require(EVP_PKEY_get_raw_private_key(key_.get(), raw.data(), &size) == 1, "reading a key");
  const auto code =
      authenticate(raw, {reinterpret_cast<const uint8_t*>(label.data()), label.size()});
  std::array<uint8_t, 16> secret{};
  std::copy_n(code.begin(), secret.size(), secret.begin());
  return secret;
}

std::string to_text(const Fingerprint& fingerprint) { return base64url(fingerprint); }

std::string base64url(std::span<const uint8_t> bytes) {
  std::string text(4 * ((bytes.size() + 2) / 3) + 1, '=');
  EVP_EncodeBlock(reinterpret_cast<unsigned char*>(text.data()), bytes.data(),
                  static_cast<int>(bytes.size()));
  text.resize((8 * bytes.size() + 5) / 6);  // without the padding
  for (char& character : text) {
    if (character == '+') character = '-';
    if (character == '/') character = '_';
  }
  return text;
}

}  // namespace pccl::transport
