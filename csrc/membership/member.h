// One member's side of the protocol: a pure state machine. No sockets, clocks or threads.
//
// The driver (csrc/run_member.h, or the simulator) hands in what happened and performs the actions
// in their order. docs/membership.md draws the states.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "membership/messages.h"

namespace pccl::membership {

struct MemberOptions {
  Seat seat;                     // joined_at is filled in when it is admitted
  double takeover_seconds = 10;  // until a coordinator says another
};

// To the coordinator that it is connected with.
struct SendToCoordinator {
  Message message;
};
// Start no more operations; if `freezes`, let nothing become final in the quorum in force and its
// running operations either. Answer with Member::on_held(). Lasts until the next Enter; another
// Hold may come before it, and before the answer, which is then not waited for any more.
struct Hold {
  uint64_t quorum_id = 0;  // proposed
  bool freezes = false;
  bool operator==(const Hold&) const = default;
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
// The coordinator stays away and this member is the one to replace it: start one with
// durable_from(report(true), term) and CoordinatorOptions::has_taken_over, and tell the others.
struct TakeOver {
  uint64_t term = 0;
};
using MemberAction = std::variant<SendToCoordinator, Hold, Enter, Evicted, TakeOver>;

enum class MemberState : uint8_t { Joining, Running, Holding, Held, Out };
std::string_view state_name(MemberState state);

class Member {
 public:
  Member(MemberOptions options, TimePoint now);

  void on_connected(TimePoint now);  // to a coordinator
  void on_disconnected(TimePoint now);
  void on_message(const Message& message, TimePoint now);
  // Operations stand still as `hold` demanded.
  void on_held(const Hold& hold, const Progress& progress, TimePoint now);
  void set_progress(const Progress& progress);
  void set_revision(uint64_t revision, const Digest& digest);
  // Its connection to another member is lost for good, or back.
  void on_link_lost(const MemberId& peer, bool has_ended, const std::string& reason, TimePoint now);
  void on_link_back(const MemberId& peer, TimePoint now);
  void leave(TimePoint now);
  // Does what is due; returns when it wants to be called next.
  TimePoint on_time(TimePoint now);
  std::vector<MemberAction> take_actions();

  // Of the shared state, as the coordinator last said: committed, so on its disk.
  uint64_t committed_revision() const { return committed_revision_; }
  const Digest& committed_digest() const { return committed_digest_; }

  // Why the coordinator can't go on, as it last said; "": it can.
  const std::string& waits_for() const { return waits_for_; }
  double takeover_seconds() const { return takeover_seconds_; }
  const Rules& rules() const { return rules_; }

  MemberState state() const { return state_; }
  uint64_t term() const { return report_.term; }
  const Quorum& quorum() const { return quorum_; }
  // What it would say now.
  Report report(bool with_quorum) const;
  double round_trip_seconds() const;  // to the coordinator, smallest of the last ones; 0: unknown

 private:
  void on(const Report&, TimePoint) {}  // members don't report to members
  void on(const Accept&, TimePoint) {}
  void on(const TakenOver&, TimePoint) {}  // the driver's
  void on(const Status& status, TimePoint now);
  void on(const Propose& propose, TimePoint now);
  void on(const Commit& commit, TimePoint now);
  void on(const Refuse& refuse, TimePoint now);
  // After a pause of this process, silence is not held against the coordinator.
  void notice_pause(TimePoint now);
  bool obeys_home(TimePoint now) const;
  bool may_accept(const Proposal& proposal) const;
  void accept();
  std::optional<Proposal> earlier_accepted(uint64_t term) const;
  void send_accept();
  void send(const Message& message);
  void send_report(TimePoint now);
  TimePoint takeover_at() const;

  MemberOptions options_;
  MemberState state_ = MemberState::Joining;
  std::vector<MemberAction> actions_;
  Report report_;  // all but quorum and suspects is kept here
  Quorum quorum_;
  std::map<MemberId, Suspect> suspects_;  // seats of quorum_
  std::optional<Proposal> pending_;       // Hold is out, or will be once the one before is answered
  std::optional<Hold> unanswered_;

  bool is_connected_ = false;
  bool wants_quorum_ = false;
  bool has_taken_over_ = false;  // since it last heard of a coordinator
  uint64_t taken_term_ = 0;      // of its last reign: no two have the same
  double heartbeat_seconds_ = 0.5;
  double takeover_seconds_ = 0;
  TimePoint now_;
  TimePoint reported_at_;
  TimePoint heard_at_;                      // of any coordinator; pauses of this process left out
  std::optional<TimePoint> heard_home_at_;  // of the run's own one
  std::deque<uint32_t> round_trips_us_;
  uint64_t committed_revision_ = 0;
  Digest committed_digest_{};
  std::string waits_for_;
  Rules rules_;
};

// The states and what leads from one to the other: the page docs/membership.md is made from it, and
// the simulator checks that it sees each of them and no other.
struct MemberTransition {
  MemberState from;
  std::string_view event;
  MemberState to;
  std::string_view action;
};
std::span<const MemberTransition> member_transitions();

}  // namespace pccl::membership
