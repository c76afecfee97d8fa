#include "simulator_world.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <utility>

namespace simulator {

std::string_view mutation_name(Mutation mutation) {
  static constexpr std::string_view kNames[] = {
      "none",
      "commit before persist",
      "term not raised at restart",
      "takeover with half",
      "disconnected counts as gone",
      "boot grace skipped",
      "own pause held against others",
      "recover_from = max",
      "first_operation = min",
      "lower term accepted",
      "accept before operations stand still",
      "freeze ignored",
      "old quorum's frames accepted",
      "result dropped before all have it",
      "input overwritten by a partial sum",
      "retry counts a contribution twice",
      "joined_at ignored",
      "a freezing hold waits for the newcomers' gate",
      "frozen operations forgotten",
  };
  return kNames[static_cast<size_t>(mutation)];
}

uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EB;
  return value ^ (value >> 31);
}

size_t number_of(const MemberId& member) {
  uint64_t number = 0;
  std::memcpy(&number, member.data(), sizeof(number));
  return number - 1;
}

uint64_t contribution(const MemberId& member, uint64_t operation, uint64_t element) {
  uint64_t low = 0;
  std::memcpy(&low, member.data(), sizeof(low));
  return mix(low ^ mix(operation ^ mix(element)));
}

uint64_t element_count(uint64_t operation) {
  constexpr uint64_t kCounts[] = {0, 1, 7, 8, 16, 13};
  return kCounts[mix(operation ^ 77) % 6];
}

Result simulate(const Options& options) { return World(options).run(); }

World::World(const Options& options)
    : options_(options), random_(options.seed * 0x9E3779B97F4A7C15 + 12345) {}

Result World::run() {
  draw_weather();
  try {
    start_coordinator(kHome, {}, true);
    for (int i = 0; i < options_.members; ++i) start_member();
    next_fault();
    schedule(options_.fault_seconds, kHome - 1, [this] { calm_down(); });
    const Seconds end = options_.fault_seconds + options_.calm_seconds;
    while (!queue_.empty() && queue_.top().at <= end) {
      const Event event = queue_.top();
      queue_.pop();
      execute(event);
    }
    check_progress();
  } catch (const Violation& violation) {
    result_.violation = "seed " + std::to_string(options_.seed) + ", " +
                        std::to_string(options_.members) + " members, at " + std::to_string(now_) +
                        " s: " + violation.what();
  } catch (const std::exception& error) {
    result_.violation = "seed " + std::to_string(options_.seed) + ", " +
                        std::to_string(options_.members) + " members, at " + std::to_string(now_) +
                        " s: exception " + error.what();
  }
  result_.events = events_;
  result_.quorums = agreed_.size();
  return std::move(result_);
}

// --- time ----------------------------------------------------------------------------------------

void World::schedule(Seconds delay, int process, Task task) {
  size_t slot = tasks_.size();
  if (free_slots_.empty()) {
    tasks_.emplace_back();
  } else {
    slot = free_slots_.back();
    free_slots_.pop_back();
  }
  tasks_[slot] = {process, std::move(task)};
  queue_.push({now_ + delay, ++events_, slot});
}

void World::execute(const Event& event) {
  now_ = std::max(now_, event.at);
  note(event.number ^ mix(static_cast<uint64_t>(event.at * 1e6)));
  auto [process, task] = std::move(tasks_[event.slot]);
  free_slots_.push_back(event.slot);
  const auto paused = backlog_.empty() ? backlog_.end() : backlog_.find(process);
  if (paused != backlog_.end()) {
    paused->second.push_back(std::move(task));
  } else {
    task();
  }
}

void World::note(uint64_t what) { result_.hash = mix(result_.hash ^ what); }

void World::log(const std::string& text) {
  if (!options_.keeps_log) return;
  char at[32];
  std::snprintf(at, sizeof(at), "%10.4f ", now_);
  result_.log.push_back(at + text);
}

// SIGSTOP, and what the process finds when it goes on: everything at once.
void World::pause(int process, Seconds seconds) {
  if (!backlog_.try_emplace(process).second) return;
  log("process " + std::to_string(process) + " stands still for " + std::to_string(seconds));
  paused_since_[process] = now_;
  if (process >= 0) processes_[static_cast<size_t>(process)].touched_at = now_ + seconds;
  schedule(seconds, kHome - 1, [this, process] { resume(process); });
}

void World::resume(int process) {
  const auto at = backlog_.find(process);
  if (at == backlog_.end()) return;
  std::deque<Task> tasks = std::move(at->second);
  backlog_.erase(at);
  log("process " + std::to_string(process) + " goes on");
  const auto coordinator = coordinators_.find(process);
  if (options_.mutation == Mutation::PauseHeldAgainst && coordinator != coordinators_.end()) {
    for (Seconds step = paused_since_[process]; step < now_; step += 0.5) {
      const auto then = start_ + std::chrono::microseconds(static_cast<int64_t>(step * 1e6));
      coordinator->second.machine->on_time(then);
    }
    coordinator->second.machine->on_time(time());
  }
  for (Task& task : tasks) task();
}

// --- network -------------------------------------------------------------------------------------

int World::find(const MemberId& id) const {
  const size_t number = number_of(id);
  return number < processes_.size() && processes_[number].id == id ? static_cast<int>(number) : -1;
}

bool World::is_blocked(int from, int to) const {
  const auto at = blocked_.find({from, to});
  return at != blocked_.end() && at->second > now_;
}

// Nothing passes in this direction for so long. It is kept by the sender's kernel; sockets that
// stand still for too long break.
void World::block(int from, int to, Seconds seconds) {
  if (from == to) return;
  Seconds& until = blocked_[{from, to}];
  until = std::max(until, now_ + seconds);
  for (const int end : {from, to}) {
    if (end >= 0) {
      Process& process = processes_[static_cast<size_t>(end)];
      process.touched_at = std::max(process.touched_at, until);
    }
  }
  schedule(random_.between(0.5, 4), kHome - 1, [this, from, to] { on_blocked(from, to); });
}

void World::on_blocked(int from, int to) {
  if (!is_blocked(from, to)) return;
  for (const auto& [a, b] : {std::pair(from, to), std::pair(to, from)}) {
    if (a < 0) continue;
    Process& process = processes_[static_cast<size_t>(a)];
    const int index = process.connection;
    if (index >= 0 && connections_.at(index).host == b) break_connection(index, false, false);
    if (b < 0 || !process.lost_links.insert(b).second) continue;
    schedule(0, a, [this, a = a, b = b] {
      Process& self = processes_[static_cast<size_t>(a)];
      const Process& other = processes_[static_cast<size_t>(b)];
      if (!self.is_alive || self.is_out) return;
      self.member->on_link_lost(other.id, false, "no answer", time());
      perform_member(a);
    });
    const Seconds until = std::max(blocked_[{a, b}], blocked_[{b, a}]);
    schedule(until - now_ + 0.01, a, [this, a = a, b = b] {
      Process& self = processes_[static_cast<size_t>(a)];
      const Process& other = processes_[static_cast<size_t>(b)];
      self.lost_links.erase(b);
      if (!self.is_alive || self.is_out) return;
      if (is_blocked(a, b) || is_blocked(b, a)) return on_blocked(a, b);
      if (!other.is_alive) return;
      self.member->on_link_back(other.id, time());
      perform_member(a);
    });
  }
}

// Frames between two members arrive in their order; what a connection holds back comes later.
void World::send_frame(int from, const MemberId& to_id, const std::shared_ptr<const Frame>& frame) {
  const int to = find(to_id);
  if (to < 0 || !processes_[static_cast<size_t>(to)].is_alive) return;
  auto& frames_at = processes_[static_cast<size_t>(from)].frames_at;
  if (frames_at.size() <= static_cast<size_t>(to)) frames_at.resize(processes_.size());
  Seconds& at = frames_at[static_cast<size_t>(to)];
  at = std::max(at, now_ + delay());
  const auto blocked = blocked_.empty() ? blocked_.end() : blocked_.find({from, to});
  if (blocked != blocked_.end()) at = std::max(at, blocked->second);
  schedule(at - now_, to, [this, from, to, frame] {
    Process& process = processes_[static_cast<size_t>(to)];
    if (!process.is_alive || process.is_out) return;
    process.data->receive(processes_[static_cast<size_t>(from)].id, frame);
    process.member->set_progress(process.data->progress());
  });
}

}  // namespace simulator
