#include "membership/member.h"

#include <algorithm>
#include <utility>

namespace pccl::membership {
namespace {

using enum MemberState;

// Every change of state, and the events that leave a state as it is only where they do something.
constexpr MemberTransition kTransitions[] = {
    {Joining, "Propose", Holding, "Hold"},
    {Running, "Propose", Holding, "Hold"},
    {Holding, "Propose", Holding, "Hold again if the one before is not enough"},
    {Held, "Propose", Holding, "Hold, where only the new one freezes"},
    {Held, "Propose", Held, "Accept at once: operations stand still already"},
    {Holding, "on_held", Held, "Accept"},
    {Held, "Commit", Running, "Enter"},
    {Holding, "Commit", Running, "Enter: the proposal accepted before was agreed"},
    {Joining, "Refuse", Out, "Evicted"},
    {Running, "Refuse", Out, "Evicted"},
    {Holding, "Refuse", Out, "Evicted"},
    {Held, "Refuse", Out, "Evicted"},
    {Joining, "leave", Out, "Evicted"},
    {Holding, "leave", Out, "Evicted, if it is in no quorum yet"},
    {Held, "leave", Out, "Evicted, if it is in no quorum yet"},
    {Running, "on_time", Running, "Report; TakeOver after takeover_seconds of silence"},
};

constexpr size_t kRoundTripsKept = 8;

uint64_t microseconds(TimePoint time) {
  const auto since = std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch());
  return static_cast<uint64_t>(since.count());
}

}  // namespace

std::span<const MemberTransition> member_transitions() { return kTransitions; }

std::string_view state_name(MemberState state) {
  static constexpr std::string_view kNames[] = {"Joining", "Running", "Holding", "Held", "Out"};
  return kNames[static_cast<size_t>(state)];
}

Member::Member(MemberOptions options, TimePoint now)
    : options_(std::move(options)),
      takeover_seconds_(options_.takeover_seconds),
      now_(now),
      reported_at_(now),
      heard_at_(now) {
  report_.seat = options_.seat;
  report_.seat.joined_at = kJoinsNow;
}

// --- connections ---------------------------------------------------------------------------------

void Member::on_connected(TimePoint now) {
  notice_pause(now);
  is_connected_ = true;
  wants_quorum_ = true;
  report_.heard_clock = 0;
  round_trips_us_.clear();
  send_report(now);
}

void Member::on_disconnected(TimePoint now) {
  notice_pause(now);
  is_connected_ = false;
}

void Member::on_link_lost(const MemberId& peer, bool has_ended, const std::string& reason,
                          TimePoint now) {
  notice_pause(now);
  if (!quorum_.contains(peer)) return;
  Suspect suspect{peer, has_ended, reason.substr(0, kReasonBytesMax)};
  const auto [at, is_new] = suspects_.try_emplace(peer, suspect);
  if (!is_new && at->second == suspect) return;
  at->second = std::move(suspect);
  send_report(now);
}

void Member::on_link_back(const MemberId& peer, TimePoint now) {
  notice_pause(now);
  if (suspects_.erase(peer) != 0) send_report(now);
}

// --- messages ------------------------------------------------------------------------------------

void Member::on_message(const Message& message, TimePoint now) {
  notice_pause(now);
  if (state_ == Out) return;
  std::visit([&](const auto& value) { on(value, now); }, message);
}

void Member::on(const Status& status, TimePoint now) {
  if (status.term < report_.term) return;  // the next report tells it of the higher one
  if (status.term > report_.term && status.has_taken_over && obeys_home(now)) return;
  const bool is_new_term = status.term > report_.term;
  report_.term = status.term;
  report_.heard_clock = status.coordinator_clock;
  heard_at_ = now;
  if (!status.has_taken_over) heard_home_at_ = now;
  has_taken_over_ = false;
  rules_ = status.rules;
  heartbeat_seconds_ = std::clamp(rules_.heartbeat_ms * 1e-3, 0.01, 60.0);
  if (rules_.takeover_ms != 0) takeover_seconds_ = rules_.takeover_ms * 1e-3;
  waits_for_ = status.waits_for;
  committed_revision_ = status.revision;
  committed_digest_ = status.digest;
  const uint64_t clock = microseconds(now);
  if (status.clock != 0 && status.clock <= clock) {
    round_trips_us_.push_back(
        static_cast<uint32_t>(std::clamp<uint64_t>(clock - status.clock, 1, UINT32_MAX)));
    if (round_trips_us_.size() > kRoundTripsKept) round_trips_us_.pop_front();
    report_.round_trip_us = *std::min_element(round_trips_us_.begin(), round_trips_us_.end());
  }
  wants_quorum_ = wants_quorum_ || status.wants_quorum || status.quorum_id < quorum_.quorum_id;
  if (is_new_term || status.wants_quorum) send_report(now);
}

// Only the proposals of one coordinator, in their order, and for a later quorum than ours.
bool Member::may_accept(const Proposal& proposal) const {
  const uint64_t quorum_id = proposal.quorum.quorum_id;
  if (proposal.term != report_.term || report_.is_leaving) return false;
  if (quorum_id <= quorum_.quorum_id) return false;
  size_t bytes = 0;
  for (const Proposal& before : report_.accepted_before) bytes += encoded_bytes(before.quorum);
  if (const auto before = earlier_accepted(proposal.term)) {
    bytes += encoded_bytes(before->quorum);
    if (report_.accepted_before.size() == kAcceptedMax || bytes > kAcceptedBytesMax) return false;
  }
  const auto is_newer = [&](const std::optional<Proposal>& other) {
    return !other ||
           std::pair(proposal.term, proposal.ballot) > std::pair(other->term, other->ballot);
  };
  return is_newer(report_.accepted) && is_newer(pending_);
}

void Member::on(const Propose& propose, TimePoint /*now*/) {
  const Proposal& proposal = propose.proposal;
  const std::optional<Proposal>& accepted = report_.accepted;
  if (accepted && !pending_ && *accepted == proposal) {
    send_accept();
    return;
  }
  if (!may_accept(proposal)) return;
  pending_ = proposal;
  // What stands still for one proposal stands still for the next one.
  const bool stands_still = accepted && !unanswered_ && (accepted->freezes || !proposal.freezes);
  if (stands_still) {
    accept();
  } else {
    state_ = Holding;
    const Hold hold{proposal.quorum.quorum_id, proposal.freezes};
    const bool is_enough = unanswered_ && unanswered_->quorum_id == hold.quorum_id &&
                           (unanswered_->freezes || !hold.freezes);
    if (is_enough) return;
    // Not after the answer to the one before: a Hold for newcomers may wait for a member that this
    // proposal drops.
    unanswered_ = hold;
    // A newcomer has nothing under way.
    if (hold.freezes && quorum_.quorum_id != 0) report_.needs_recovery = true;
    actions_.emplace_back(hold);
  }
}

void Member::on_held(const Hold& hold, const Progress& progress, TimePoint now) {
  notice_pause(now);
  if (unanswered_ != hold || !pending_ || state_ == Out) return;
  set_progress(progress);
  accept();
}

// What must be remembered once a proposal of that term is accepted, until a quorum is in force
// here: the next coordinator may know less than that one. Of one term the last proposal is enough:
// its coordinator knew what had become of those before.
std::optional<Proposal> Member::earlier_accepted(uint64_t term) const {
  if (!report_.accepted || report_.accepted->term == term) return std::nullopt;
  Proposal before = *report_.accepted;
  before.quorum.table = {};
  before.gone.clear();
  for (Seat& seat : before.quorum.seats) seat.address.clear();
  return before;
}

void Member::accept() {
  if (auto before = earlier_accepted(pending_->term))
    report_.accepted_before.push_back(std::move(*before));
  report_.accepted = std::exchange(pending_, std::nullopt);
  unanswered_.reset();
  state_ = Held;
  send_accept();
}

void Member::send_accept() {
  const Proposal& accepted = *report_.accepted;
  send(Accept{accepted.term, accepted.ballot, accepted.quorum.quorum_id, report_.progress});
}

void Member::on(const Commit& commit, TimePoint now) {
  const std::optional<Proposal>& accepted = report_.accepted;
  if (!accepted || !accepted->quorum.contains(options_.seat.member_id)) return;
  if (accepted->term != commit.term || accepted->ballot != commit.ballot ||
      accepted->quorum.quorum_id != commit.quorum_id) {
    return;
  }
  Enter enter{accepted->quorum, commit.first_operation,
              std::min(commit.recover_from, commit.first_operation), accepted->freezes};
  for (Seat& seat : enter.quorum.seats) {
    if (seat.joined_at == kJoinsNow) seat.joined_at = commit.first_operation;
  }
  const bool is_newcomer = quorum_.quorum_id == 0;
  quorum_ = enter.quorum;
  report_.seat = quorum_.seats[static_cast<size_t>(quorum_.rank_of(options_.seat.member_id))];
  if (is_newcomer) set_progress({report_.seat.joined_at, report_.seat.joined_at});
  report_.quorum_id = commit.quorum_id;
  report_.quorum_term = commit.term;
  report_.quorum_ballot = commit.ballot;
  report_.first_operation = commit.first_operation;
  report_.recover_from = commit.recover_from;
  // One that was agreed before anybody froze recovers nothing: another one must follow it.
  report_.needs_recovery = report_.needs_recovery && !enter.drops;
  report_.accepted.reset();
  report_.accepted_before.clear();
  pending_.reset();
  unanswered_.reset();
  std::erase_if(suspects_, [&](const auto& suspect) { return !quorum_.contains(suspect.first); });
  state_ = Running;
  actions_.emplace_back(std::move(enter));
  send_report(now);
}

// Follows from a quorum in force, or asks for a goodbye that counts only where this member's term
// is the coordinator's: so the term of what is said here does not matter.
void Member::on(const Refuse& refuse, TimePoint now) {
  if (refuse.kind == RefuseKind::Stopped) return;  // another one may come
  // From here on it accepts nothing, and whoever is still to agree without it may count on that.
  report_.is_leaving = true;
  if (quorum_.quorum_id != 0) send_report(now);
  state_ = Out;
  actions_.emplace_back(Evicted{refuse.reason});
}

// --- what it knows -------------------------------------------------------------------------------

void Member::set_progress(const Progress& progress) {
  report_.progress.started = std::max(report_.progress.started, progress.started);
  report_.progress.completed = std::max(report_.progress.completed, progress.completed);
}

void Member::set_revision(uint64_t revision, const Digest& digest) {
  report_.revision = revision;
  report_.digest = digest;
}

void Member::leave(TimePoint now) {
  notice_pause(now);
  if (state_ == Out || report_.is_leaving) return;
  report_.is_leaving = true;
  send_report(now);
  if (quorum_.quorum_id != 0) return;  // until it is out of the quorum
  state_ = Out;
  actions_.emplace_back(Evicted{"left before it was in"});
}

Report Member::report(bool with_quorum) const {
  Report report = report_;
  if (with_quorum && quorum_.quorum_id != 0) report.quorum = quorum_;
  for (const auto& [peer, suspect] : suspects_) report.suspects.push_back(suspect);
  return report;
}

double Member::round_trip_seconds() const { return report_.round_trip_us * 1e-6; }

void Member::send_report(TimePoint now) {
  if (!is_connected_ || state_ == Out) return;
  report_.clock = microseconds(now);
  send(report(std::exchange(wants_quorum_, false)));
  reported_at_ = now;
}

void Member::send(const Message& message) { actions_.emplace_back(SendToCoordinator{message}); }

std::vector<MemberAction> Member::take_actions() { return std::exchange(actions_, {}); }

// --- time ----------------------------------------------------------------------------------------

// Whether it has promised to obey the run's own coordinator and nobody else: that one may conclude
// from this member's death that it has helped nobody else.
bool Member::obeys_home(TimePoint now) const {
  return heard_home_at_ && now < after(*heard_home_at_, takeover_seconds_);
}

void Member::notice_pause(TimePoint now) {
  const double seconds = std::chrono::duration<double>(now - now_).count();
  if (seconds > 4 * heartbeat_seconds_) heard_at_ += now - now_;
  now_ = now;
}

// Those before it in the quorum that it can reach come first, each with a time of its own.
TimePoint Member::takeover_at() const {
  int turn = 1;
  for (const Seat& seat : quorum_.seats) {
    if (seat.member_id == options_.seat.member_id) break;
    if (suspects_.find(seat.member_id) == suspects_.end()) ++turn;
  }
  return after(heard_at_, takeover_seconds_ * turn);
}

TimePoint Member::on_time(TimePoint now) {
  notice_pause(now);
  TimePoint next = after(now, heartbeat_seconds_);
  if (state_ == Out) return next;
  if (now >= after(reported_at_, heartbeat_seconds_)) send_report(now);
  next = std::min(next, std::max(now, after(reported_at_, heartbeat_seconds_)));
  if (!is_connected_) next = after(now, heartbeat_seconds_);
  if (quorum_.quorum_id == 0 || report_.is_leaving || has_taken_over_) return next;
  const TimePoint due = takeover_at();
  if (now < due) return std::min(next, due);
  has_taken_over_ = true;
  taken_term_ = next_term(std::max(report_.term, taken_term_), options_.seat.member_id);
  actions_.emplace_back(TakeOver{taken_term_});
  return next;
}

}  // namespace pccl::membership
