// One member of an elastic run: start reading here for what happens when members come and go.
//
// A Run joins at a coordinator's address, takes part in operations whose members may change, and
// leaves. It drives two machines that know nothing of sockets: membership::Member (who is in) and
// recovery::OperationLog (what to do with operations when somebody is not).
//
// Thread safety: everything here may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "collective_calls.h"
#include "collectives/router.h"
#include "membership/member.h"
#include "recovery/operation_log.h"
#include "topology/graphs.h"
#include "transport/endpoint.h"

namespace pccl {

struct RunOptions {
  transport::EndpointOptions endpoint;  // its run is the name in the run's address
  std::string coordinator_host;
  uint16_t coordinator_port = 0;
  // As they stand in the run's address; zero: none, which is for loopback only, unless
  // `endpoint` has no TLS at all.
  transport::Fingerprint coordinator_key{};
  std::optional<transport::Token> token;
  double timeout_seconds = 1800;  // of every operation
  std::string algorithm = "auto";
  bool deterministic = false;  // see PlannerOptions
  bool probes = false;         // likewise
  double takeover_seconds = 10;
  // As topology::canonical_graph() spells it; must fit any number of members. "": every pair talks.
  std::string graph;
};

struct RunMember {
  transport::MemberId member_id{};
  std::string address;  // "10.0.0.7:4123"
  uint64_t joined_at = 0;
};

class Run final : public CollectiveCalls {
 public:
  // Begins to join. Throws ConnectError (port in use, the coordinator's name does not resolve) and
  // std::invalid_argument (it has no key and is on another host; a graph that does not fit any
  // number of members).
  explicit Run(const RunOptions& options);
  ~Run() override;
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  // Whether this member is in by then; nothing can be called before. Throws what ended the run.
  bool wait_until_joined(TimePoint until);
  // Of a quorum with at least so many members. `until` as above.
  bool wait_for_members(int32_t count, TimePoint until);
  // What keeps it from joining or from changing the quorum: the last trouble with the coordinator.
  std::string trouble() const;

  Place here() const override;
  // Of the quorum in force, whatever calls mean.
  Place in_force() const { return seen().place; }
  // From now on calls mean the ranks of the quorum that is in force now, whatever comes: where it
  // has changed by then, they end in MemberLost on every member. unpin(): of the one in force.
  Place pin();
  void unpin();
  std::vector<RunMember> members() const;  // by rank
  // The pairs of ranks that may talk in the quorum in force; null: all.
  std::optional<topology::Graph> graph() const { return seen().graph; }
  transport::MemberId member_id() const { return endpoint_.address().member_id; }
  std::string describe_address() const { return endpoint_.address().describe(); }
  transport::Statistics statistics() { return endpoint_.statistics(); }
  // Operations that were finished after members were lost, and microseconds that this took.
  std::pair<uint64_t, uint64_t> recoveries() const;
  std::string flight_record() { return endpoint_.flight_record(); }
  auto flight_events(uint64_t seen) { return endpoint_.flight_events(seen); }
  std::shared_ptr<CompletionQueue> completions() { return completions_; }
  double round_trip_seconds() const;  // to the coordinator; 0: unknown
  // Empty while it is usable; else why it is not.
  std::string error() const;
  // Name of the algorithm that a call takes in the quorum in force.
  std::string plan(transport::Collective collective, uint64_t count, DataType dtype);
  // Between hosts, by rank, as the next large call of the quorum in force is planned. Empty: none
  // is known.
  topology::LinkTable links();

  // --- newcomers and the shared state ---
  // From now on newcomers wait until admit() lets them in; before, they enter between any two
  // operations.
  void gate_newcomers();
  // The quorum that newcomers wait for; 0: none. Other members may hear of it later or earlier.
  uint64_t pending_quorum_id() const { return seen().pending_quorum_id; }
  // Lets them in. Every member of the quorum must do so before its next operation.
  void admit(uint64_t quorum_id);
  // Waits until the quorum in force is another than `quorum_id`.
  bool wait_for_change(uint64_t quorum_id, TimePoint until);
  // What this member holds of the shared state; reported to the coordinator.
  void set_revision(uint64_t revision, const membership::Digest& digest);
  // On the coordinator's disk, as it last said; revision 0: none is.
  struct Revision {
    uint64_t number = 0;
    membership::Digest digest{};
  };
  Revision committed_revision() const { return seen().committed_revision; }
  // Messages about the shared state, which those of send() and recv() never meet: to or from (-1:
  // anybody) a rank of quorum `quorum_id`; in another quorum they end in MemberLost.
  WorkPtr send_state(uint64_t quorum_id, int32_t destination, uint32_t tag, Block message,
                     CallOptions options);
  WorkPtr receive_state(uint64_t quorum_id, int32_t source, uint32_t tag, Block message,
                        CallOptions options);

  // Breaks the run's operations, here and at the other members.
  void abort(const std::string& reason);
  // Says goodbye, so that the others need not find out. Idempotent.
  void leave();

  double timeout_seconds;

 private:
  class Driver;
  // What other threads see of the quorum in force.
  struct Seen {
    Place place;
    std::vector<RunMember> members;
    std::shared_ptr<PlanSource> plans;
    std::optional<topology::Graph> graph;
    bool is_joined = false;
    Error ended;
    std::string trouble;
    double round_trip_seconds = 0;
    uint64_t pending_quorum_id = 0;
    Revision committed_revision;
    std::optional<Place> pinned;
  };

  WorkPtr start(const Place& place, transport::Signature signature, std::vector<BlockMemory> blocks,
                std::span<const uint64_t> block_counts, double factor,
                CallOptions options) override;
  WorkPtr start_message(const Place& place, const MessageCall& call, CallOptions options) override;
  WorkPtr make_work(const char* name, CallOptions& options);
  void submit(std::function<void(recovery::OperationLog&)> task, const WorkPtr& work,
              bool is_urgent);
  void run_on_driver(const std::function<void()>& task);
  void hand_over(TimePoint until);
  Seen seen() const;
  // Of the quorum that `place` means, while it is in force; null: calls for another one end on
  // every member.
  std::shared_ptr<PlanSource> plans_of(const Place& place) const;
  bool wait_for(const std::function<bool(const Seen&)>& is_there, TimePoint until);

  std::shared_ptr<CompletionQueue> completions_ = std::make_shared<CompletionQueue>();
  std::unique_ptr<Driver> driver_;
  transport::Endpoint endpoint_;  // after driver_: frames stop before what they are for goes
  mutable std::mutex mutex_;
  // Guarded by mutex_.
  Seen seen_;
  bool is_closed_ = false;
  // Set whenever seen_ changed, for those who wait on the engine.
  std::atomic<bool> has_changed_{false};
};

}  // namespace pccl
