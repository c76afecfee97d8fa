// Who is in: seats, quorums, proposals. docs/decisions/0005-membership.md explains the protocol.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "topology/link_table.h"
#include "transport/address.h"

namespace pccl::membership {

using transport::MemberId;

// Bounds what one message can make us hold. A Report may hold two quorums, and must fit into one
// frame of 512 KiB (transport::kPayloadBytesMax): 1024 seats with addresses of 200 bytes do.
inline constexpr size_t kSeatsMax = 1024;
// Proposals of earlier terms that a member remembers, and their bytes in all: it accepts none of
// yet another term until a quorum is agreed.
inline constexpr size_t kAcceptedMax = 64;
inline constexpr size_t kAcceptedBytesMax = 36 << 10;
inline constexpr size_t kQuorumBytesMax = 232 << 10;

// `joined_at` of a newcomer in a proposal: the Commit's first_operation takes its place.
inline constexpr uint64_t kJoinsNow = UINT64_MAX;

// `recover_from` of a quorum for which nothing was frozen.
inline constexpr uint64_t kNothingToRecover = UINT64_MAX;

struct Seat {
  MemberId member_id{};
  uint64_t joined_at = kJoinsNow;  // the first operation that it takes part in
  std::vector<std::byte> address;  // transport::MemberAddress, encoded; at most kAddressBytesMax
  bool operator==(const Seat&) const = default;
};

struct Quorum {
  uint64_t quorum_id = 0;   // grows by every change; 0: none
  std::vector<Seat> seats;  // the position is the rank
  // What the coordinator knew of the links between them when it proposed them: all plan by it.
  topology::LinkTable table;
  bool operator==(const Quorum&) const = default;
  bool contains(const MemberId& id) const { return rank_of(id) >= 0; }
  int32_t rank_of(const MemberId& id) const;  // -1: not in
};

size_t encoded_bytes(const Quorum& quorum);  // on the wire

// A term: how many reigns there were, times 2^32, plus 32 bits of the member that took over (the
// run's own coordinator: 0), so that no two coordinators ever have the same one.
uint64_t next_term(uint64_t largest);                          // the run's own coordinator
uint64_t next_term(uint64_t largest, const MemberId& member);  // one that takes over
bool is_of_takeover(uint64_t term);
std::string term_text(uint64_t term);  // "7", "7/1a2b3c4d"

struct Proposal {
  uint64_t term = 0;
  uint64_t ballot = 0;  // grows within a term
  // Operations stand still until it is in force and are recovered then: it drops members, or
  // takes the place of a proposal that froze somebody.
  bool freezes = false;
  Quorum quorum;
  // Seats of the quorum before it that are dead or left while they obeyed this term, and so count
  // for nobody any more: docs/decisions/0005-membership.md.
  std::vector<MemberId> gone;
  bool operator==(const Proposal&) const = default;
};

// Operations of one member.
struct Progress {
  uint64_t started = 0;    // calls made
  uint64_t completed = 0;  // all below are complete here
  bool operator==(const Progress&) const = default;
};

}  // namespace pccl::membership
