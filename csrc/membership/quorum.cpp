#include "membership/quorum.h"

#include <algorithm>
#include <cstring>

namespace pccl::membership {

int32_t Quorum::rank_of(const MemberId& id) const {
  for (size_t rank = 0; rank < seats.size(); ++rank) {
    if (seats[rank].member_id == id) return static_cast<int32_t>(rank);
  }
  return -1;
}

uint64_t next_term(uint64_t largest) { return ((largest >> 32) + 1) << 32; }

uint64_t next_term(uint64_t largest, const MemberId& member) {
  uint32_t bits = 0;
  std::memcpy(&bits, member.data(), sizeof(bits));
  return next_term(largest) | std::max<uint32_t>(bits, 1);
}

bool is_of_takeover(uint64_t term) { return static_cast<uint32_t>(term) != 0; }

std::string term_text(uint64_t term) {
  std::string text = std::to_string(term >> 32);
  const auto bits = static_cast<uint32_t>(term);
  if (bits == 0) return text;
  MemberId member{};
  std::memcpy(member.data(), &bits, sizeof(bits));
  return text + "/" + transport::to_text(member);
}

size_t encoded_bytes(const Quorum& quorum) {
  size_t bytes = sizeof(quorum.quorum_id) + sizeof(uint16_t);
  for (const Seat& seat : quorum.seats) {
    bytes += sizeof(seat.member_id) + sizeof(seat.joined_at) + sizeof(uint16_t);
    bytes += seat.address.size();
  }
  bytes += 2 * sizeof(uint16_t);
  bytes += quorum.table.links.size() * sizeof(topology::LinkEntry);
  bytes += quorum.table.caps.size() * sizeof(topology::CapEntry);
  return bytes;
}

}  // namespace pccl::membership
