// When a proposal is agreed, and who is told. docs/decisions/0005-membership.md has the reasons.
#include <algorithm>
#include <set>
#include <utility>

#include "membership/coordinator.h"

namespace pccl::membership {
namespace {

using enum CoordinatorState;

// Of members that were dropped; who comes back after so many others is told less.
constexpr size_t kReasonsKept = 4096;

}  // namespace

// Returns whether the proposal is agreed now, or still to be waited for.
bool Coordinator::settle_outstanding(TimePoint now) {
  const auto& accepts = outstanding_->accepted;
  bool is_complete = true;  // all that are not lost have accepted
  bool is_whole = true;     // nobody is lost
  for (const Seat& seat : outstanding_->proposal.quorum.seats) {
    const bool is_seat_lost = is_lost(seat.member_id, now);
    if (!is_seat_lost && accepts.count(seat.member_id) == 0) is_complete = false;
    is_whole = is_whole && !is_seat_lost;
  }
  state_ = Proposing;
  if (is_complete) {
    // Those of the proposal, and witnesses.
    std::set<MemberId> voters;
    for (const auto& [id, progress] : accepts) voters.insert(id);
    const bool is_enough = durable_.quorum.quorum_id == 0 || may_follow(voters);
    if (is_enough && is_whole) {
      commit();
      return true;
    }
    if (!is_enough && !is_whole) wait_for_more(voters);
  }
  if (is_whole) return true;
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
    if (known_.at(id).report.quorum_id == 0) {
      // Has not entered the quorum before, and so nothing since it joined. Others may be further:
      // what has no elements needs nobody else.
      const auto rank = static_cast<size_t>(ranks_.at(id));
      recover_from = std::min(recover_from, before.seats[rank].joined_at);
      continue;
    }
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
void Coordinator::learn_revision(const Report& report) {
  if (report.revision <= durable_.revision) return;
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
  consider(options_.first_quorum_at);
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
