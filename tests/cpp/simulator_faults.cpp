// What goes wrong, and what must not.
#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "simulator_world.h"

namespace simulator {

// --- faults --------------------------------------------------------------------------------------

// Each kind of fault is there in half of the seeds, with an intensity from rare to storm.
void World::draw_weather() {
  if (options_.is_large) {
    weather_.delay_max = 0.05;
    weather_.kill = 0.5;
    weather_.crash = 0.2;
    weather_.pause = 0.2;
    weather_.clog = 0.5;
    return;
  }
  const auto rate = [&](double low, double high) {
    if (random_.chance(0.5)) return 0.0;
    return low * std::pow(high / low, random_.real());
  };
  weather_.kill = rate(0.02, 0.3);
  weather_.kill_at_step = rate(0.0002, 0.01);
  weather_.crash = rate(0.02, 0.4);
  weather_.crash_at_step = rate(0.0005, 0.02);
  weather_.disk_loss = random_.chance(0.1) ? 0.3 : 0;
  weather_.pause = rate(0.02, 0.4);
  weather_.clog = rate(0.05, 2);
  weather_.partition = rate(0.02, 0.2);
  weather_.swizzle = rate(0.02, 0.15);
  weather_.one_way = rate(0.02, 0.3);
  weather_.join = rate(0.02, 0.3);
  weather_.leave = rate(0.01, 0.1);
  weather_.duplicate = rate(0.01, 0.3);
  weather_.delay_max = 0.002 * std::pow(100, random_.real());
  weather_.spares_majority = random_.chance(0.8);
}

void World::next_fault() {
  const double all = weather_.kill + weather_.crash + weather_.pause + weather_.clog +
                     weather_.partition + weather_.swizzle + weather_.one_way + weather_.join +
                     weather_.leave;
  if (all <= 0) return;
  schedule(-std::log(1 - random_.real()) / all, kHome - 1, [this] {
    if (is_calm_) return;
    fault();
    next_fault();
  });
}

void World::fault() {
  const std::array<double, 9> rates = {weather_.kill,    weather_.crash,     weather_.pause,
                                       weather_.clog,    weather_.partition, weather_.swizzle,
                                       weather_.one_way, weather_.join,      weather_.leave};
  double all = 0;
  for (const double rate : rates) all += rate;
  double at = random_.real() * all;
  size_t kind = 0;
  while (kind + 1 < rates.size() && at >= rates[kind]) at -= rates[kind++];
  const int count = static_cast<int>(processes_.size());
  const int victim = static_cast<int>(random_.below(static_cast<uint64_t>(count)));
  // The home of the coordinator, too.
  const int other = static_cast<int>(random_.below(static_cast<uint64_t>(count) + 1)) - 1;
  const Process& process = processes_[static_cast<size_t>(victim)];
  switch (kind) {
    case 0:
      if (may_kill(victim)) kill(victim);
      break;
    case 1:
      if (coordinators_.count(kHome) == 0) break;
      ++result_.crashes;
      stop_coordinator(kHome);
      if (random_.chance(weather_.disk_loss)) {
        log("the coordinator's disk is lost");
        home_disk_ = {};
        home_has_database_ = false;
      }
      schedule(random_.between(0.1, random_.chance(0.3) ? 20 : 4), kHome - 1, [this] {
        if (coordinators_.count(kHome) == 0)
          start_coordinator(kHome, home_disk_, home_has_database_);
      });
      break;
    case 2:
      pause(random_.chance(0.25) ? kHome : victim, random_.between(0.1, 9));
      break;
    case 3: {
      const Seconds seconds = random_.between(0.05, 3);
      block(victim, other, seconds);
      block(other, victim, seconds);
      break;
    }
    case 4:
      partition();
      break;
    case 5:
      swizzle();
      break;
    case 6:
      if (random_.chance(0.5)) {
        block(victim, other, random_.between(1, 12));
      } else {
        block(other, victim, random_.between(1, 12));
      }
      break;
    case 7:
      if (count < options_.members * 4) start_member();
      break;
    default:
      if (process.is_alive && !process.is_out && may_kill(victim)) {
        processes_[static_cast<size_t>(victim)].wants_to_leave = true;
        processes_[static_cast<size_t>(victim)].touched_at = 1e9;
      }
      break;
  }
}

// Whether enough of the last quorum are left then.
bool World::may_kill(int index) const {
  const Process& victim = processes_[static_cast<size_t>(index)];
  if (!victim.is_alive) return false;
  const Quorum* quorum = last_quorum();
  if (!weather_.spares_majority || quorum == nullptr || !quorum->contains(victim.id)) return true;
  size_t alive = 0;
  for (const Seat& seat : quorum->seats) {
    const Process& process = processes_[static_cast<size_t>(find(seat.member_id))];
    alive += process.is_alive && !process.is_out && !process.wants_to_leave;
  }
  return 2 * (alive - 1) > quorum->seats.size() &&
         alive > static_cast<size_t>(std::max(1, options_.members / 2));
}

void World::kill(int index) {
  Process& process = processes_[static_cast<size_t>(index)];
  log("member " + std::to_string(index) + " is killed");
  ++result_.kills;
  process.is_alive = false;
  process.touched_at = now_;
  if (process.connection >= 0) break_connection(process.connection, true, false);
  if (coordinators_.count(index) != 0) stop_coordinator(index);
  for (size_t i = 0; i < processes_.size(); ++i) {
    const int other = static_cast<int>(i);
    if (other == index || is_blocked(index, other)) continue;
    const auto& frames_at = process.frames_at;
    const Seconds behind = i < frames_at.size() ? std::max(0.0, frames_at[i] - now_) : 0;
    schedule(delay() + behind, other, [this, index, other] {
      Process& self = processes_[static_cast<size_t>(other)];
      if (!self.is_alive || self.is_out) return;
      self.member->on_link_lost(processes_[static_cast<size_t>(index)].id, true,
                                "its kernel closed the socket", time());
      perform_member(other);
    });
  }
  if (random_.chance(0.8)) {
    schedule(random_.between(0.2, 8), kHome - 1, [this] { start_member(); });
  }
}

// Two sides, the coordinator's home on one of them.
void World::partition() {
  const Seconds seconds = random_.between(1, 15);
  std::vector<bool> side(processes_.size() + 1);
  for (size_t i = 0; i < side.size(); ++i) side[i] = random_.chance(0.5);
  log("partition for " + std::to_string(seconds));
  for (size_t a = 0; a < side.size(); ++a) {
    for (size_t b = 0; b < side.size(); ++b) {
      if (side[a] != side[b]) block(static_cast<int>(a) - 1, static_cast<int>(b) - 1, seconds);
    }
  }
}

// A random subset of the processes loses its links one by one, and gets them back in another order.
void World::swizzle() {
  Seconds at = 0;
  for (size_t i = 0; i <= processes_.size(); ++i) {
    if (!random_.chance(0.5)) continue;
    at += random_.between(0, 1);
    const int victim = static_cast<int>(i) - 1;
    const Seconds seconds = random_.between(0.5, 10);
    schedule(at, kHome - 1, [this, victim, seconds] {
      if (is_calm_) return;
      for (size_t other = 0; other <= processes_.size(); ++other) {
        block(victim, static_cast<int>(other) - 1, seconds);
        block(static_cast<int>(other) - 1, victim, seconds);
      }
    });
  }
}

void World::calm_down() {
  log("faults stop");
  is_calm_ = true;
  for (auto& [link, until] : blocked_) until = std::min(until, now_);
  std::vector<int> paused;
  for (const auto& [process, tasks] : backlog_) paused.push_back(process);
  for (const int process : paused) resume(process);
  if (coordinators_.count(kHome) == 0) start_coordinator(kHome, home_disk_, home_has_database_);
  schedule(options_.calm_seconds / 2, kHome - 1, [this] {
    for (Process& process : processes_)
      process.completed_when_calm = process.data->progress().completed;
  });
}

// --- oracles -------------------------------------------------------------------------------------

const Quorum* World::last_quorum() const {
  return agreed_.empty() ? nullptr : &agreed_.rbegin()->second.quorum;
}

// A coordinator says nothing that is not on its disk.
void World::check_said(const CoordinatorProcess& process, const Message& message) {
  const auto* commit = std::get_if<Commit>(&message);
  const auto* status = std::get_if<Status>(&message);
  if (commit != nullptr && commit->quorum_id > process.disk.quorum.quorum_id) {
    // A quorum that it has learned from members of its run is theirs to say.
    if (agreed_.count(commit->quorum_id) == 0) throw Violation("a Commit is not on disk");
  }
  if (status != nullptr && status->term > process.disk.term)
    throw Violation("a term is not on disk");
}

// One quorum for each id, the same for all; and nobody is dropped without a cause.
void World::check_enter(int index, const Enter& enter) {
  const uint64_t quorum_id = enter.quorum.quorum_id;
  log("member " + std::to_string(index) + " enters quorum " + std::to_string(quorum_id) + " of " +
      std::to_string(enter.quorum.seats.size()) + " from " + std::to_string(enter.first_operation) +
      (enter.drops ? ", recovers from " + std::to_string(enter.recover_from) : ""));
  const auto [at, is_new] = agreed_.try_emplace(
      quorum_id, Agreed{enter.quorum, enter.first_operation, enter.recover_from});
  const Agreed& agreed = at->second;
  if (agreed.quorum != enter.quorum || agreed.first_operation != enter.first_operation ||
      agreed.recover_from != enter.recover_from) {
    throw Violation("two quorums with the id " + std::to_string(quorum_id));
  }
  const auto before = agreed_.find(quorum_id - 1);
  if (!is_new || before == agreed_.end()) return;
  // Where a coordinator took over, who reaches the run's own one is silent to the other.
  const Report report = processes_[static_cast<size_t>(index)].member->report(false);
  if (static_cast<uint32_t>(report.quorum_term) != 0) return;
  constexpr Seconds kFaultsLastFor = 60;
  for (const Seat& seat : before->second.quorum.seats) {
    const Process& process = processes_[static_cast<size_t>(find(seat.member_id))];
    if (enter.quorum.contains(seat.member_id) || !process.is_alive) continue;
    if (now_ > process.touched_at + kFaultsLastFor) {
      throw Violation("member " + std::to_string(find(seat.member_id)) +
                      " is dropped without a fault");
    }
  }
}

// The sum is that of exactly the members that its origin names, and the same wherever the operation
// is complete and the member is still in.
void World::check_complete(int index, uint64_t operation, const std::vector<uint64_t>& values,
                           const FinalMap& finals, bool was_recovered) {
  result_.recovered += was_recovered;
  const Quorum* last = last_quorum();
  const bool is_in = last != nullptr && last->contains(processes_[static_cast<size_t>(index)].id);
  if (!is_in) return;
  uint64_t hash = 0;
  for (const FinalMap::Range& range : finals.ranges()) {
    if (agreed_.count(range.quorum_id) == 0) throw Violation("an element of no quorum");
    const std::vector<uint64_t>& sums = right_sums(operation, range.quorum_id);
    for (uint64_t at = range.begin; at < range.end; ++at) {
      if (sums[at] != values[at]) {
        throw Violation("operation " + std::to_string(operation) + ", element " +
                        std::to_string(at) + " is wrong at member " + std::to_string(index));
      }
      hash = mix(hash ^ values[at]);
    }
  }
  note(hash);
  auto& outcomes = outcomes_[operation];
  ++result_.operations;
  const Outcome own{hash, finals.ranges()};
  bool is_known = false;
  for (auto& [outcome, members] : outcomes) {
    if (outcome == own) {
      members.push_back(index);
      is_known = true;
      continue;
    }
    for (const int other : members) {
      if (!last->contains(processes_[static_cast<size_t>(other)].id)) continue;
      throw Violation("operation " + std::to_string(operation) + " differs between members " +
                      std::to_string(other) + " and " + std::to_string(index));
    }
  }
  if (!is_known) outcomes.push_back({own, {index}});
  constexpr size_t kOperationsKept = 256;
  if (outcomes_.size() > kOperationsKept) outcomes_.erase(outcomes_.begin());
  if (sums_.size() > kOperationsKept) sums_.erase(sums_.begin());
}

const std::vector<uint64_t>& World::right_sums(uint64_t operation, uint64_t quorum_id) {
  const auto [kept, is_new] = sums_.try_emplace({operation, quorum_id});
  if (!is_new) return kept->second;
  kept->second.resize(element_count(operation));
  for (const Seat& seat : agreed_.at(quorum_id).quorum.seats) {
    if (seat.joined_at > operation) continue;
    for (uint64_t at = 0; at < kept->second.size(); ++at)
      kept->second[at] += contribution(seat.member_id, operation, at);
  }
  return kept->second;
}

void World::check_transition(int index, MemberState before, const std::string& event) {
  const MemberState after = processes_[static_cast<size_t>(index)].member->state();
  if (after == before) return;
  for (const MemberTransition& transition : member_transitions()) {
    if (transition.from == before && transition.to == after && transition.event == event) return;
  }
  throw Violation("no such transition: " + std::string(state_name(before)) + " -> " + event +
                  " -> " + std::string(state_name(after)));
}

// Once faults have stopped, whoever is left goes on, if enough of the last quorum are left.
bool World::is_left(const Process& process) {
  return process.is_alive && !process.is_out && !process.wants_to_leave;
}

bool World::has_most_left(const Quorum& quorum) const {
  const auto left =
      std::count_if(quorum.seats.begin(), quorum.seats.end(), [this](const Seat& seat) {
        return is_left(processes_[static_cast<size_t>(find(seat.member_id))]);
      });
  return 2 * static_cast<size_t>(left) > quorum.seats.size();
}

// Whether somebody that is left knows that it is in force. If not, the disk and all that had
// entered it are lost, and most of the newest that is known must be left to decide: those that only
// accepted it can't tell whether others of the one before have agreed on something else.
bool World::can_be_known(const Quorum& quorum, const Durable& disk) const {
  if (disk.quorum.quorum_id >= quorum.quorum_id) return true;
  const Quorum* newest = nullptr;
  for (const auto& [host, coordinator] : coordinators_) {
    const Quorum& known = coordinator.machine->durable().quorum;
    if (newest == nullptr || known.quorum_id > newest->quorum_id) newest = &known;
  }
  for (const Process& process : processes_) {
    if (!is_left(process)) continue;
    const Quorum& known = process.member->quorum();
    if (newest == nullptr || known.quorum_id > newest->quorum_id) newest = &known;
  }
  return newest != nullptr && (newest->quorum_id >= quorum.quorum_id || has_most_left(*newest));
}

// What may be in force as well, above the last quorum known: most of it must be left, too.
bool World::has_most_left_of_doubtful(uint64_t last_quorum) const {
  return std::all_of(processes_.begin(), processes_.end(), [&](const Process& process) {
    if (!process.is_alive || process.is_out) return true;
    const std::vector<Proposal> all = accepted_by(process);
    return std::all_of(all.begin(), all.end(), [&](const Proposal& proposal) {
      const bool is_past = proposal.quorum.quorum_id <= last_quorum;
      return is_past || has_most_left(proposal.quorum) || !may_be_agreed(proposal);
    });
  });
}

std::vector<Proposal> World::accepted_by(const Process& process) {
  const Report report = process.member->report(false);
  std::vector<Proposal> all = report.accepted_before;
  if (report.accepted) all.push_back(*report.accepted);
  return all;
}

// Without all of its seats it was not: of those that are left, each has accepted it.
bool World::may_be_agreed(const Proposal& proposal) const {
  const auto& seats = proposal.quorum.seats;
  return std::all_of(seats.begin(), seats.end(), [&](const Seat& seat) {
    const Process& process = processes_[static_cast<size_t>(find(seat.member_id))];
    if (!is_left(process)) return true;
    const std::vector<Proposal> all = accepted_by(process);
    return std::any_of(all.begin(), all.end(), [&](const Proposal& accepted) {
      return accepted.term == proposal.term && accepted.ballot >= proposal.ballot;
    });
  });
}

void World::check_progress() {
  const Quorum* quorum = last_quorum();
  // One that nobody has entered may have been agreed all the same.
  const auto home = coordinators_.find(kHome);
  const Durable& disk = home == coordinators_.end() ? home_disk_ : home->second.disk;
  if (quorum == nullptr && disk.quorum.quorum_id > 0) quorum = &disk.quorum;
  const auto everybody = std::count_if(processes_.begin(), processes_.end(), is_left);
  const bool is_doubtful_left = has_most_left_of_doubtful(quorum ? quorum->quorum_id : 0);
  const bool is_enough = quorum == nullptr ? home_has_database_
                                           : has_most_left(*quorum) && can_be_known(*quorum, disk);
  if (!is_enough || !is_doubtful_left || everybody < std::max(1, options_.members / 2)) {
    result_.was_stuck_rightly = true;
    return;
  }
  for (const auto& [host, coordinator] : coordinators_) {
    log("at the end: coordinator at " + std::to_string(host) + " " +
        std::string(state_name(coordinator.machine->state())) + ", term " +
        term_text(coordinator.machine->durable().term) + ", quorum " +
        std::to_string(coordinator.machine->durable().quorum.quorum_id));
  }
  for (size_t i = 0; i < processes_.size(); ++i) {
    const Process& process = processes_[i];
    if (!process.is_alive || process.is_out) continue;
    log("at the end: member " + std::to_string(i) + " " +
        std::string(state_name(process.member->state())) + ", " +
        describe(process.member->report(false)));
  }
  if (quorum == nullptr) throw Violation("no quorum came about");
  for (size_t i = 0; i < processes_.size(); ++i) {
    const Process& process = processes_[i];
    if (!process.is_alive || process.is_out || process.wants_to_leave) continue;
    if (!quorum->contains(process.id)) {
      throw Violation("member " + std::to_string(i) + " is not in");
    }
    // An operation of hundreds waits for the slowest of them at each level of its tree.
    const uint64_t more = options_.is_large ? 1 : 3;
    if (process.data->progress().completed < process.completed_when_calm + more) {
      throw Violation("member " + std::to_string(i) + " is stuck at operation " +
                      std::to_string(process.data->progress().completed));
    }
  }
}

// Newcomers are let in by an operation of those that are in: not while one of them is dead.
bool World::waits_at_gate(int index, const Hold& hold) const {
  const Process& self = processes_[static_cast<size_t>(index)];
  const Quorum& quorum = self.member->quorum();
  const bool passes = hold.freezes && options_.mutation != Mutation::FreezeWaitsAtGate;
  if (passes || !self.is_alive || quorum.quorum_id >= hold.quorum_id) return false;
  return std::any_of(processes_.begin(), processes_.end(), [&](const Process& process) {
    return !process.is_alive && quorum.contains(process.id);
  });
}

}  // namespace simulator
