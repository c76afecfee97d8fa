// What members and coordinators say to each other: values, and their bytes.
//
// Bytes come from the network: decode() checks every length and count before it allocates.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "membership/quorum.h"

namespace pccl::membership {

using Digest = std::array<uint8_t, 32>;  // SHA-256

// Said in one Report; more of them would tell the coordinator nothing new.
inline constexpr size_t kSuspectsMax = 64;

// Longest reason in a Suspect or Refuse; what is longer is cut.
inline constexpr size_t kReasonBytesMax = 255;

struct Suspect {
  MemberId member_id{};
  bool has_ended = false;  // its process was seen to end
  std::string reason;
  bool operator==(const Suspect&) const = default;
};

// Links told of in one Report; a member with more of them tells of the others in the next ones.
inline constexpr size_t kLinksMax = 32;

// To one other member. Counters only grow, and begin anew when a connection does.
struct LinkFigures {
  MemberId to{};
  uint64_t bytes_sent = 0;
  uint64_t busy_us = 0;  // something was under way to it, over TCP; 0: memory
  uint32_t round_trip_us = 0;
  uint32_t replaced_sockets = 0;
  // What the member plans by, KiB a second; 0: not measured. And how long ago that was.
  uint32_t sends = 0;
  uint32_t receives = 0;
  uint32_t measured_seconds_ago = 0;
  bool operator==(const LinkFigures&) const = default;
};

// What a member has counted since it began, and measured. For people, and for the plans of later
// quorums: who is in does not depend on it.
struct Figures {
  uint64_t operations_us = 0;  // a collective of its caller's was under way
  uint64_t resumed_connections = 0;
  uint64_t replaced_sockets = 0;
  uint64_t resent_bytes = 0;
  uint64_t recovered_operations = 0;
  uint64_t recovery_us = 0;  // of those, from standing still to their results
  topology::CapEntry cap;    // of its own, as it plans by it
  std::vector<LinkFigures> links;
  bool operator==(const Figures&) const = default;
};

struct Report {
  uint64_t term = 0;  // of the coordinator that it obeys; 0: none yet
  Seat seat;
  uint64_t quorum_id = 0;  // in force here; 0: none yet, a newcomer
  // How it came into force: what its Commit said.
  uint64_t quorum_term = 0;
  uint64_t quorum_ballot = 0;
  uint64_t first_operation = 0;
  uint64_t recover_from = 0;
  std::optional<Quorum> quorum;      // in force; only where the coordinator may not know it
  std::optional<Proposal> accepted;  // above the quorum in force
  // What it accepted before that, the last one of each earlier term: one of them may be in force
  // somewhere. Seats have no addresses here.
  std::vector<Proposal> accepted_before;
  // It has frozen its operations, and has entered no quorum since that recovers them.
  bool needs_recovery = false;
  Progress progress;
  std::vector<Suspect> suspects;
  uint64_t revision = 0;  // of the shared state that it holds; 0: none
  Digest digest{};
  uint64_t clock = 0;          // microseconds, its own; comes back in Status
  uint64_t heard_clock = 0;    // of the last Status that it got from this coordinator
  uint32_t round_trip_us = 0;  // to the coordinator; 0: unknown
  bool is_leaving = false;
  Figures figures;  // filled in by who sends it
  bool operator==(const Report&) const = default;
};

// How the run's own coordinator was told to look after it; whoever takes over keeps to the same.
struct Rules {
  uint32_t heartbeat_ms = 0;
  uint32_t silence_ms = 0;
  uint32_t link_grace_ms = 0;
  // For so long after a Status was sent, its member obeys nobody but the run's own coordinator.
  uint32_t takeover_ms = 0;
  uint32_t world_size_min = 1;
  bool operator==(const Rules&) const = default;
};

struct Status {
  uint64_t term = 0;
  uint64_t quorum_id = 0;
  uint64_t clock = 0;              // of the Report that it answers
  uint64_t coordinator_clock = 0;  // microseconds; comes back in Report
  Rules rules;
  bool has_taken_over = false;  // it is not the run's own coordinator
  uint64_t revision = 0;        // of the shared state, committed
  Digest digest{};
  bool wants_quorum = false;  // the next report must hold the whole quorum
  std::string waits_for;      // why it can't go on, or let newcomers in; "": it can
  bool operator==(const Status&) const = default;
};

struct Propose {
  Proposal proposal;
  bool operator==(const Propose&) const = default;
};

struct Accept {
  uint64_t term = 0;
  uint64_t ballot = 0;
  uint64_t quorum_id = 0;
  Progress progress;
  bool operator==(const Accept&) const = default;
};

struct Commit {
  uint64_t term = 0;
  uint64_t ballot = 0;
  uint64_t quorum_id = 0;
  uint64_t first_operation = 0;
  uint64_t recover_from = 0;
  bool operator==(const Commit&) const = default;
};

enum class RefuseKind : uint8_t { Evicted = 1, WrongRun = 2, Full = 3, Stopped = 4 };

struct Refuse {
  uint64_t term = 0;
  RefuseKind kind = RefuseKind::Evicted;
  std::string reason;
  bool operator==(const Refuse&) const = default;
};

// From a member to the others of its quorum: it has started a coordinator in place of the run's own
// one, which stays away.
struct TakenOver {
  uint64_t term = 0;
  std::vector<std::byte> address;  // transport::MemberAddress of that coordinator, encoded
  bool operator==(const TakenOver&) const = default;
};

using Message = std::variant<Report, Status, Propose, Accept, Commit, Refuse, TakenOver>;

// Requires: quorums within kSeatsMax and kQuorumBytesMax; of the suspects the first kSuspectsMax
// are said, and of the links the first kLinksMax.
std::vector<std::byte> encode(const Message& message);
// nullopt: no message of this version.
std::optional<Message> decode(std::span<const std::byte> bytes);
std::string describe(const Message& message);  // one line, for the flight recorder

}  // namespace pccl::membership
