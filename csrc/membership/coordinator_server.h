// A coordinator as a process sees it: a listening socket, a database, and for each run one state
// machine (membership/coordinator.h) that is fed with messages, disconnects and time.
//
// Members hold one connection to it and send messages as frames of type Membership. It is not in
// the data path: while it is away, operations go on.
//
// Thread safety: everything public may be called from any thread, close() from one at a time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "membership/coordinator.h"
#include "membership/database.h"
#include "membership/key_book.h"
#include "membership/link_rates.h"
#include "transport/endpoint.h"

namespace pccl::membership {

// Runs that are looked after at a time; one that nobody is connected to gives way.
inline constexpr size_t kRunsMax = 64;
// Runs in one database. A stranger can make a run by naming it, so there is a limit.
inline constexpr size_t kStoredRunsMax = 4096;
// What status() tells of the past of one run, and what next_events() keeps for a slow reader.
inline constexpr size_t kEventsMax = 256;
// Links that status() tells of, the fastest ones: each of 64 members to each other one.
inline constexpr size_t kLinksShownMax = 4096;

struct CoordinatorServerOptions {
  std::string bind_host;  // "": every interface
  uint16_t port = 0;      // 0: any
  std::vector<std::string> advertise_hosts;
  std::string database;  // path of the file
  // Never: no keys and no tokens, whoever reaches it is in. Remote: who calls from this host by
  // loopback may do so plainly, and then needs neither.
  transport::TlsUse tls = transport::TlsUse::Remote;
  std::string key_file;  // made if it is not there. "": a new key each time
  // Name -> smallest world size to start and go on with. Empty: any run that members name, from one
  // member on.
  std::map<std::string, int32_t> runs;
  double heartbeat_seconds = 0.5;
  double silence_seconds = 10;
  double link_grace_seconds = 10;
  double takeover_seconds = 10;
  // From the start on: no run gets its first quorum before, where the database knows of none at
  // all and so may be one that was lost.
  double listen_seconds = 0;
  // Of a member that takes over a run: there is no database, and no other run.
  struct TakenOverRun {
    std::string run;
    Durable durable;
    int32_t world_size_min = 1;
  };
  std::optional<TakenOverRun> taken_over;
};

struct Event {
  double unix_seconds = 0;
  std::string run;  // "": the server itself
  std::string text;
};

struct MemberStatus {
  std::string member_id;  // 8 hex digits
  std::string address;    // "10.0.0.7:4123"
  int32_t rank = -1;      // -1: not in the quorum
  uint64_t joined_at = 0;
  Progress progress;
  uint64_t revision = 0;
  double operations_per_second = 0;  // over the last seconds
  double seconds_since_heard = -1;   // -1: never
  double round_trip_seconds = 0;     // to the coordinator, as the member measures it; 0: unknown
  bool is_connected = false;
  Pace pace;
  std::string key;  // fingerprint; "": it calls without one
  Figures figures;  // without its links
};

struct LinkStatus {
  std::string from;  // 8 hex digits
  std::string to;
  LinkRate rate;
};

struct RunStatus {
  std::string name;
  uint64_t term = 0;
  uint64_t quorum_id = 0;
  uint64_t first_operation = 0;  // of the quorum
  uint64_t revision = 0;
  int32_t world_size_min = 1;
  std::vector<MemberStatus> members;  // by rank, then who waits to get in
  std::vector<LinkStatus> links;      // that have carried anything
  topology::LinkTable known;          // what quorums plan by, by rank
  std::vector<Event> events;          // oldest first
};

struct ServerStatus {
  std::string address;   // "10.0.0.7:29400"
  std::string database;  // path
  std::string failure;   // why it does nothing any more; "": it works
  std::vector<RunStatus> runs;
  uint64_t messages = 0;
  uint64_t malformed_messages = 0;   // each ended its connection
  uint64_t refused_members = 0;      // of another run, or too many
  uint64_t refused_connections = 0;  // by the handshake
  uint64_t refused_keys = 0;         // as in transport::Statistics
  uint64_t refused_plain = 0;
  uint64_t refused_rate = 0;
  uint64_t refused_late = 0;
  uint64_t writes = 0;  // to the database
  double write_seconds_max = 0;
};

class CoordinatorServer final : private transport::FrameSink {
 public:
  // Opens the database, then listens. Throws DatabaseError, ConnectError (port in use, no such
  // interface) and std::invalid_argument (a key file that is none, or is not its owner's alone).
  explicit CoordinatorServer(CoordinatorServerOptions options);
  ~CoordinatorServer() override;
  CoordinatorServer(const CoordinatorServer&) = delete;
  CoordinatorServer& operator=(const CoordinatorServer&) = delete;

  const transport::MemberAddress& address() const { return endpoint_.address(); }
  ServerStatus status();
  // What has happened since the last call, waiting for it until `deadline`.
  std::vector<Event> next_events(TimePoint deadline);
  // The members of the run's last quorum are gone for good, says who looks after it: from now on
  // nobody waits for them, and the next that come begin a new quorum. Returns why not; "": done.
  std::string abandon(const std::string& run);
  // Says goodbye to the members, which go on without it. Idempotent.
  void close();
  bool is_closed() const { return is_stopping_.load(); }
  // It had taken over, and a coordinator with a higher term is at work: close it.
  bool has_retired() const { return has_retired_.load(); }

 private:
  // What a member said last.
  struct Heard {
    transport::Connection* connection = nullptr;  // null: not connected
    std::string address;
    Progress progress;
    uint64_t revision = 0;
    double round_trip_seconds = 0;
    std::string key;
    TimePoint at;
    TimePoint window_begin;
    uint64_t window_completed = 0;
    double operations_per_second = 0;
    Figures figures;
  };
  struct Run {
    Run(CoordinatorOptions run_options, const Durable& durable, TimePoint now)
        : options(run_options), machine(std::move(run_options), durable, now) {}
    CoordinatorOptions options;
    Coordinator machine;
    std::map<MemberId, Heard> members;
    LinkRates rates;
    uint64_t rates_quorum_id = 0;
    std::deque<Event> events;
  };

  // FrameSink; driver only, as everything below.
  transport::Placement place(transport::Connection& from,
                             const transport::FrameHeader& header) override;
  void on_frame(transport::Connection& from, const transport::FrameHeader& header,
                transport::Payload payload) override;
  void on_lost(transport::Connection& connection, const Error& error) override;
  TimePoint on_time(TimePoint now) override;

  void on_report(transport::Connection& from, const Report& report, TimePoint now);
  Run* find_or_make(transport::Connection& from, TimePoint now);
  Run& make_run(const std::string& name, const Durable& durable, TimePoint now);
  void run_on_driver(const std::function<void()>& task);  // any thread
  bool make_room_for_run();
  void perform_actions(Run& run);
  void persist(Run& run, const Durable& durable);
  void send(transport::Connection& to, const Message& message);
  void refuse(transport::Connection& to, RefuseKind kind, const std::string& reason);
  void hang_up(transport::Connection& from, const std::string& fault);
  // coordinator_keys.cpp: who is let in, and who is put out.
  transport::EndpointOptions endpoint_options();
  std::string judge_caller(const transport::Hello& hello, const transport::ChannelBinding& channel);
  std::string judge_seat(const transport::Hello& hello) const;
  void note_refused(const std::string& caller, const std::string& reason);
  TimePoint put_out_barred(TimePoint now);
  void add_event(Run* run, std::string text);
  void fail(const std::string& reason);
  bool is_at_work() const { return counters_.failure.empty() && !is_stopping_.load(); }
  ServerStatus collect_status();
  void watch_pace(Run& run, const Report& report, TimePoint now);
  static MemberStatus describe_member(const Run& run, const MemberId& member_id, const Seat* seat,
                                      TimePoint now);
  static std::vector<LinkStatus> describe_links(const Run& run);
  static RunStatus describe(const std::string& name, const Run& run, TimePoint now);

  const CoordinatorServerOptions options_;
  std::optional<Database> database_;  // until close(); none where it has taken over
  std::optional<KeyBook> keys_;       // likewise; never where tls is Never
  TimePoint first_quorum_at_;
  uint64_t keys_version_ = 0;
  TimePoint look_at_keys_at_;
  TimePoint note_refused_at_;
  uint64_t refused_unsaid_ = 0;  // since the last event about one
  std::map<std::string, std::unique_ptr<Run>> runs_;
  std::vector<transport::Connection*> ended_;  // to be forgotten when no callback is on the stack
  ServerStatus counters_;                      // all but `runs`
  // Set by close(): what happens to connections from there on is our own doing, and no reason to
  // decide anything.
  std::atomic<bool> is_stopping_{false};
  std::atomic<bool> has_retired_{false};

  std::mutex events_mutex_;
  std::condition_variable events_changed_;
  // Guarded by events_mutex_.
  std::deque<Event> events_;
  bool is_closed_ = false;

  transport::Endpoint endpoint_;  // last: it calls the others until it is closed
};

}  // namespace pccl::membership
