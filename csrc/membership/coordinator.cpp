// What members say, and what they are told.
#include "membership/coordinator.h"

#include <algorithm>
#include <utility>

namespace pccl::membership {
namespace {

using enum CoordinatorState;

constexpr CoordinatorTransition kTransitions[] = {
    {Gathering, "every seat that is not lost obeys, nothing to change", Steady},
    {Gathering, "every seat that is not lost obeys, something to change", Proposing},
    {Gathering, "those that obey may not go on", Waiting},
    {Steady, "a seat is lost, or somebody joins", Proposing},
    {Steady, "seats are lost, the rest may not go on", Waiting},
    {Steady, "a higher term, or a later quorum, is heard of", Gathering},
    {Proposing, "all have accepted: Persist, Commit", Gathering},
    {Proposing, "a seat of the proposal is lost: the next ballot", Proposing},
    {Proposing, "a seat of the proposal is lost, the rest may not go on", Waiting},
    {Proposing, "a higher term, or a later quorum, is heard of", Gathering},
    {Waiting, "somebody is back, nothing to change", Steady},
    {Waiting, "somebody is back, or seen to be dead, something to change", Proposing},
    {Waiting, "somebody is back; not all obey yet", Gathering},
    {Gathering, "took over, and hears of a higher term", Retired},
    {Steady, "took over, and hears of a higher term", Retired},
    {Proposing, "took over, and hears of a higher term", Retired},
    {Waiting, "took over, and hears of a higher term", Retired},
};

uint64_t microseconds(TimePoint time) {
  const auto since = std::chrono::duration_cast<std::chrono::microseconds>(time.time_since_epoch());
  return static_cast<uint64_t>(since.count());
}

uint32_t milliseconds(double seconds) {
  return static_cast<uint32_t>(std::clamp(seconds * 1e3, 0.0, 4e9));
}

// What decisions depend on: a report that differs in other things needs none.
std::vector<std::byte> decisive_bytes(Report report) {
  report.clock = report.heard_clock = report.round_trip_us = 0;
  report.quorum.reset();
  report.progress = {};
  report.figures = {};
  return encode(report);
}

}  // namespace

std::span<const CoordinatorTransition> coordinator_transitions() { return kTransitions; }

std::string_view state_name(CoordinatorState state) {
  static constexpr std::string_view kNames[] = {"Gathering", "Steady", "Proposing", "Waiting",
                                                "Retired"};
  return kNames[static_cast<size_t>(state)];
}

Durable durable_from(const Report& report, uint64_t term) {
  Durable durable;
  durable.term = term;
  durable.quorum = report.quorum.value_or(Quorum{});
  durable.quorum_term = report.quorum_term;
  durable.quorum_ballot = report.quorum_ballot;
  durable.first_operation = report.first_operation;
  durable.recover_from = report.recover_from;
  return durable;
}

Coordinator::Coordinator(CoordinatorOptions options, Durable durable, TimePoint now)
    : options_(std::move(options)),
      durable_(std::move(durable)),
      on_disk_(durable_),
      is_authoritative_(options_.has_database && !options_.has_taken_over),
      now_(now) {
  set_quorum(durable_.quorum);
  started_max_ = durable_.first_operation;
  if (!options_.has_taken_over)
    durable_.term =
        std::max(next_term(durable_.term), durable_.term == 0 ? options_.first_term << 32 : 0);
  persist();
  note("coordinator of '" + options_.run + "' starts with term " + term_text(durable_.term) +
       " and quorum " + std::to_string(durable_.quorum.quorum_id));
}

void Coordinator::set_quorum(Quorum quorum) {
  durable_.quorum = std::move(quorum);
  ranks_.clear();
  for (size_t rank = 0; rank < durable_.quorum.seats.size(); ++rank) {
    ranks_[durable_.quorum.seats[rank].member_id] = static_cast<int32_t>(rank);
  }
  // A seat that has not spoken yet gets the time that a silent one gets: so long, at most, a
  // restarted coordinator waits for those that it has not heard.
  for (const auto& [id, rank] : ranks_) {
    const auto [known, is_new] = known_.try_emplace(id);
    if (is_new) known->second.heard_at = now_;
  }
  lost_.clear();
  doubtful_.clear();
  refuted_.clear();
  outstanding_.reset();
  somebody_holds_ = somebody_froze_ = false;
  waiting_.clear();
}

// What it learned about a quorum from members while its own disk knew of none goes there only once
// it has been agreed on anew: until then a restart must find it as doubtful as it is.
void Coordinator::persist() {
  on_disk_.term = durable_.term;
  if (is_authoritative_ || !options_.has_database || options_.has_taken_over) on_disk_ = durable_;
  actions_.emplace_back(Persist{on_disk_});
}

void Coordinator::note(const std::string& text) { actions_.emplace_back(Note{text}); }

void Coordinator::note_waiting(const std::string& text, const std::string& details) {
  state_ = Waiting;
  note_once(text, details);
}

void Coordinator::note_once(const std::string& text, const std::string& details) {
  if (std::exchange(waiting_, text) != text) note(text + details);
}

void Coordinator::send(const MemberId& to, const Message& message) {
  actions_.emplace_back(SendTo{to, message});
}

std::string Coordinator::name_of(const MemberId& id) const {
  const auto rank = ranks_.find(id);
  if (rank == ranks_.end()) return "member " + transport::to_text(id);
  return "rank " + std::to_string(rank->second) + " (" + transport::to_text(id) + ")";
}

std::vector<CoordinatorAction> Coordinator::take_actions() { return std::exchange(actions_, {}); }

// --- events --------------------------------------------------------------------------------------

// Silence while this process stood still is held against nobody.
void Coordinator::note_pause(TimePoint now) {
  const auto pause = now - std::exchange(now_, now);
  if (std::chrono::duration<double>(pause).count() < 4 * options_.heartbeat_seconds) return;
  for (auto& [id, known] : known_) {
    known.heard_at += pause;
    for (auto& [suspect, since] : known.suspects_since) since += pause;
  }
}

void Coordinator::on_message(const MemberId& from, const Message& message, TimePoint now) {
  note_pause(now);
  if (state_ == Retired) return;
  std::visit([&](const auto& value) { on(from, value, now); }, message);
}

void Coordinator::on_disconnected(const MemberId& from, bool has_ended, const std::string& reason,
                                  TimePoint now) {
  note_pause(now);
  const auto at = known_.find(from);
  if (at == known_.end() || state_ == Retired) return;
  Known& known = at->second;
  known.is_connected = false;
  known.told_ballot = 0;
  if (!has_ended) return;
  // It obeyed us to its end, and can't have helped another coordinator, if its end was seen within
  // the time for which it had promised that.
  const uint64_t promised_until =
      known.report.heard_clock + uint64_t{milliseconds(options_.takeover_seconds)} * 1000;
  const bool had_promised = known.obeys && known.report.heard_clock != 0 && is_authoritative_;
  known.is_gone = known.is_gone || (had_promised && microseconds(now) < promised_until);
  known.out = reason.empty() ? "its process has ended" : reason;
  decide(now);
}

std::string Coordinator::abandon(TimePoint now) {
  note_pause(now);
  if (durable_.quorum.seats.empty()) return "it waits for nobody";
  for (const Seat& seat : durable_.quorum.seats) {
    if (known_.at(seat.member_id).is_connected) return name_of(seat.member_id) + " is here";
  }
  for (const Seat& seat : durable_.quorum.seats) {
    Known& known = known_.at(seat.member_id);
    known.is_gone = true;
    known.out = "the run was abandoned";
  }
  decide(now);
  return {};
}

TimePoint Coordinator::on_time(TimePoint now) {
  note_pause(now);
  if (state_ == Retired) return after(now, options_.heartbeat_seconds);
  decide(now);
  return next_deadline(now);
}

// --- reports -------------------------------------------------------------------------------------

void Coordinator::on(const MemberId& from, const Report& report, TimePoint now) {
  if (report.seat.member_id != from || !take_term(report.term, now)) return;
  learn_quorum(report);
  if (refuse(from, report)) return;
  const bool is_new = known_.find(from) == known_.end();
  Known& known = known_[from];
  if (report.clock < known.report.clock) return;  // overtaken on its way
  if (is_new) known.arrival = ++arrivals_;
  note_suspects(known, report, now);
  known.report = report;
  known.report.quorum.reset();
  known.report.figures = {};
  known.is_connected = true;
  known.obeys = report.term == durable_.term;
  known.heard_at = now;
  started_max_ = std::max(started_max_, report.progress.started);
  if (report.is_leaving && known.obeys) {
    known.out = "it left";
    known.is_gone = true;  // it accepts nothing any more, and has told what it accepted
  }
  if (ranks_.contains(from)) links_.on_report(from, report.figures, now);
  learn_gone(report);
  learn_revision(report);
  answer(from, report, now);
  catch_up(from, report, now);
  std::vector<std::byte> said = decisive_bytes(report);
  if (!is_new && said == known.said) return;
  known.said = std::move(said);
  decide(now);
}

// Returns whether this coordinator goes on.
bool Coordinator::take_term(uint64_t term, TimePoint /*now*/) {
  if (term <= durable_.term) return true;
  if (options_.has_taken_over) {
    state_ = Retired;
    outstanding_.reset();
    note("retires: a coordinator with the higher term " + term_text(term) + " is at work");
    return false;
  }
  durable_.term = next_term(term);
  for (auto& [id, known] : known_) known.obeys = false;
  outstanding_.reset();
  ballot_ = 0;
  state_ = Gathering;
  persist();
  note("takes term " + term_text(durable_.term) + " because term " + term_text(term) +
       " was heard of");
  return true;
}

void Coordinator::learn_quorum(const Report& report) {
  if (!report.quorum || report.quorum_id <= durable_.quorum.quorum_id) return;
  if (durable_.quorum.quorum_id == 0 && is_authoritative_) {
    is_authoritative_ = false;
    note("its database knows nothing of this run, but members do: acts like one that took over");
  }
  set_quorum(*report.quorum);
  durable_.quorum_term = report.quorum_term;
  durable_.quorum_ballot = report.quorum_ballot;
  durable_.first_operation = report.first_operation;
  durable_.recover_from = report.recover_from;
  started_max_ = std::max(started_max_, durable_.first_operation);
  for (const auto& [id, rank] : ranks_) known_.at(id).heard_at = now_;
  state_ = Gathering;
  persist();
  note("quorum " + std::to_string(report.quorum_id) + " is in force at " +
       name_of(report.seat.member_id));
}

// Whoever accepted a proposal of the next quorum knows who was gone when it was made.
void Coordinator::learn_gone(const Report& report) {
  if (!report.accepted) return;
  if (report.accepted->quorum.quorum_id <= durable_.quorum.quorum_id) return;
  somebody_holds_ = true;
  somebody_froze_ = somebody_froze_ || report.accepted->freezes;
  for (const MemberId& id : report.accepted->gone) {
    const auto gone = known_.find(id);
    if (gone == known_.end() || ranks_.find(id) == ranks_.end()) continue;
    gone->second.is_gone = true;
    if (!gone->second.out) gone->second.out = "it was seen to end";
  }
}

// Whoever was in and is not any more is out for good; newcomers are refused where there is no seat.
bool Coordinator::refuse(const MemberId& from, const Report& report) {
  const bool has_seat = ranks_.find(from) != ranks_.end();
  if (has_seat || report.quorum_id > durable_.quorum.quorum_id) return false;
  Refuse refusal{durable_.term, RefuseKind::Evicted, {}};
  if (report.quorum_id != 0) {
    const auto reason = out_reasons_.find(from);
    refusal.reason =
        reason != out_reasons_.end()
            ? reason->second
            : "quorum " + std::to_string(durable_.quorum.quorum_id) + " goes on without it";
  } else {
    const auto world_size_max = static_cast<size_t>(std::max(options_.world_size_max, 1));
    const size_t bytes = encoded_bytes(durable_.quorum) + report.seat.address.size() + 64;
    const bool is_full = durable_.quorum.seats.size() >= std::min(world_size_max, kSeatsMax) ||
                         bytes > kQuorumBytesMax;
    // A seat may become free, or be taken, by the proposal that is under way.
    if (!is_full || outstanding_ || !lost_.empty() || state_ != Steady) return false;
    refusal.kind = RefuseKind::Full;
    refusal.reason = std::to_string(durable_.quorum.seats.size()) + " of at most " +
                     std::to_string(options_.world_size_max) + " seats are taken";
  }
  known_.erase(from);
  send(from, std::move(refusal));
  return true;
}

void Coordinator::answer(const MemberId& from, const Report& report, TimePoint now) {
  Status status;
  status.term = durable_.term;
  status.quorum_id = durable_.quorum.quorum_id;
  status.clock = report.clock;
  status.coordinator_clock = microseconds(now);
  status.rules = {milliseconds(options_.heartbeat_seconds), milliseconds(options_.silence_seconds),
                  milliseconds(options_.link_grace_seconds),
                  milliseconds(options_.takeover_seconds),
                  static_cast<uint32_t>(std::max(options_.world_size_min, 1))};
  status.has_taken_over = options_.has_taken_over;
  status.revision = durable_.revision;
  status.digest = durable_.digest;
  status.wants_quorum = report.quorum_id > durable_.quorum.quorum_id && !report.quorum;
  status.waits_for = waiting_.substr(0, kReasonBytesMax);
  send(from, status);
}

void Coordinator::note_suspects(Known& known, const Report& report, TimePoint now) {
  std::map<MemberId, TimePoint> since;
  for (const Suspect& suspect : report.suspects) {
    const auto before = known.suspects_since.find(suspect.member_id);
    since[suspect.member_id] = before == known.suspects_since.end() ? now : before->second;
    const auto other = known_.find(suspect.member_id);
    const bool is_unheard = other != known_.end() && !other->second.is_connected;
    if (suspect.has_ended && is_unheard && !other->second.out) {
      other->second.out = name_of(report.seat.member_id) + " saw it end: " + suspect.reason;
    }
  }
  known.suspects_since = std::move(since);
}

// Brings a seat into the quorum in force that did not hear of its Commit, or gives it the proposal
// that is under way.
void Coordinator::catch_up(const MemberId& from, const Report& report, TimePoint now) {
  Known& known = known_.at(from);
  if (!known.obeys || report.is_leaving) return;
  const Quorum& quorum = durable_.quorum;
  const bool has_seat = ranks_.find(from) != ranks_.end();
  const bool is_in = has_seat && report.quorum_id == quorum.quorum_id;
  // What it has accepted may be in force, with numbers that hold for it where it is now: it must
  // not go on in an older quorum.
  const bool is_ahead =
      is_doubtful(report) ||
      (outstanding_ && report.accepted && report.accepted->term == outstanding_->proposal.term &&
       report.accepted->ballot == outstanding_->proposal.ballot);
  if (!has_seat || is_in || is_ahead) {
    const bool is_other = is_in && (report.first_operation != durable_.first_operation ||
                                    report.recover_from != durable_.recover_from);
    if (is_other)
      known.out = "it entered quorum " + std::to_string(quorum.quorum_id) + " otherwise";
    if (outstanding_ && !is_other) {
      const Proposal& proposal = outstanding_->proposal;
      if (report.accepted && report.accepted->term == proposal.term &&
          report.accepted->ballot == proposal.ballot) {
        outstanding_->accepted[from] = report.progress;
      } else if (is_asked(from)) {
        send_proposal(from, now);
      }
    }
    return;
  }
  const bool was_in = report.quorum_id != 0;
  if (report.accepted && report.accepted->term == durable_.quorum_term &&
      report.accepted->ballot == durable_.quorum_ballot) {
    send_commit(from, durable_.quorum_term, durable_.quorum_ballot);
  } else if (was_in && report.quorum_id + 1 != quorum.quorum_id &&
             durable_.recover_from == kNothingToRecover) {
    known.out = "it stayed behind in quorum " + std::to_string(report.quorum_id);
  } else {
    Proposal again{
        durable_.term, ++ballot_, durable_.recover_from != kNothingToRecover, quorum, {}};
    send(from, Propose{std::move(again)});
  }
}

// Whether it has a say in the proposal under way: who is in it, or in what it must follow.
bool Coordinator::is_asked(const MemberId& id) const {
  return outstanding_->proposal.quorum.contains(id) || ranks_.find(id) != ranks_.end() ||
         std::any_of(doubtful_.begin(), doubtful_.end(),
                     [&](const auto& doubtful) { return doubtful.second.contains(id); });
}

void Coordinator::send_proposal(const MemberId& to, TimePoint now) {
  Known& known = known_[to];
  const Proposal& proposal = outstanding_->proposal;
  const bool is_due = now >= after(known.told_at, 4 * options_.heartbeat_seconds);
  if (!known.is_connected || (known.told_ballot == proposal.ballot && !is_due)) return;
  known.told_ballot = proposal.ballot;
  known.told_at = now;
  send(to, Propose{proposal});
}

void Coordinator::on(const MemberId& from, const Accept& accept, TimePoint now) {
  const auto at = known_.find(from);
  if (at == known_.end() || accept.term != durable_.term) return;
  if (outstanding_ && accept.ballot == outstanding_->proposal.ballot) {
    outstanding_->accepted[from] = accept.progress;
    started_max_ = std::max(started_max_, accept.progress.started);
    decide(now);
    return;
  }
  // A late one, for the quorum in force: what was agreed without it must hold for it, too.
  Known& known = at->second;
  const bool is_seat = ranks_.find(from) != ranks_.end();
  if (accept.quorum_id != durable_.quorum.quorum_id || !is_seat) return;
  if (known.report.quorum_id == accept.quorum_id) return;
  const bool is_within =
      known.report.quorum_id == 0 || (accept.progress.started <= durable_.first_operation &&
                                      (accept.progress.completed >= durable_.recover_from ||
                                       durable_.recover_from == kNothingToRecover));
  if (is_within) {
    send_commit(from, accept.term, accept.ballot);
  } else {
    known.out = "quorum " + std::to_string(accept.quorum_id) + " was agreed without it";
    decide(now);
  }
}

}  // namespace pccl::membership
