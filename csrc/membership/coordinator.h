// Decides who is in: a pure state machine for one run. No sockets, clocks, threads or disk.
//
// docs/membership.md draws its states. The driver (membership/coordinator_server.h, or the
// simulator) hands in what happened and when, then performs the actions in their order. A Persist
// must be on disk before the actions behind it are performed; the machine puts whatever depends on
// it behind it.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/clock.h"
#include "membership/link_book.h"
#include "membership/messages.h"

namespace pccl::membership {

struct CoordinatorOptions {
  std::string run;
  int32_t world_size_min = 1;  // the first quorum waits for so many; a smaller one does not go on
  int32_t world_size_max = static_cast<int32_t>(kSeatsMax);
  double heartbeat_seconds = 0.5;
  double silence_seconds = 10;     // who says nothing for so long is out
  double link_grace_seconds = 10;  // two members that can't reach each other
  double takeover_seconds = 10;    // members look for another one after so long; see MemberOptions
  // The run's own coordinator has all that it ever agreed to on its disk. One whose disk was lost,
  // or that took over (then has_taken_over), may know less and needs more than half of the members.
  bool has_database = true;
  bool has_taken_over = false;  // retires when it hears of a higher term
  // Where the disk knows of no term. Higher than any that was used before the disk was lost, so the
  // time of day: a term names one reign.
  uint64_t first_term = 1;
  // No first quorum before: living members of a run whose database was lost have called by then.
  TimePoint first_quorum_at;
};

// What a coordinator must find again after a crash.
struct Durable {
  uint64_t term = 0;
  Quorum quorum;  // the last one committed; quorum_id 0: none yet
  // How it was committed: what its Commit says.
  uint64_t quorum_term = 0;
  uint64_t quorum_ballot = 0;
  uint64_t first_operation = 0;
  uint64_t recover_from = 0;
  uint64_t revision = 0;  // of the shared state, committed
  Digest digest{};
  bool operator==(const Durable&) const = default;
};

// What a coordinator that takes over starts with, on top of Member::committed_revision: what the
// member knows whose TakeOver it is. `report`: Member::report(true).
Durable durable_from(const Report& report, uint64_t term);

struct SendTo {
  MemberId to{};
  Message message;
};
struct Persist {
  Durable durable;
};
// Something that people may want to read, with its reason: "rank 3 (1a2b3c4d) is out: silent for
// 10.2 s".
struct Note {
  std::string text;
};
using CoordinatorAction = std::variant<SendTo, Persist, Note>;

enum class CoordinatorState : uint8_t { Gathering, Steady, Proposing, Waiting, Retired };
std::string_view state_name(CoordinatorState state);

class Coordinator {
 public:
  // `durable`: what is on disk; a higher term is taken from it at once (a Persist action). One that
  // takes over is given its term by Member's TakeOver and takes it as it is.
  Coordinator(CoordinatorOptions options, Durable durable, TimePoint now);

  void on_message(const MemberId& from, const Message& message, TimePoint now);
  // Its connection has ended; `has_ended`: and its process with it, for sure. To be told before
  // anything that comes on a new connection of the same member.
  void on_disconnected(const MemberId& from, bool has_ended, const std::string& reason,
                       TimePoint now);
  // Whoever looks after the run says that all seats are gone for good. Returns why that can't be
  // so; "": the next members begin a new quorum.
  std::string abandon(TimePoint now);
  // Does what is due; returns when it wants to be called next.
  TimePoint on_time(TimePoint now);
  std::vector<CoordinatorAction> take_actions();

  // The quorum in force and what belongs to it, as far as this coordinator knows.
  const Durable& durable() const { return durable_; }
  CoordinatorState state() const { return state_; }
  // Between its seats, as the next quorum would begin with them.
  topology::LinkTable known_links(TimePoint now) const {
    return links_.table(durable_.quorum.seats, now);
  }
  // It had taken over, and has met a higher term: it does nothing any more. Stop it.
  bool has_retired() const { return state_ == CoordinatorState::Retired; }

 private:
  // What is known of one process that has spoken to us, or has a seat in the quorum in force.
  struct Known {
    Report report;                // the last one
    std::vector<std::byte> said;  // of that report, what decisions depend on
    bool is_connected = false;
    bool obeys = false;              // its last report names our term
    bool is_gone = false;            // docs/decisions/0005: counts for nobody any more
    std::optional<std::string> out;  // why it has to go, for good
    bool is_sent_away = false;       // it was told to join anew
    TimePoint heard_at;              // pauses of this process left out
    uint64_t arrival = 0;            // newcomers get their seats in this order
    std::map<MemberId, TimePoint> suspects_since;
    uint64_t told_ballot = 0;  // the last Propose on this connection
    TimePoint told_at;
  };
  struct Outstanding {
    Proposal proposal;
    std::map<MemberId, Progress> accepted;
    std::string reason;
  };

  void on(const MemberId& from, const Report& report, TimePoint now);
  void on(const MemberId& from, const Accept& accept, TimePoint now);
  void on(const MemberId&, const Status&, TimePoint) {}  // members say none of these
  void on(const MemberId&, const Propose&, TimePoint) {}
  void on(const MemberId&, const Commit&, TimePoint) {}
  void on(const MemberId&, const Refuse&, TimePoint) {}
  void on(const MemberId&, const TakenOver&, TimePoint) {}

  // coordinator.cpp: what members say.
  bool take_term(uint64_t term, TimePoint now);
  void learn_quorum(const Report& report);
  void learn_gone(const Report& report);
  bool refuse(const MemberId& from, const Report& report);
  void answer(const MemberId& from, const Report& report, TimePoint now);
  void catch_up(const MemberId& from, const Report& report, TimePoint now);
  bool is_asked(const MemberId& id) const;
  void send_proposal(const MemberId& to, TimePoint now);
  void note_suspects(Known& known, const Report& report, TimePoint now);
  void note_pause(TimePoint now);
  void persist();
  void note(const std::string& text);
  void note_waiting(const std::string& text, const std::string& details = {});
  void note_once(const std::string& text, const std::string& details = {});
  void send(const MemberId& to, const Message& message);
  std::string name_of(const MemberId& id) const;
  void set_quorum(Quorum quorum);

  // coordinator_rules.cpp: who is lost, what is proposed, when it is agreed.
  void decide(TimePoint now);
  void judge(TimePoint now);
  void forget_strangers(TimePoint now);
  std::optional<std::string> lost_reason(const Known& known, TimePoint now) const;
  bool is_lost(const MemberId& id, TimePoint now) const;
  bool settle_outstanding(TimePoint now);
  void judge_links(TimePoint now);
  // Of `all`: how many may be alive, and how many of them are voters.
  std::pair<size_t, size_t> count_alive(const std::vector<Seat>& all,
                                        const std::set<MemberId>& voters) const;
  bool is_enough_of(const std::vector<Seat>& all, const std::set<MemberId>& voters) const;
  bool may_follow(const std::set<MemberId>& voters) const;
  std::set<MemberId> witnesses(TimePoint now) const;
  void wait_for_more(const std::set<MemberId>& voters);
  void send_away(size_t survivors, TimePoint now);
  void propose_next(TimePoint now);
  void propose_first(TimePoint now);
  void close_quorum();
  std::vector<Seat> newcomers(TimePoint now) const;
  bool is_doubtful(const Proposal& accepted) const;
  bool is_doubtful(const Report& report) const;
  void collect_doubtful();
  void propose_after_doubtful(Outstanding next, TimePoint now);
  void propose(Outstanding next, TimePoint now);
  void commit();
  void send_commit(const MemberId& to, uint64_t term, uint64_t ballot);
  void announce(const Quorum& before, const std::map<MemberId, std::string>& names);
  void learn_revision(const Report& report);
  double silence_seconds(const Known& known) const;
  TimePoint next_deadline(TimePoint now) const;

  CoordinatorOptions options_;
  CoordinatorState state_ = CoordinatorState::Gathering;
  Durable durable_;
  Durable on_disk_;
  // Its database knows of all that this run's coordinator ever agreed to.
  bool is_authoritative_ = true;
  std::vector<CoordinatorAction> actions_;
  std::map<MemberId, Known> known_;
  std::map<MemberId, int32_t> ranks_;            // of the quorum in force
  std::map<MemberId, std::string> lost_;         // seats that have to go, and why
  std::map<MemberId, std::string> out_reasons_;  // of those that are out already
  std::optional<Outstanding> outstanding_;
  // Later than the quorum in force, and accepted by somebody under an older term, by (term,
  // ballot). Each may have been agreed, and nobody who lives may know with which numbers.
  std::map<std::pair<uint64_t, uint64_t>, Quorum> doubtful_;
  // Looked doubtful, but one of its seats has never accepted it.
  std::set<std::pair<uint64_t, uint64_t>> refuted_;
  uint64_t ballot_ = 0;
  uint64_t arrivals_ = 0;
  uint64_t started_max_ = 0;  // of all operations that anybody told of
  // Since the last change of the quorum: somebody holds its operations, or has frozen them.
  bool somebody_holds_ = false;
  bool somebody_froze_ = false;
  LinkBook links_;  // of members of this and earlier quorums
  std::string waiting_;
  TimePoint now_;
};

// The states and what leads from one to the other, for docs/membership.md and the simulator.
struct CoordinatorTransition {
  CoordinatorState from;
  std::string_view why;
  CoordinatorState to;
};
std::span<const CoordinatorTransition> coordinator_transitions();

}  // namespace pccl::membership
