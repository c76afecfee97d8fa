// What admits a stranger to a run: a secret that stands in the run's address, and its verifier.
//
// The secret is the seed of an ed25519 key. Who has it signs the TLS channel; who checks it holds
// the public key alone, which admits nobody.
#pragma once

#include <array>
#include <cstdint>

#include "transport/tls_session.h"

namespace pccl::transport {

using TokenId = std::array<uint8_t, 8>;  // all zero: none
using TokenKey = std::array<uint8_t, 32>;
using TokenProof = std::array<uint8_t, 64>;

struct Token {
  std::array<uint8_t, 16> secret{};

  TokenKey key() const;
  // That its holder is at the other end of this channel, and of no other.
  TokenProof prove(const ChannelBinding& channel) const;
};

TokenId id_of(const TokenKey& key);
bool is_proof(const TokenProof& proof, const TokenKey& key, const ChannelBinding& channel);

}  // namespace pccl::transport
