// One member's side of the protocol: a pure state machine. No sockets, clocks or threads.
//
// The driver (csrc/run_member.h, or the simulator) hands in what happened and performs the actions
// in their order.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "membership/messages.h"

namespace pccl::membership {

struct MemberOptions {
  Seat seat;  // joined_at is filled in when it is admitted
  double takeover_seconds = 10;
};

// To the coordinator that it is connected with.
struct SendToCoordinator {
  Message message;
};
// Start no more operations; if `freezes`, let nothing become final in the quorum in force and its
// running operations either. Answer with Member::on_held(). Lasts until the next Enter; another
// Hold may come before it.
struct Hold {
  uint64_t quorum_id = 0;  // proposed
  bool freezes = false;
};
// The quorum is in force: see docs/decisions/0005-membership.md for what happens to operations
// below `first_operation`. `drops`: operations were frozen, and those in
// [recover_from, first_operation) are to be recovered; the quorum may even have the same seats.
struct Enter {
  Quorum quorum;
  uint64_t first_operation = 0;
  uint64_t recover_from = 0;
  bool drops = false;
};
// This member is out for good and must join anew.
struct Evicted {
  std::string reason;
};
// The coordinator stays away and this member is the one to replace it: start one with this in its
// database, and tell the others of it.
struct TakeOver {
  uint64_t term = 0;
};
using MemberAction = std::variant<SendToCoordinator, Hold, Enter, Evicted, TakeOver>;

class Member {
 public:
  Member(MemberOptions options, TimePoint now);

  void on_connected(TimePoint now);  // to a coordinator
  void on_disconnected(TimePoint now);
  void on_message(const Message& message, TimePoint now);
  // Operations stand still as Hold demanded.
  void on_held(uint64_t quorum_id, const Progress& progress, TimePoint now);
  void set_progress(const Progress& progress);
  void set_revision(uint64_t revision, const Digest& digest);
  // Its connection to another member is lost for good, or back.
  void on_link_lost(const MemberId& peer, bool has_ended, const std::string& reason, TimePoint now);
  void on_link_back(const MemberId& peer, TimePoint now);
  void leave(TimePoint now);
  TimePoint on_time(TimePoint now);
  std::vector<MemberAction> take_actions();

  // Of the shared state, as the coordinator last said: committed, so on its disk.
  uint64_t committed_revision() const;
  const Digest& committed_digest() const;

  uint64_t term() const;
  const Quorum& quorum() const;
  double round_trip_seconds() const;  // to the coordinator, smallest of the last ones; 0: unknown
};

}  // namespace pccl::membership
