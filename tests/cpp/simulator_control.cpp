// The drivers of the machines, and the control connections between them.
#include <algorithm>
#include <cstring>
#include <utility>

#include "simulator_world.h"

namespace simulator {
namespace {

constexpr Seconds kTick = 0.25;
constexpr Seconds kSilence = 4;

CoordinatorOptions coordinator_options(const Options& options, bool has_database,
                                       bool has_taken_over) {
  CoordinatorOptions made;
  made.run = "run";
  made.world_size_min = std::max(1, options.members / 2);
  made.silence_seconds = kSilence;
  made.link_grace_seconds = kSilence;
  made.takeover_seconds = kSilence;
  made.has_database = has_database;
  made.has_taken_over = has_taken_over;
  return made;
}

}  // namespace

// --- members -------------------------------------------------------------------------------------

int World::start_member() {
  const int index = static_cast<int>(processes_.size());
  Process process;
  // The first bytes go into terms: distinct, so that terms are.
  const uint64_t words[] = {static_cast<uint64_t>(index) + 1, mix(options_.seed ^ mix(index))};
  std::memcpy(process.id.data(), words, sizeof(words));
  MemberOptions options;
  options.seat.member_id = process.id;
  options.takeover_seconds = kSilence;
  process.member = std::make_unique<Member>(options, time());
  process.data = std::make_unique<DataPlane>(
      process.id, options_.mutation,
      DataPlane::Host{[this, index](const MemberId& to, const std::shared_ptr<const Frame>& frame) {
                        send_frame(index, to, frame);
                      },
                      [this, index](uint64_t operation, const std::vector<uint64_t>& values,
                                    const FinalMap& finals, bool was_recovered) {
                        check_complete(index, operation, values, finals, was_recovered);
                      }});
  process.window = 1 + random_.below(3);
  process.heard_at = now_;
  processes_.push_back(std::move(process));
  log("member " + std::to_string(index) + " starts");
  schedule(random_.between(0, 0.3), index, [this, index] { tick_member(index); });
  schedule(random_.between(0, 0.3), index, [this, index] { work(index); });
  return index;
}

void World::tick_member(int index) {
  Process& process = processes_[static_cast<size_t>(index)];
  if (!process.is_alive || process.is_out) return;
  look_for_coordinator(index);
  process.member->on_time(time());
  perform_member(index);
  schedule(kTick * random_.between(0.9, 1.1), index, [this, index] { tick_member(index); });
}

// The caller: one operation after another, or a few at a time.
void World::work(int index) {
  Process& process = processes_[static_cast<size_t>(index)];
  if (!process.is_alive || process.is_out) return;
  const Progress progress = process.data->progress();
  if (process.wants_to_leave) {
    if (process.data->is_done_everywhere() && !std::exchange(process.is_leaving, true)) {
      log("member " + std::to_string(index) + " leaves");
      process.member->leave(time());
      perform_member(index);
    }
  } else if (progress.started - progress.completed < process.window) {
    process.data->start();
    process.member->set_progress(process.data->progress());
  }
  // At the end a few operations show that it goes on; more would only take time.
  const bool is_end = now_ > options_.fault_seconds + options_.calm_seconds / 2;
  const Seconds longest = options_.is_large ? 0.5 : is_end ? 1.0 : 0.2;
  schedule(random_.between(0.02, longest), index, [this, index] { work(index); });
}

void World::perform_member(int index) {
  for (MemberAction& action : processes_[static_cast<size_t>(index)].member->take_actions()) {
    Process& process = processes_[static_cast<size_t>(index)];
    if (!process.is_alive) return;
    if (!is_calm_ && random_.chance(weather_.kill_at_step) && may_kill(index)) return kill(index);
    perform(index, action);
  }
}

// Of links that become faster all the time: no two tables of them are alike.
Figures World::figures(int index) const {
  Figures figures;
  const auto rate = static_cast<uint32_t>(1000 + 1000 * now_);
  for (const Process& process : processes_) {
    if (&process == &processes_[static_cast<size_t>(index)]) continue;
    if (figures.links.size() == kLinksMax) break;
    figures.links.push_back({.to = process.id, .sends = rate, .receives = rate});
  }
  return figures;
}

void World::perform(int index, MemberAction& action) {
  Process& process = processes_[static_cast<size_t>(index)];
  if (auto* send = std::get_if<SendToCoordinator>(&action)) {
    if (auto* report = std::get_if<Report>(&send->message)) report->figures = figures(index);
    if (process.connection >= 0) push(process.connection, true, {std::move(send->message), false});
  } else if (const auto* hold = std::get_if<Hold>(&action)) {
    log("member " + std::to_string(index) + " holds for quorum " + std::to_string(hold->quorum_id) +
        (hold->freezes ? ", freezes" : ""));
    answer_hold(index, *hold);
  } else if (const auto* enter = std::get_if<Enter>(&action)) {
    check_enter(index, *enter);
    if (process.frozen && *process.frozen != process.data->progress())
      throw Violation("what member " + std::to_string(index) + " said when it froze has changed");
    process.frozen.reset();
    process.data->enter(*enter);
    process.member->set_progress(process.data->progress());
  } else if (const auto* evicted = std::get_if<Evicted>(&action)) {
    log("member " + std::to_string(index) + " is out: " + evicted->reason);
    process.is_out = true;
    break_connection(process.connection, false, false);
    if (coordinators_.count(index) != 0) stop_coordinator(index);
    if (!process.is_leaving)
      schedule(random_.between(0.5, 3), kHome - 1, [this] { start_member(); });
  } else {
    const uint64_t term = std::get<TakeOver>(action).term;
    log("member " + std::to_string(index) + " takes over with term " + term_text(term));
    ++result_.takeovers;
    process.rival_host = index;
    process.rival_term = term;
    if (coordinators_.count(index) != 0) stop_coordinator(index);
    Durable durable = durable_from(process.member->report(true), term);
    start_coordinator(index, std::move(durable), true,
                      options_.mutation != Mutation::TakeoverWithHalf);
  }
}

void World::answer_hold(int index, const Hold& hold) {
  const bool is_early = options_.mutation == Mutation::AcceptBeforeHeld;
  const auto stop = [this, index, hold] {
    Process& self = processes_[static_cast<size_t>(index)];
    if (!self.is_alive || self.is_out || self.member->quorum().quorum_id >= hold.quorum_id) return;
    self.data->hold(hold.freezes);
    if (hold.freezes && !self.frozen) self.frozen = self.data->progress();
  };
  const auto answer = [this, index, hold] {
    Process& self = processes_[static_cast<size_t>(index)];
    if (!self.is_alive || self.is_out) return;
    self.member->on_held(hold, self.data->progress(), time());
    perform_member(index);
  };
  if (waits_at_gate(index, hold)) {
    schedule(random_.between(0.02, 0.1), index, [this, index, hold] { answer_hold(index, hold); });
    return;
  }
  schedule(is_early ? 0 : random_.between(0, 0.03), index, [stop, answer, is_early] {
    if (!is_early) stop();
    answer();
  });
  if (is_early) schedule(random_.between(0.05, 0.3), index, stop);
}

// What a driver does: the run's own coordinator first, else whoever took over.
void World::look_for_coordinator(int index) {
  Process& process = processes_[static_cast<size_t>(index)];
  const auto can_reach = [&](int host) {
    return coordinators_.count(host) != 0 && !is_blocked(index, host) && !is_blocked(host, index);
  };
  const int connection = process.connection;
  const int host = connection < 0 ? kHome - 1 : connections_.at(connection).host;
  const bool is_silent = now_ > process.heard_at + kSilence;
  const bool is_home_up = can_reach(kHome) && backlog_.count(kHome) == 0;
  const bool has_rival = process.rival_host >= 0 && can_reach(process.rival_host);
  if (host == kHome && !(is_silent && has_rival && !is_home_up)) return;
  if (host != kHome && is_home_up && !random_.chance(0.3)) {
    if (connection >= 0) break_connection(connection, false, false);
    return connect(index, kHome);
  }
  if (!has_rival || host == process.rival_host) {
    if (host == kHome - 1 && can_reach(kHome)) connect(index, kHome);
    return;
  }
  if (connection >= 0) break_connection(connection, false, false);
  connect(index, process.rival_host);
}

// --- control connections -------------------------------------------------------------------------

void World::connect(int index, int host) {
  const int number = connections_made_++;
  connections_[number] = {index, host, coordinators_.at(host).incarnation, true, {}, {},
                          now_,  now_};
  Process& process = processes_[static_cast<size_t>(index)];
  process.connection = number;
  process.member->on_connected(time());
}

// Each end hears of it behind what was sent before; who has ended hears nothing.
void World::break_connection(int number, bool member_ended, bool coordinator_ended) {
  if (number < 0) return;
  Connection& connection = connections_.at(number);
  if (!std::exchange(connection.is_open, false)) return;
  Process& process = processes_[static_cast<size_t>(connection.member)];
  if (process.connection == number) {
    process.connection = -1;
    if (!member_ended) process.member->on_disconnected(time());
  }
  if (coordinator_ended) return;
  // Where nothing passes, the coordinator's own kernel gives up in the end.
  const bool is_seen = !is_blocked(connection.member, connection.host);
  push(number, true, {std::nullopt, member_ended && is_seen});
}

void World::push(int number, bool is_up, Connection::Item item) {
  Connection& connection = connections_.at(number);
  const int from = is_up ? connection.member : connection.host;
  const int to = is_up ? connection.host : connection.member;
  Seconds& at = is_up ? connection.up_at : connection.down_at;
  at = std::max(at, now_ + delay());
  const auto blocked = blocked_.find({from, to});
  if (blocked != blocked_.end() && connection.is_open) at = std::max(at, blocked->second);
  (is_up ? connection.up : connection.down).push_back(std::move(item));
  schedule(at - now_, to, [this, number, is_up] { deliver(number, is_up); });
}

void World::deliver(int number, bool is_up) {
  const auto at = connections_.find(number);
  if (at == connections_.end()) return;
  Connection& connection = at->second;
  std::deque<Connection::Item>& items = is_up ? connection.up : connection.down;
  if (items.empty()) return;
  Connection::Item item = std::move(items.front());
  items.pop_front();
  if (item.message && random_.chance(0.1)) {
    const auto decoded = decode(encode(*item.message));
    if (decoded != item.message) throw Violation("a message changed on the wire");
  }
  const bool is_twice = item.message && !is_calm_ && random_.chance(weather_.duplicate);
  Connection::Item again = item;
  is_up ? tell_coordinator(number, item) : tell_member(connection, item);
  if (is_twice) is_up ? tell_coordinator(number, again) : tell_member(connection, again);
}

void World::tell_coordinator(int number, Connection::Item& item) {
  const Connection& connection = connections_.at(number);
  const auto at = coordinators_.find(connection.host);
  if (at == coordinators_.end() || at->second.incarnation != connection.incarnation) return;
  CoordinatorProcess& process = at->second;
  const MemberId& id = processes_[static_cast<size_t>(connection.member)].id;
  // Who connects anew has given up its older connections.
  const auto [current, is_first] = process.current.try_emplace(connection.member, number);
  if (number < current->second) return;
  if (number > current->second) process.machine->on_disconnected(id, false, "", time());
  current->second = number;
  if (!item.message) {
    const bool has_ended = item.has_ended || options_.mutation == Mutation::DisconnectedIsGone;
    process.machine->on_disconnected(id, has_ended, "its kernel closed the socket", time());
    return perform_coordinator(connection.host);
  }
  if (auto* report = std::get_if<Report>(&*item.message)) {
    const auto right = process.right_commits.find(report->quorum_id);
    if (right != process.right_commits.end()) {
      std::tie(report->first_operation, report->recover_from) = right->second;
    }
    if (options_.mutation == Mutation::FrozenForgotten) {
      report->needs_recovery = false;
      if (report->accepted) report->accepted->freezes = false;
    }
    if (options_.mutation == Mutation::LowerTermAccepted) {
      report->term = std::min(report->term, process.machine->durable().term);
    }
  } else if (auto* accept = std::get_if<Accept>(&*item.message)) {
    if (options_.mutation == Mutation::LowerTermAccepted) {
      accept->term = std::min(accept->term, process.machine->durable().term);
    }
    process.accepts[{accept->term, accept->ballot}][id] = accept->progress;
  }
  process.machine->on_message(id, *item.message, time());
  perform_coordinator(connection.host);
}

void World::tell_member(Connection& connection, Connection::Item& item) {
  const int index = connection.member;
  Process& process = processes_[static_cast<size_t>(index)];
  if (!process.is_alive || process.is_out || !connection.is_open || !item.message) return;
  if (options_.mutation == Mutation::LowerTermAccepted) {
    const uint64_t term = process.member->term();
    if (auto* status = std::get_if<Status>(&*item.message))
      status->term = std::max(status->term, term);
    if (auto* propose = std::get_if<Propose>(&*item.message)) {
      propose->proposal.term = std::max(propose->proposal.term, term);
    }
    if (auto* commit = std::get_if<Commit>(&*item.message))
      commit->term = std::max(commit->term, term);
  }
  if (std::holds_alternative<Status>(*item.message)) process.heard_at = now_;
  const MemberState before = process.member->state();
  process.member->on_message(*item.message, time());
  static constexpr const char* kNames[] = {"Report", "Status", "Propose",  "Accept",
                                           "Commit", "Refuse", "TakenOver"};
  check_transition(index, before, kNames[item.message->index()]);
  perform_member(index);
}

// --- coordinators --------------------------------------------------------------------------------

void World::start_coordinator(int host, Durable disk, bool has_database, bool has_taken_over) {
  CoordinatorProcess process;
  process.host = host;
  process.incarnation = ++incarnations_;
  process.disk = disk;
  log("coordinator at " + std::to_string(host) + " starts");
  if (options_.mutation == Mutation::TermNotRaised && disk.term != 0) disk.term -= 1ull << 32;
  const bool skips = options_.mutation == Mutation::BootGraceSkipped && !disk.quorum.seats.empty();
  const TimePoint now = time();
  CoordinatorOptions options = coordinator_options(options_, has_database, has_taken_over);
  options.first_term = 1 + static_cast<uint64_t>(now_ * 1000);
  process.machine = std::make_unique<Coordinator>(std::move(options), std::move(disk),
                                                  skips ? now - std::chrono::seconds(5) : now);
  for (int step = 10; skips && step > 1; --step) {
    process.machine->on_time(now - std::chrono::milliseconds(500 * step));
  }
  const uint64_t incarnation = process.incarnation;
  coordinators_[host] = std::move(process);
  perform_coordinator(host);
  schedule(kTick, host, [this, host, incarnation] { tick_coordinator(host, incarnation); });
}

void World::stop_coordinator(int host) {
  log("coordinator at " + std::to_string(host) + " ends");
  const auto at = coordinators_.find(host);
  if (at == coordinators_.end()) return;
  if (host == kHome) home_disk_ = at->second.disk;
  coordinators_.erase(at);
  for (auto& [number, connection] : connections_) {
    if (connection.host != host || !connection.is_open) continue;
    const bool is_lost = random_.chance(0.5);
    const int member = connection.member;
    if (is_lost) connection.down.clear();
    schedule(delay() + std::max(0.0, connection.down_at - now_), member,
             [this, number = number] { break_connection(number, false, true); });
  }
}

void World::tick_coordinator(int host, uint64_t incarnation) {
  const auto at = coordinators_.find(host);
  if (at == coordinators_.end() || at->second.incarnation != incarnation) return;
  at->second.machine->on_time(time());
  perform_coordinator(host);
  const auto still = coordinators_.find(host);
  if (still == coordinators_.end() || still->second.incarnation != incarnation) return;
  if (still->second.machine->has_retired()) return stop_coordinator(host);
  if (host != kHome) {  // it tells the others that it is there
    const Process& self = processes_[static_cast<size_t>(host)];
    for (size_t i = 0; i < processes_.size(); ++i) {
      Process& other = processes_[i];
      if (is_blocked(host, static_cast<int>(i)) || self.rival_term <= other.rival_term) continue;
      other.rival_term = self.rival_term;
      other.rival_host = host;
    }
  }
  schedule(kTick * random_.between(0.9, 1.1), host,
           [this, host, incarnation] { tick_coordinator(host, incarnation); });
}

void World::perform_coordinator(int host) {
  const uint64_t incarnation = coordinators_.at(host).incarnation;
  for (CoordinatorAction& action : coordinators_.at(host).machine->take_actions()) {
    CoordinatorProcess& process = coordinators_.at(host);
    const bool crashes = host == kHome && !is_calm_ && random_.chance(weather_.crash_at_step);
    if (crashes) {
      ++result_.crashes;
      stop_coordinator(host);
      schedule(random_.between(0.2, 10), kHome - 1, [this] {
        if (coordinators_.count(kHome) == 0)
          start_coordinator(kHome, home_disk_, home_has_database_);
      });
      return;
    }
    if (auto* persist = std::get_if<Persist>(&action)) {
      if (options_.mutation != Mutation::CommitBeforePersist) {
        process.disk = std::move(persist->durable);
        continue;
      }
      schedule(0.02, host, [this, host, incarnation, durable = persist->durable] {
        const auto at = coordinators_.find(host);
        if (at != coordinators_.end() && at->second.incarnation == incarnation)
          at->second.disk = durable;
      });
    } else if (const auto* send = std::get_if<SendTo>(&action)) {
      say(process, *send);
    } else {
      log("coordinator at " + std::to_string(host) + ": " + std::get<Note>(action).text);
    }
  }
}

void World::say(CoordinatorProcess& process, const SendTo& send) {
  const int index = find(send.to);
  if (index < 0) return;
  Message message = send.message;
  check_said(process, message);
  if (auto* commit = std::get_if<Commit>(&message)) change_commit(process, *commit);
  const int number = processes_[static_cast<size_t>(index)].connection;
  if (number < 0) return;
  const Connection& connection = connections_.at(number);
  if (connection.host != process.host || connection.incarnation != process.incarnation) return;
  push(number, false, {std::move(message), false});
}

void World::change_commit(CoordinatorProcess& process, Commit& commit) {
  const bool is_first_min = options_.mutation == Mutation::FirstOperationMin;
  const bool is_recover_max = options_.mutation == Mutation::RecoverFromMax;
  if (!is_first_min && !is_recover_max) return;
  process.right_commits[commit.quorum_id] = {commit.first_operation, commit.recover_from};
  const auto before = agreed_.find(commit.quorum_id - 1);
  if (before == agreed_.end()) return;
  uint64_t started = UINT64_MAX;
  uint64_t completed = 0;
  for (const auto& [id, progress] : process.accepts[{commit.term, commit.ballot}]) {
    if (!before->second.quorum.contains(id)) continue;
    started = std::min(started, progress.started);
    completed = std::max(completed, progress.completed);
  }
  if (started == UINT64_MAX) return;
  if (is_first_min) commit.first_operation = started;
  if (is_recover_max && commit.recover_from != kNothingToRecover) commit.recover_from = completed;
}

}  // namespace simulator
