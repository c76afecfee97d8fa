// Who is lost, what is proposed. docs/decisions/0005-membership.md has the
// reasons.
#include <algorithm>
#include <cstdio>
#include <utility>

#include "membership/coordinator.h"

namespace pccl::membership {
namespace {

using enum CoordinatorState;

std::string seconds_text(double seconds) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f s", seconds);
  return text;
}

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

// Above its quorum.
std::vector<const Proposal*> all_accepted(const Report& report) {
  std::vector<const Proposal*> all;
  all.reserve(report.accepted_before.size() + 1);
  for (const Proposal& proposal : report.accepted_before) all.push_back(&proposal);
  if (report.accepted) all.push_back(&*report.accepted);
  return all;
}

std::pair<uint64_t, uint64_t> number_of(const Proposal& proposal) {
  return {proposal.term, proposal.ballot};
}

// Whether this member has never accepted the proposal with that (term, ballot): it tells the last
// one of each term since its quorum, and what it enters only ever has higher ones. As it obeys a
// later term it won't either, and without all of its seats no proposal is agreed.
bool has_not_accepted(const Report& report, const std::pair<uint64_t, uint64_t>& number) {
  const std::vector<const Proposal*> all = all_accepted(report);
  return std::pair(report.quorum_term, report.quorum_ballot) < number &&
         std::none_of(all.begin(), all.end(), [&](const Proposal* proposal) {
           return proposal->term == number.first && proposal->ballot >= number.second;
         });
}

}  // namespace

void Coordinator::decide(TimePoint now) {
  judge(now);
  collect_doubtful();
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

// Never less than 8 round trips: what is far away may be silent for longer. But a round trip may
// hold an outage, so not much longer.
double Coordinator::silence_seconds(const Known& known) const {
  const double least = options_.silence_seconds;
  return std::clamp(8e-6 * known.report.round_trip_us, least, 3 * least);
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
    const MemberId& id = item.first;
    const Known& known = item.second;
    if (known.is_connected || ranks_.find(id) != ranks_.end()) return false;
    if (outstanding_ && outstanding_->proposal.quorum.contains(id)) return false;
    const bool has_doubtful_seat =
        std::any_of(doubtful_.begin(), doubtful_.end(),
                    [&](const auto& doubtful) { return doubtful.second.contains(id); });
    if (has_doubtful_seat) return false;
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

std::pair<size_t, size_t> Coordinator::count_alive(const std::vector<Seat>& all,
                                                   const std::set<MemberId>& voters) const {
  size_t alive = 0;
  size_t here = 0;
  for (const Seat& seat : all) {
    const auto known = known_.find(seat.member_id);
    if (known != known_.end() && known->second.is_gone) continue;
    alive += 1;
    here += voters.count(seat.member_id);
  }
  return {alive, here};
}

bool Coordinator::is_enough_of(const std::vector<Seat>& all,
                               const std::set<MemberId>& voters) const {
  const auto [alive, here] = count_alive(all, voters);
  return is_authoritative_ ? 2 * here >= alive : 2 * here > alive;
}

// The quorum in force, and every proposal that may have come into force after it.
bool Coordinator::may_follow(const std::set<MemberId>& voters) const {
  return is_enough_of(durable_.quorum.seats, voters) &&
         std::all_of(doubtful_.begin(), doubtful_.end(),
                     [&](const auto& item) { return is_enough_of(item.second.seats, voters); });
}

// Seats that have to go, but can still say that they agree: they count for what may follow.
std::set<MemberId> Coordinator::witnesses(TimePoint now) const {
  std::set<MemberId> ids;
  for (const auto& [id, reason] : lost_) {
    const Known& known = known_.at(id);
    const bool is_silent = seconds_between(known.heard_at, now) >= silence_seconds(known);
    if (is_silent || known.is_gone || !known.is_connected || !known.obeys) continue;
    if (known.report.quorum_id != durable_.quorum.quorum_id) continue;
    ids.insert(id);
  }
  return ids;
}

void Coordinator::wait_for_more(const std::set<MemberId>& voters) {
  const Quorum* short_of = &durable_.quorum;
  for (const auto& [number, doubtful] : doubtful_) {
    if (is_enough_of(short_of->seats, voters)) short_of = &doubtful;
  }
  const auto [alive, here] = count_alive(short_of->seats, voters);
  const std::string of_which =
      short_of == &durable_.quorum
          ? ""
          : " of quorum " + std::to_string(short_of->quorum_id) + ", which may have been agreed";
  std::string details;
  for (const auto& [id, reason] : lost_) details += "; " + name_of(id) + ": " + reason;
  note_waiting("can't go on: of " + std::to_string(alive) + " members that may be alive" +
                   of_which + ", " + std::to_string(here) + " are here, and it takes " +
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

// Whether it may have been agreed after the quorum in force. What our own term proposed was not: we
// would know. Nor what this run's own coordinator did, where its disk has all that it agreed to.
bool Coordinator::is_doubtful(const Proposal& accepted) const {
  if (accepted.quorum.quorum_id <= durable_.quorum.quorum_id) return false;
  const bool is_ours =
      accepted.term == durable_.term || (is_authoritative_ && !is_of_takeover(accepted.term));
  const std::pair number = number_of(accepted);
  // Whoever proposed the quorum in force asked enough members what they had accepted before.
  const bool is_past = number < std::pair(durable_.quorum_term, durable_.quorum_ballot);
  return !is_ours && !is_past && !refuted_.contains(number);
}

// Whether anything that it has accepted is.
bool Coordinator::is_doubtful(const Report& report) const {
  const std::vector<const Proposal*> all = all_accepted(report);
  return std::any_of(all.begin(), all.end(),
                     [&](const Proposal* proposal) { return is_doubtful(*proposal); });
}

void Coordinator::collect_doubtful() {
  for (const auto& [id, known] : known_) {
    for (const Proposal* proposal : all_accepted(known.report)) {
      if (!is_doubtful(*proposal)) continue;
      const auto at = doubtful_.try_emplace(number_of(*proposal), proposal->quorum).first;
      // With addresses, where somebody has them.
      const auto& last = known.report.accepted;
      if (last && proposal == &*last) at->second = proposal->quorum;
    }
  }
  std::erase_if(doubtful_, [&](const auto& item) {
    const auto& number = item.first;
    const std::vector<Seat>& seats = item.second.seats;
    const bool is_refuted = std::any_of(seats.begin(), seats.end(), [&](const Seat& seat) {
      const auto known = known_.find(seat.member_id);
      return known != known_.end() && known->second.obeys &&
             has_not_accepted(known->second.report, number);
    });
    if (is_refuted) refuted_.insert(number);
    return is_refuted;
  });
}

// --- proposing -----------------------------------------------------------------------------------

void Coordinator::propose_next(TimePoint now) {
  std::vector<Seat> survivors;
  bool do_all_obey = true;
  bool needs_recovery = somebody_froze_;
  for (const Seat& seat : durable_.quorum.seats) {
    if (lost_.find(seat.member_id) != lost_.end()) continue;
    const Known& known = known_.at(seat.member_id);
    // Who has accepted something doubtful goes from its quorum to the one that follows that.
    const bool is_ready =
        known.report.quorum_id == durable_.quorum.quorum_id || is_doubtful(known.report);
    do_all_obey = do_all_obey && known.obeys && is_ready;
    needs_recovery = needs_recovery || known.report.needs_recovery;
    survivors.push_back(seat);
  }
  std::set<MemberId> voters = witnesses(now);
  for (const Seat& seat : survivors) voters.insert(seat.member_id);
  for (const auto& [number, before] : doubtful_) {
    for (const Seat& seat : before.seats) {
      const auto known = known_.find(seat.member_id);
      const bool is_here = known != known_.end() && known->second.is_connected &&
                           known->second.obeys && !is_lost(seat.member_id, now);
      if (is_here) voters.insert(seat.member_id);
    }
  }
  if (!may_follow(voters)) return wait_for_more(voters);
  if (!do_all_obey) {
    state_ = Gathering;
    return;
  }
  Outstanding next;
  next.proposal.quorum.quorum_id = durable_.quorum.quorum_id + 1;
  if (!doubtful_.empty()) return propose_after_doubtful(std::move(next), now);
  std::vector<Seat> arrived = newcomers(now);
  const bool drops = survivors.size() < durable_.quorum.seats.size();
  if (drops || needs_recovery) {
    const size_t reachable = survivors.size() + arrived.size();
    if (drops && reachable < static_cast<size_t>(std::max(options_.world_size_min, 1))) {
      send_away(survivors.size(), now);
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
  waiting_.clear();
  state_ = Steady;
}

// Too few are left, while members that are here have to go: nothing but a newcomer helps, and they
// can be that. They say goodbye then, so the others must be able to go on without their word. Until
// it is heard nothing has changed: they are told again, or their links come back.
void Coordinator::send_away(size_t survivors, TimePoint now) {
  std::vector<MemberId> ids;
  size_t alive = 0;
  for (const Seat& seat : durable_.quorum.seats) {
    const Known& known = known_.at(seat.member_id);
    if (known.is_gone) continue;
    alive += 1;
    if (lost_.find(seat.member_id) == lost_.end() || !known.is_connected || !known.obeys) continue;
    if (seconds_between(known.heard_at, now) < silence_seconds(known))
      ids.push_back(seat.member_id);
  }
  alive -= ids.size();
  if (is_authoritative_ ? 2 * survivors < alive : 2 * survivors <= alive) return;
  for (const MemberId& id : ids) {
    const std::string& reason = lost_.at(id);
    if (!std::exchange(known_.at(id).is_sent_away, true))
      note(name_of(id) + " has to join anew: " + reason);
    send(id, Refuse{durable_.term, RefuseKind::Evicted, reason});
  }
}

// What may be in force somewhere is followed by a quorum of those of it that are here. Operations
// that anybody may have started in between are recovered.
void Coordinator::propose_after_doubtful(Outstanding next, TimePoint now) {
  Quorum& quorum = next.proposal.quorum;
  for (const auto& [number, before] : doubtful_)
    quorum.quorum_id = std::max(quorum.quorum_id, before.quorum_id + 1);
  const auto& [number, last] = *doubtful_.rbegin();
  for (const Seat& seat : last.seats) {
    // Who has not spoken yet gets the time that a silent one gets.
    const auto [known, is_new] = known_.try_emplace(seat.member_id);
    if (is_new) known->second.heard_at = now;
    if (is_lost(seat.member_id, now)) continue;
    // Who proposed it may not have known that a seat had joined already.
    const auto rank = ranks_.find(seat.member_id);
    if (rank != ranks_.end()) {
      quorum.seats.push_back(durable_.quorum.seats[static_cast<size_t>(rank->second)]);
      continue;
    }
    quorum.seats.push_back(seat);
    const Seat& told = known->second.report.seat;
    if (told.member_id == seat.member_id) quorum.seats.back().address = told.address;
  }
  if (quorum.seats.empty()) return note_waiting("nobody of the last proposal is here");
  next.proposal.freezes = true;
  next.reason = "quorum " + std::to_string(last.quorum_id) + " was proposed in term " +
                term_text(number.first) + " and may have been agreed";
  propose(std::move(next), now);
}

// No quorum yet, or nobody of the last one is alive.
void Coordinator::propose_first(TimePoint now) {
  if (!is_authoritative_) return note_waiting("waits for a member of the last quorum");
  if (durable_.quorum.quorum_id == 0 && now < options_.first_quorum_at)
    return note_once("its database does not know this run: listens whether members of it live");
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
  proposal.quorum.table = links_.table(proposal.quorum.seats, now);
  if (encoded_bytes(proposal.quorum) > kQuorumBytesMax) proposal.quorum.table = {};
  for (const Seat& seat : durable_.quorum.seats) {
    const Known& known = known_.at(seat.member_id);
    const bool is_said = std::find(proposal.gone.begin(), proposal.gone.end(), seat.member_id) !=
                         proposal.gone.end();
    if (known.is_gone && !is_said) proposal.gone.push_back(seat.member_id);
  }
  note("proposes quorum " + std::to_string(proposal.quorum.quorum_id) + " of " +
       std::to_string(proposal.quorum.seats.size()) + " members: " + next.reason);
  outstanding_ = std::move(next);
  waiting_.clear();
  somebody_holds_ = true;
  somebody_froze_ = somebody_froze_ || outstanding_->proposal.freezes;
  state_ = Proposing;
  for (const Seat& seat : outstanding_->proposal.quorum.seats) {
    const auto [known, is_new] = known_.try_emplace(seat.member_id);
    if (is_new) known->second.heard_at = now;
  }
  for (const auto& [id, known] : known_) {
    if (is_asked(id)) send_proposal(id, now);
  }
}

}  // namespace pccl::membership
