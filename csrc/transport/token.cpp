#include "transport/token.h"

#include <openssl/evp.h>

#include <algorithm>
#include <memory>
#include <new>
#include <span>
#include <string_view>

namespace pccl::transport {
namespace {

// Apart from whatever else these bytes may be used for.
constexpr std::string_view kSeedLabel = "pccl token seed";
constexpr std::string_view kProofLabel = "pccl token proof";

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using Digest = std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)>;

std::array<uint8_t, 48> labelled(const ChannelBinding& channel) {
  std::array<uint8_t, 48> message{};
  static_assert(kProofLabel.size() + sizeof(ChannelBinding) == message.size());
  auto rest = std::copy(kProofLabel.begin(), kProofLabel.end(), message.begin());
  std::copy(channel.begin(), channel.end(), rest);
  return message;
}

Key private_key(const Token& token) {
  const auto seed = authenticate(
      token.secret, {reinterpret_cast<const uint8_t*>(kSeedLabel.data()), kSeedLabel.size()});
  Key key(EVP_PKEY_new_raw_private_key(EVP_PKEY_ED25519, nullptr, seed.data(), seed.size()),
          &EVP_PKEY_free);
  if (!key) throw std::bad_alloc();
  return key;
}

}  // namespace

TokenKey Token::key() const {
  TokenKey result{};
  size_t size = result.size();
  if (EVP_PKEY_get_raw_public_key(private_key(*this).get(), result.data(), &size) != 1)
    throw std::bad_alloc();
  return result;
}

TokenProof Token::prove(const ChannelBinding& channel) const {
  const Key key = private_key(*this);
  const Digest digest(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  const auto message = labelled(channel);
  TokenProof proof{};
  size_t size = proof.size();
  if (EVP_DigestSignInit(digest.get(), nullptr, nullptr, nullptr, key.get()) != 1 ||
      EVP_DigestSign(digest.get(), proof.data(), &size, message.data(), message.size()) != 1)
    throw std::bad_alloc();
  return proof;
}

TokenId id_of(const TokenKey& key) {
  std::array<uint8_t, 32> hash{};
  if (EVP_Digest(key.data(), key.size(), hash.data(), nullptr, EVP_sha256(), nullptr) != 1)
    throw std::bad_alloc();
  TokenId id{};
  std::copy_n(hash.begin(), id.size(), id.begin());
  return id;
}

bool is_proof(const TokenProof& proof, const TokenKey& key, const ChannelBinding& channel) {
  const Key verifier(EVP_PKEY_new_raw_public_key(EVP_PKEY_ED25519, nullptr, key.data(), key.size()),
                     &EVP_PKEY_free);
  const Digest digest(EVP_MD_CTX_new(), &EVP_MD_CTX_free);
  const auto message = labelled(channel);
  return verifier &&
         EVP_DigestVerifyInit(digest.get(), nullptr, nullptr, nullptr, verifier.get()) == 1 &&
         EVP_DigestVerify(digest.get(), proof.data(), proof.size(), message.data(),
                          message.size()) == 1;
}

}  // namespace pccl::transport
