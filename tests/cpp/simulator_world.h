// The world of one run: processes, the network between them, the clock, and what must never happen.
#pragma once

#include <chrono>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <queue>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "membership/coordinator.h"
#include "membership/member.h"
#include "simulator.h"
#include "simulator_data.h"

namespace simulator {

using namespace pccl::membership;
using pccl::TimePoint;

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(mix(seed)) {}
  uint64_t next() { return mix(state_++ * 0xD1342543DE82EF95 + 1); }
  uint64_t below(uint64_t bound) { return bound == 0 ? 0 : next() % bound; }
  double real() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }
  bool chance(double probability) { return real() < probability; }
  double between(double low, double high) { return low + (high - low) * real(); }

 private:
  uint64_t state_;
};

using Seconds = double;
inline constexpr int kHome = -1;  // the machine of the run's own coordinator

// How often what happens, per second of the first phase; drawn from the seed.
struct Weather {
  double kill = 0, kill_at_step = 0, crash = 0, crash_at_step = 0, disk_loss = 0, pause = 0;
  double clog = 0, partition = 0, swizzle = 0, one_way = 0, join = 0, leave = 0;
  double duplicate = 0;
  double delay_max = 0.01;
  bool spares_majority = true;  // of the last quorum: so that progress can be demanded
};

// One run of a coordinator's process.
struct CoordinatorProcess {
  std::unique_ptr<Coordinator> machine;
  int host = kHome;  // or the member that took over
  uint64_t incarnation = 0;
  Durable disk;
  std::map<int, int> current;  // the last connection of each member that it has heard of
  // FirstOperationMin, RecoverFromMax: what was accepted, and what should have been said.
  std::map<std::pair<uint64_t, uint64_t>, std::map<MemberId, Progress>> accepts;
  std::map<uint64_t, std::pair<uint64_t, uint64_t>> right_commits;
};

// A control connection: two directions, each in order.
struct Connection {
  struct Item {
    std::optional<Message> message;  // none: it is closed here
    bool has_ended = false;
  };
  int member = 0;
  int host = kHome;
  uint64_t incarnation = 0;
  bool is_open = true;
  std::deque<Item> up, down;
  Seconds up_at = 0, down_at = 0;
};

struct Process {
  MemberId id{};
  std::unique_ptr<Member> member;
  std::unique_ptr<DataPlane> data;
  bool is_alive = true;
  bool is_out = false;
  bool wants_to_leave = false;
  bool is_leaving = false;
  int connection = -1;
  Seconds heard_at = 0;
  int rival_host = kHome;  // who took over, as far as it was told
  uint64_t rival_term = 0;
  Seconds touched_at = -1000;  // by a fault
  uint64_t window = 1;
  uint64_t completed_when_calm = 0;
  std::set<int> lost_links;
  std::optional<Progress> frozen;  // what it has told since it stands still
  std::vector<Seconds> frames_at;  // by receiver: when the last frame that was sent arrives
};

class World {
 public:
  explicit World(const Options& options);
  Result run();

 private:
  using Task = std::function<void()>;
  // Small, because a thousand members have a million of them under way.
  struct Event {
    Seconds at = 0;
    uint64_t number = 0;
    size_t slot = 0;  // in tasks_
    bool operator<(const Event& other) const {
      return at != other.at ? at > other.at : number > other.number;
    }
  };

  // simulator_world.cpp: time and network.
  void schedule(Seconds delay, int process, Task task);
  void execute(const Event& event);
  void log(const std::string& text);
  void note(uint64_t what);
  TimePoint time() const {
    return start_ + std::chrono::microseconds(static_cast<int64_t>(now_ * 1e6));
  }
  bool is_blocked(int from, int to) const;
  void block(int from, int to, Seconds seconds);
  void on_blocked(int from, int to);
  void pause(int process, Seconds seconds);
  void resume(int process);
  Seconds delay() { return random_.between(0.0001, weather_.delay_max); }
  int find(const MemberId& id) const;
  void send_frame(int from, const MemberId& to, const std::shared_ptr<const Frame>& frame);

  // simulator_control.cpp: the drivers of the machines, and the connections between them.
  int start_member();
  void tick_member(int index);
  void work(int index);
  void perform_member(int index);
  void perform(int index, MemberAction& action);
  Figures figures(int index) const;
  bool waits_at_gate(int index, const Hold& hold) const;
  void answer_hold(int index, const Hold& hold);
  void look_for_coordinator(int index);
  void connect(int index, int host);
  void break_connection(int number, bool member_ended, bool coordinator_ended);
  void push(int number, bool is_up, Connection::Item item);
  void deliver(int number, bool is_up);
  void tell_coordinator(int number, Connection::Item& item);
  void tell_member(Connection& connection, Connection::Item& item);
  void start_coordinator(int host, Durable disk, bool has_database, bool has_taken_over = false);
  void stop_coordinator(int host);
  void tick_coordinator(int host, uint64_t incarnation);
  void perform_coordinator(int host);
  void say(CoordinatorProcess& process, const SendTo& send);
  void change_commit(CoordinatorProcess& process, Commit& commit);
  void leave(int index);

  // simulator_faults.cpp: what goes wrong, and what must not.
  void draw_weather();
  void next_fault();
  void fault();
  bool may_kill(int index) const;
  void kill(int index);
  void partition();
  void swizzle();
  void calm_down();
  void check_said(const CoordinatorProcess& process, const Message& message);
  void check_enter(int index, const Enter& enter);
  void check_complete(int index, uint64_t operation, const std::vector<uint64_t>& values,
                      const FinalMap& finals, bool was_recovered);
  const std::vector<uint64_t>& right_sums(uint64_t operation, uint64_t quorum_id);
  void check_transition(int index, MemberState before, const std::string& event);
  static bool is_left(const Process& process);
  bool has_most_left(const Quorum& quorum) const;
  bool can_be_known(const Quorum& quorum, const Durable& disk) const;
  bool has_most_left_of_doubtful(uint64_t last_quorum) const;
  static std::vector<Proposal> accepted_by(const Process& process);
  bool may_be_agreed(const Proposal& proposal) const;
  void check_progress();
  const Quorum* last_quorum() const;

  Options options_;
  Random random_;
  Weather weather_;
  TimePoint start_ = TimePoint(std::chrono::hours(1));
  Seconds now_ = 0;
  uint64_t events_ = 0;
  std::priority_queue<Event> queue_;
  std::vector<std::pair<int, Task>> tasks_;  // with the process that does it
  std::vector<size_t> free_slots_;
  std::map<int, std::deque<Task>> backlog_;  // of processes that are paused
  std::map<int, Seconds> paused_since_;
  std::map<std::pair<int, int>, Seconds> blocked_;
  bool is_calm_ = false;

  std::vector<Process> processes_;
  std::map<int, CoordinatorProcess> coordinators_;
  std::map<int, Connection> connections_;
  int connections_made_ = 0;
  uint64_t incarnations_ = 0;
  Durable home_disk_;
  bool home_has_database_ = true;

  struct Agreed {
    Quorum quorum;
    uint64_t first_operation = 0;
    uint64_t recover_from = 0;
  };
  std::map<uint64_t, Agreed> agreed_;
  struct Outcome {
    uint64_t values = 0;  // hash
    std::vector<FinalMap::Range> ranges;
    bool operator==(const Outcome&) const = default;
  };
  // Of an operation: what it ended with, and where.
  std::map<uint64_t, std::vector<std::pair<Outcome, std::vector<int>>>> outcomes_;
  // The right sums of an operation's elements over a quorum's members.
  std::map<std::pair<uint64_t, uint64_t>, std::vector<uint64_t>> sums_;
  Result result_;
};

}  // namespace simulator
