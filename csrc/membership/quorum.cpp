#include "membership/quorum.h"

namespace pccl::membership {

int32_t Quorum::rank_of(const MemberId& id) const {
  for (size_t rank = 0; rank < seats.size(); ++rank) {
    if (seats[rank].member_id == id) return static_cast<int32_t>(rank);
  }
  return -1;
}

size_t encoded_bytes(const Quorum& quorum) {
  size_t bytes = sizeof(quorum.quorum_id) + sizeof(uint16_t);
  for (const Seat& seat : quorum.seats) {
    bytes += sizeof(seat.member_id) + sizeof(seat.joined_at) + sizeof(uint16_t);
    bytes += seat.address.size();
  }
  return bytes;
}

}  // namespace pccl::membership
