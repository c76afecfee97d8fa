// Who is lost, what is proposed, when it is agreed. docs/decisions/0005-membership.md has the
// reasons.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "membership/coordinator.h"

namespace pccl::membership {
namespace {

using enum CoordinatorState;

// Of members that were dropped; who comes back after so many others is told less.
constexpr size_t kReasonsKept = 4096;

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", seconds);
  return text;
}

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

void Coordinator::decide(TimePoint now) {
  judge(now);
  if (outstanding_ && settle_outstanding(now)) return;
  const auto& seats = durable_.quorum.seats;
  const bool is_anybody_left = std::any_of(seats.begin(), seats.end(), [&](const Seat& seat) {
    return !known_.at(seat.member_id).is_gone;
  });
  if (is_anybody_left) {
    propose_next(now);
    return;
  }
  if (!seats.empty() && is_authoritative_) close_quorum();
  propose_first(now);
}

// Nobody of it is left, and that is remembered: after a restart it would be waited for.
void Coordinator::close_quorum() {
  Outstanding next;
  next.proposal.quorum.quorum_id = durable_.quorum.quorum_id + 1;
  next.proposal.term = durable_.term;
  next.proposal.ballot = ++ballot_;
  next.reason = "nobody is left";
  outstanding_ = std::move(next);
  commit();
}

// --- who is lost ---------------------------------------------------------------------------------

// Never less than 8 round trips: what is far away may be silent for longer.
double Coordinator::silence_seconds(const Known& known) const {
  return std::max(options_.silence_seconds, 8e-6 * known.report.round_trip_us);
}

std::optional<std::string> Coordinator::lost_reason(const Known& known, TimePoint now) const {
  if (known.out) return known.out;
  const double silent = seconds_between(known.heard_at, now);
  if (silent < silence_seconds(known)) return std::nullopt;
  return "silent for " + seconds_text(silent);
}

bool Coordinator::is_lost(const MemberId& id, TimePoint now) const {
  if (lost_.find(id) != lost_.end()) return true;
  const auto known = known_.find(id);
  return known == known_.end() || lost_reason(known->second, now).has_value();
}

void Coordinator::judge(TimePoint now) {
  lost_.clear();
  for (const Seat& seat : durable_.quorum.seats) {
    auto reason = lost_reason(known_.at(seat.member_id), now);
    if (reason) lost_.emplace(seat.member_id, std::move(*reason));
  }
  judge_links(now);
  forget_strangers(now);
}

void Coordinator::forget_strangers(TimePoint now) {
  std::erase_if(known_, [&](const auto& item) {
    const auto& [id, known] = item;
    if (known.is_connected || ranks_.find(id) != ranks_.end()) return false;
    if (outstanding_ && outstanding_->proposal.quorum.contains(id)) return false;
    return lost_reason(known, now).has_value();
  });
}

// Of members that can't reach each other, the one with most such links goes, of equal ones the
// later seat, until those that are left all reach each other.
void Coordinator::judge_links(TimePoint now) {
  std::map<MemberId, std::map<MemberId, TimePoint>> broken;
  for (const Seat& seat : durable_.quorum.seats) {
    const MemberId& id = seat.member_id;
    if (lost_.find(id) != lost_.end()) continue;
    for (const auto& [other, since] : known_.at(id).suspects_since) {
      const bool is_seat = other != id && ranks_.find(other) != ranks_.end();
      if (!is_seat || lost_.find(other) != lost_.end()) continue;
      if (now < after(since, options_.link_grace_seconds)) continue;
      broken[id][other] = since;
      broken[other].try_emplace(id, since);
    }
  }
  while (!broken.empty()) {
    const auto worst =
        std::max_element(broken.begin(), broken.end(), [&](const auto& a, const auto& b) {
          return std::pair(a.second.size(), ranks_.at(a.first)) <
                 std::pair(b.second.size(), ranks_.at(b.first));
        });
    if (worst->second.empty()) return;
    const MemberId id = worst->first;
    const auto first =
        std::min_element(worst->second.begin(), worst->second.end(),
                         [](const auto& a, const auto& b) { return a.second < b.second; });
    lost_[id] = std::to_string(worst->second.size()) + " members and it can't reach each other, " +
                name_of(first->first) + " for " + seconds_text(seconds_between(first->second, now));
    broken.erase(worst);
    for (auto& [other, links] : broken) links.erase(id);
  }
}

// --- what may follow -----------------------------------------------------------------------------

// How many members of the last quorum may be alive, and how many of them are among `seats`.
std::pair<size_t, size_t> Coordinator::count_alive(const std::vector<Seat>& seats) const {
  const auto is_alive = [&](const Seat& seat) {
    return ranks_.find(seat.member_id) != ranks_.end() && !known_.at(seat.member_id).is_gone;
  };
  const auto& all = durable_.quorum.seats;
  return {std::count_if(all.begin(), all.end(), is_alive),
          std::count_if(seats.begin(), seats.end(), is_alive)};
}

bool Coordinator::may_follow(const std::vector<Seat>& seats) const {
  const auto [alive, here] = count_alive(seats);
  return is_authoritative_ ? 2 * here >= alive : 2 * here > alive;
}

// Seats that have to go, but can still say that they agree: they count for what may follow.
std::vector<Seat> Coordinator::witnesses(TimePoint now) const {
  std::vector<Seat> seats;
  for (const auto& [id, reason] : lost_) {
    const Known& known = known_.at(id);
    const bool is_silent = seconds_between(known.heard_at, now) >= silence_seconds(known);
    if (is_silent || known.is_gone || !known.is_connected || !known.obeys) continue;
    if (known.report.quorum_id != durable_.quorum.quorum_id) continue;
    seats.push_back(durable_.quorum.seats[static_cast<size_t>(ranks_.at(id))]);
  }
  return seats;
}

void Coordinator::wait_for_more(const std::vector<Seat>& seats) {
  const auto [alive, here] = count_alive(seats);
  std::string details;
  for (const auto& [id, reason] : lost_) details += "; " + name_of(id) + ": " + reason;
  note_waiting("can't go on: of " + std::to_string(alive) + " members that may be alive, " +
                   std::to_string(here) + " are here, and it takes " +
                   (is_authoritative_ ? "half" : "more than half"),
               details);
}

std::vector<Seat> Coordinator::newcomers(TimePoint now) const {
  std::vector<std::pair<uint64_t, const Known*>> arrived;
  for (const auto& [id, known] : known_) {
    const bool has_seat = ranks_.find(id) != ranks_.end();
    if (has_seat || !known.is_connected || !known.obeys || known.report.quorum_id != 0) continue;
    if (!lost_reason(known, now)) arrived.emplace_back(known.arrival, &known);
  }
  std::sort(arrived.begin(), arrived.end());
  std::vector<Seat> seats;
  for (const auto& [arrival, known] : arrived) {
    seats.push_back(known->report.seat);
    seats.back().joined_at = kJoinsNow;
  }
  return seats;
}

// The proposal that somebody accepted last, under an older term. It may have been agreed, so it
// comes first. One of our own term was not: we would know.
const Proposal* Coordinator::accepted_before() const {
  const Proposal* last = nullptr;
  for (const auto& [id, known] : known_) {
    const auto& accepted = known.report.accepted;
    if (!accepted || accepted->quorum.quorum_id != durable_.quorum.quorum_id + 1) continue;
    const bool is_later = last == nullptr || std::pair(last->term, last->ballot) <
                                                 std::pair(accepted->term, accepted->ballot);
    if (is_later) last = &*accepted;
  }
  return last != nullptr && last->term < durable_.term ? last : nullptr;
}

// --- proposing -----------------------------------------------------------------------------------

void Coordinator::propose_next(TimePoint now) {
  std::vector<Seat> survivors;
  bool do_all_obey = true;
  for (const Seat& seat : durable_.quorum.seats) {
    if (lost_.find(seat.member_id) != lost_.end()) continue;
    const Known& known = known_.at(seat.member_id);
    do_all_obey = do_all_obey && known.obeys && known.report.quorum_id == durable_.quorum.quorum_id;
    survivors.push_back(seat);
  }
  std::vector<Seat> voters = survivors;
  for (Seat& seat : witnesses(now)) voters.push_back(std::move(seat));
  if (!may_follow(voters)) return wait_for_more(voters);
  if (!do_all_obey) {
    state_ = Gathering;
    return;
  }
  waiting_.clear();
  Outstanding next;
  next.proposal.quorum.quorum_id = durable_.quorum.quorum_id + 1;
  if (const Proposal* before = accepted_before()) {
    next.repeats = true;
    next.proposal = *before;
    next.reason =
        "it was proposed in term " + term_text(before->term) + " and may have been agreed";
    return propose(std::move(next), now);
  }
  std::vector<Seat> arrived = newcomers(now);
  const bool drops = survivors.size() < durable_.quorum.seats.size();
  if (drops || somebody_froze_) {
    const size_t reachable = survivors.size() + arrived.size();
    if (drops && reachable < static_cast<size_t>(std::max(options_.world_size_min, 1))) {
      return note_waiting("can't go on: " + std::to_string(reachable) +
                          " members are here, at least " + std::to_string(options_.world_size_min) +
                          " have to be");
    }
    next.proposal.freezes = true;
    next.proposal.quorum.seats = std::move(survivors);
    next.reason = drops ? "members are lost" : "operations were frozen";
    return propose(std::move(next), now);
  }
  next.proposal.quorum.seats = std::move(survivors);
  auto& seats = next.proposal.quorum.seats;
  size_t bytes = encoded_bytes(next.proposal.quorum);
  const size_t seats_max =
      std::min(static_cast<size_t>(std::max(options_.world_size_max, 1)), kSeatsMax);
  bool adds = false;
  for (Seat& seat : arrived) {
    bytes += encoded_bytes(Quorum{0, {seat}});
    if (seats.size() >= seats_max || bytes > kQuorumBytesMax) break;
    seats.push_back(std::move(seat));
    adds = true;
  }
  next.reason = adds ? "members join" : "operations were held";
  if (adds || somebody_holds_) return propose(std::move(next), now);
  state_ = Steady;
}

// No quorum yet, or nobody of the last one is alive.
void Coordinator::propose_first(TimePoint now) {
  if (!is_authoritative_) return note_waiting("waits for a member of the last quorum");
  if (durable_.quorum.quorum_id != 0 && durable_.revision != 0) {
    // They come with checkpoints, or stop when they compare their states.
    note_once("no living member holds revision " + std::to_string(durable_.revision) +
              " of the shared state: it must come from a checkpoint");
  }
  Outstanding next;
  next.proposal.quorum = {durable_.quorum.quorum_id + 1, newcomers(now)};
  auto& seats = next.proposal.quorum.seats;
  const size_t seats_max =
      std::min(static_cast<size_t>(std::max(options_.world_size_max, 1)), kSeatsMax);
  seats.resize(std::min(seats.size(), seats_max));
  const auto seats_min = static_cast<size_t>(std::max(options_.world_size_min, 1));
  if (seats.size() < seats_min) {
    state_ = Gathering;
    return;
  }
  next.reason = "the first of the run";
  propose(std::move(next), now);
}

void Coordinator::propose(Outstanding next, TimePoint now) {
  Proposal& proposal = next.proposal;
  proposal.term = durable_.term;
  proposal.ballot = ++ballot_;
  for (const Seat& seat : durable_.quorum.seats) {
    const Known& known = known_.at(seat.member_id);
    const bool is_said = std::find(proposal.gone.begin(), proposal.gone.end(), seat.member_id) !=
                         proposal.gone.end();
    if (known.is_gone && !is_said) proposal.gone.push_back(seat.member_id);
  }
  note("proposes quorum " + std::to_string(proposal.quorum.quorum_id) + " of " +
       std::to_string(proposal.quorum.seats.size()) + " members: " + next.reason);
  outstanding_ = std::move(next);
  somebody_holds_ = true;
  somebody_froze_ = somebody_froze_ || outstanding_->proposal.freezes;
  state_ = Proposing;
  for (const Seat& seat : outstanding_->proposal.quorum.seats) {
    const auto [known, is_new] = known_.try_emplace(seat.member_id);
    if (is_new) known->second.heard_at = now;
    send_proposal(seat.member_id, now);
  }
  for (const Seat& seat : durable_.quorum.seats) send_proposal(seat.member_id, now);
}

// --- agreeing ------------------------------------------------------------------------------------

// Returns whether the proposal is agreed now, or still to be waited for.
bool Coordinator::settle_outstanding(TimePoint now) {
  std::vector<Seat> accepted;
  bool is_complete = true;  // all that are not lost have accepted
  bool is_whole = true;     // nobody is lost
  for (const Seat& seat : outstanding_->proposal.quorum.seats) {
    if (outstanding_->accepted.count(seat.member_id) != 0) {
      accepted.push_back(seat);
    } else if (!is_lost(seat.member_id, now)) {
      is_complete = false;
    }
    is_whole = is_whole && !is_lost(seat.member_id, now);
  }
  std::vector<Seat> voters = accepted;
  for (const Seat& seat : durable_.quorum.seats) {
    const bool is_witness = outstanding_->accepted.count(seat.member_id) != 0 &&
                            !outstanding_->proposal.quorum.contains(seat.member_id);
    if (is_witness) voters.push_back(seat);
  }
  const bool is_enough = durable_.quorum.quorum_id == 0 || may_follow(voters);
  const bool is_settled = is_whole || outstanding_->repeats;
  if (is_complete && is_enough && is_settled && !accepted.empty()) {
    commit();
    return true;
  }
  state_ = Proposing;
  if (is_complete && !is_enough && !is_whole) wait_for_more(voters);
  if (is_settled) return true;
  outstanding_.reset();
  return false;
}

void Coordinator::commit() {
  const Outstanding agreed = std::move(*outstanding_);
  const Quorum before = durable_.quorum;
  uint64_t first_operation = 0;
  uint64_t recover_from = kNothingToRecover;
  bool goes_on = false;  // with anybody of the quorum before
  for (const auto& [id, progress] : agreed.accepted) {
    if (ranks_.find(id) == ranks_.end() || !agreed.proposal.quorum.contains(id)) continue;
    goes_on = true;
    first_operation = std::max(first_operation, progress.started);
    recover_from = std::min(recover_from, progress.completed);
  }
  // Seats that may still be there and have not answered: what they have told must fit, so that they
  // can be let in late.
  for (const Seat& seat : before.seats) {
    const Known& known = known_.at(seat.member_id);
    const bool is_missing = agreed.proposal.quorum.contains(seat.member_id) &&
                            agreed.accepted.count(seat.member_id) == 0;
    if (!is_missing || known.report.quorum_id != before.quorum_id) continue;
    first_operation = std::max(first_operation, known.report.progress.started);
    recover_from = std::min(recover_from, known.report.progress.completed);
  }
  if (!goes_on && before.quorum_id != 0) first_operation = started_max_;
  // Never back, even when all that had started an operation are dead: it is recovered already.
  first_operation = std::max(first_operation, durable_.first_operation);
  if (!agreed.proposal.freezes) recover_from = kNothingToRecover;

  if (out_reasons_.size() > kReasonsKept) out_reasons_.clear();
  std::map<MemberId, std::string> names;
  for (const Seat& seat : before.seats) {
    names[seat.member_id] = name_of(seat.member_id);
    if (agreed.proposal.quorum.contains(seat.member_id)) continue;
    const auto reason = lost_.find(seat.member_id);
    out_reasons_[seat.member_id] = reason == lost_.end() ? agreed.reason : reason->second;
  }
  Quorum quorum = agreed.proposal.quorum;
  for (Seat& seat : quorum.seats) {
    if (seat.joined_at == kJoinsNow) seat.joined_at = first_operation;
  }
  durable_.quorum_term = agreed.proposal.term;
  durable_.quorum_ballot = agreed.proposal.ballot;
  durable_.first_operation = first_operation;
  durable_.recover_from = recover_from;
  set_quorum(std::move(quorum));
  is_authoritative_ = options_.has_database && !options_.has_taken_over;
  persist();
  for (const auto& [id, progress] : agreed.accepted) {
    if (!agreed.proposal.quorum.contains(id)) continue;
    send_commit(id, agreed.proposal.term, agreed.proposal.ballot);
  }
  announce(before, names);
  state_ = Gathering;
}

void Coordinator::send_commit(const MemberId& to, uint64_t term, uint64_t ballot) {
  send(to, Commit{term, ballot, durable_.quorum.quorum_id, durable_.first_operation,
                  durable_.recover_from});
}

// Tells those that are out, and whoever reads notes.
void Coordinator::announce(const Quorum& before, const std::map<MemberId, std::string>& names) {
  const Quorum& quorum = durable_.quorum;
  for (const Seat& seat : before.seats) {
    if (ranks_.find(seat.member_id) != ranks_.end()) continue;
    const std::string& reason = out_reasons_.at(seat.member_id);
    note(names.at(seat.member_id) + " is out: " + reason);
    if (known_.at(seat.member_id).is_connected) {
      send(seat.member_id, Refuse{durable_.term, RefuseKind::Evicted, reason});
    }
    known_.erase(seat.member_id);
  }
  for (const Seat& seat : quorum.seats) {
    if (!before.contains(seat.member_id)) note(name_of(seat.member_id) + " is in");
  }
  note("quorum " + std::to_string(quorum.quorum_id) + " of " + std::to_string(quorum.seats.size()) +
       " members is in force from operation " + std::to_string(durable_.first_operation) + " on");
}

// A revision of the shared state is committed when two living members hold it, or the only one.
void Coordinator::learn_revision() {
  std::map<std::pair<uint64_t, Digest>, size_t> holders;
  for (const Seat& seat : durable_.quorum.seats) {
    const Known& known = known_.at(seat.member_id);
    if (!known.obeys || known.report.revision <= durable_.revision) continue;
    ++holders[{known.report.revision, known.report.digest}];
  }
  const size_t needed = std::min<size_t>(2, durable_.quorum.seats.size());
  for (auto at = holders.rbegin(); at != holders.rend(); ++at) {
    if (at->second < needed) continue;
    durable_.revision = at->first.first;
    durable_.digest = at->first.second;
    persist();
    note("revision " + std::to_string(durable_.revision) + " of the shared state is committed");
    return;
  }
}

// --- time ----------------------------------------------------------------------------------------

TimePoint Coordinator::next_deadline(TimePoint now) const {
  TimePoint next = after(now, options_.heartbeat_seconds);
  const auto consider = [&](TimePoint due) {
    if (due > now) next = std::min(next, due);
  };
  for (const Seat& seat : durable_.quorum.seats) {
    const Known& known = known_.at(seat.member_id);
    consider(after(known.heard_at, silence_seconds(known)));
    for (const auto& [other, since] : known.suspects_since) {
      consider(after(since, options_.link_grace_seconds));
    }
  }
  return next;
}

}  // namespace pccl::membership
