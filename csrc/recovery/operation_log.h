// The operations of a run, numbered, over all the quorums that it goes through. Driver only.
//
// Every quorum is one Group; the log starts each operation in the group of the quorum in force.
// When members are lost it takes down what is final here, and runs the rest again in the next
// quorum's group (recovery/plan.h). A result is kept until everybody is known to have it, because a
// survivor may need it: small ones as a copy, so that the caller goes on at once; the caller of a
// larger one waits for the others' word (Done), which takes one message more.
//
// Who is in is decided elsewhere (membership/): hold() and enter() are told.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "collectives/group.h"
#include "collectives/plan_source.h"
#include "collectives/router.h"
#include "collectives/work.h"
#include "recovery/final_map.h"
#include "recovery/plan.h"
#include "topology/graphs.h"

namespace pccl::recovery {

using transport::MemberId;

struct RunQuorum {
  uint64_t quorum_id = 0;
  int32_t rank = 0;
  std::vector<MemberId> members;    // by rank
  std::vector<uint64_t> joined_at;  // by rank: the first operation that it takes part in
  // By rank; null at the own one, and where the graph has no edge.
  std::vector<transport::Connection*> connections;
  topology::Links links;
  std::optional<topology::Graph> graph;  // the pairs that may talk; null: all
  uint32_t segment_bytes = 0;
  std::shared_ptr<PlanSource> plans;
};

struct RunCall {
  transport::Signature signature;
  std::vector<BlockMemory> blocks;
  std::vector<uint64_t> block_counts;  // for the planner, where blocks differ
  double factor = 1;
  uint64_t quorum_id = 0;             // whose ranks the caller meant; 0: any
  bool is_uniform = false;            // one contributor set for the whole tensor
  std::optional<uint64_t> nonfinite;  // the element of the input for which it is refused
};

class OperationLog final : public GroupObserver {
 public:
  // The floor above. Calls come from inside the log: they must not call back into it.
  struct Host {
    std::function<void(const MemberId&, const Error&)> on_link_lost;
    std::function<void(const Error&)> on_broken;
  };
  struct Progress {
    uint64_t started = 0;
    uint64_t completed = 0;  // all below are complete here
  };

  OperationLog(transport::Endpoint& endpoint, Router& router, std::string run, MemberId own,
               Host host);

  // Ends through its work. Operations are numbered in the order of these calls.
  void start(RunCall call, std::shared_ptr<Work> work);
  // A message to or from a rank of that quorum. It ends with that quorum, and begins in no other.
  void start_send(uint64_t quorum_id, int32_t destination, uint32_t tag, MessageMemory memory,
                  const std::shared_ptr<Work>& work);
  void start_receive(uint64_t quorum_id, int32_t source, uint32_t tag, MessageMemory memory,
                     const std::shared_ptr<Work>& work);
  // Starts nothing more until enter(); if `freezes`, what runs stands still for good.
  Progress hold(bool freezes);
  // See docs/decisions/0005-membership.md. Requires: hold() came before, unless it is the first.
  void enter(RunQuorum quorum, uint64_t first_operation, uint64_t recover_from, bool drops);
  Progress progress() const;
  // Ends every operation with `error`, here and at the others.
  void fail(const Error& error);
  // Here only.
  void close(const Error& error);
  const Error& broken() const { return broken_; }
  // Bytes of results that are kept for others.
  uint64_t kept_bytes() const { return kept_bytes_; }
  // Whether somebody may still need a result that is here. Who leaves then may take it along, and
  // the others end with another one.
  bool owes_results() const;
  // Tells the others at once what is complete here.
  void announce();
  TimePoint on_time(TimePoint now);
  // For how long an operation of the caller's was under way so far.
  uint64_t operations_us(TimePoint now) const;
  // Operations that were finished after members were lost, and how long that took, from the moment
  // when they stood still. Any thread.
  uint64_t recovered_operations() const { return recovered_operations_.load(); }
  uint64_t recovery_us() const { return recovery_us_.load(); }
  // What operations wait for that run in no group.
  void note_running(FlightRecorder& recorder) const;

  void on_elastic_frame(Group& group, const transport::FrameHeader& header,
                        transport::Payload payload) override;
  void on_member_lost(Group& group, int32_t rank, const Error& error) override;
  void on_broken(Group& group, const Error& error) override;

 private:
  enum class State : uint8_t {
    Waiting,     // the run is held
    Running,     // in the group of a quorum
    Collecting,  // members were lost: waits for what the other survivors hold
    Complete,    // here; kept for the others
  };
  struct Record {
    uint64_t number = 0;
    RunCall call;
    std::shared_ptr<Work> work;  // null: the caller has its result
    TimePoint deadline;
    State state = State::Waiting;
    uint64_t quorum_id = 0;  // in which it runs or is recovered
    FinalMap finals;
    FinalMap origin;                    // Running a recovery: of what others had final
    std::map<MemberId, FinalMap> told;  // Collecting, Complete: by the other survivors
    bool is_recovering = false;         // told is being gathered in quorum_id
    bool is_helping = false;            // Complete, and being sent to others from here
    std::vector<std::byte> copy;        // of the result, once the caller has its own
    std::vector<std::byte> input;       // is_uniform, in place: the input
    std::vector<std::byte> scratch;     // barrier
  };
  // A quorum and the operations from `first` on, until the next one's.
  struct Layer {
    RunQuorum quorum;
    Group* group = nullptr;
    uint64_t first = 0;
    // On a graph: those that this one passes on to what everybody must hear, over a tree of edges.
    std::vector<int32_t> beside;
    bool is_frozen = false;  // for good
  };

  // Which operations a survivor can complete although members are lost: the others end everywhere
  // or nowhere.
  static bool is_recoverable(const Record& record);
  static uint64_t element_count(const Record& record);
  Layer& layer_of(uint64_t number);
  // Those of `quorum` that take part in operation `number`, by rank.
  static std::vector<int32_t> participants(const RunQuorum& quorum, uint64_t number);
  // The quorum that operation `number` belonged to before anybody was lost; null: forgotten.
  const RunQuorum* home_of(uint64_t number) const;
  const std::byte* input_of(const Record& record) const;
  std::byte* result_of(Record& record) const;

  void run_message(uint64_t quorum_id, const std::shared_ptr<Work>& work,
                   std::function<void(Group&)> start);
  void launch(Record& record);
  bool is_stale(const Record& record, const Layer& layer) const;
  // Why one member ends an operation on all.
  struct Refusal {
    enum class Reason : uint8_t { Stale = 0, NonFinite = 1 };
    Reason reason = Reason::Stale;  // its caller meant another quorum, or
    uint64_t element = 0;           // of its contribution is no number
    MemberId member{};              // who refused it
  };
  void refuse(Record& record, const Refusal& refusal);
  void send_refusal(Layer& layer, uint64_t number, const Refusal& refusal);
  void on_refusal(const MemberId& from, uint64_t number, std::span<const std::byte> bytes);
  void end_refused(uint64_t number, const Refusal& refusal);
  void launch_waiting();
  CollectiveCall call_of(Record& record, const Layer& layer);
  void on_attempt_end(uint64_t number, CollectiveOperation& operation, const Error& error);
  void take_finals(Record& record, const CollectiveOperation& operation, const Layer& layer);
  void complete(Record& record);
  bool can_keep_copy(const Record& record) const;
  void settle(Record& record, const Error& error);
  static std::string restore_input(Record& record);
  std::vector<Contribution> contributions(const Record& record) const;
  std::string phase(const Record& record) const;
  bool may_need(const RunQuorum& quorum, size_t rank, uint64_t number) const;
  void release_known();
  void remove_old_layers();

  void begin_recovery(Record& record);
  void send_finals(Record& record);
  void on_finals(const MemberId& from, const transport::FrameHeader& header,
                 std::span<const std::byte> bytes);
  void maybe_recover(Record& record);
  void recover(Record& record, const std::vector<int32_t>& ranks);
  void end_whole(Record& record);
  void send_to(Layer& layer, int32_t rank, transport::OutFrame frame);
  // To every member that has a part in operation `number`; on a graph to all, by way of others.
  void tell(Layer& layer, uint64_t number, const transport::OutFrame& frame);
  void pass_on(Layer& layer, const transport::FrameHeader& header, int32_t origin,
               std::span<const std::byte> payload);

  transport::Endpoint& endpoint_;
  Router& router_;
  const std::string run_;
  const MemberId own_;
  const Host host_;
  Error broken_;

  std::map<uint64_t, Record> records_;
  uint64_t next_number_ = 0;
  uint64_t launched_ = 0;  // all below have been started
  NumberSet completed_;
  uint64_t announced_ = 0;  // what the others have been told of completed_
  uint64_t kept_bytes_ = 0;
  uint64_t unannounced_bytes_ = 0;
  std::vector<std::vector<std::byte>> spare_copies_;
  TimePoint announce_at_ = TimePoint::max();
  std::map<MemberId, uint64_t> done_;  // what the others have told

  std::vector<Layer> layers_;  // ascending; the last one is the quorum in force
  // The latest quorums, for the names of contributors and the roots of operations.
  struct Past {
    uint64_t first = 0;
    RunQuorum quorum;
  };
  std::vector<Past> history_;
  bool is_held_ = true;
  uint64_t recover_from_ = 0;
  uint64_t recover_end_ = 0;
  std::map<uint64_t, std::map<MemberId, std::vector<std::byte>>> early_finals_;
  std::map<uint64_t, Refusal> refused_;        // calls not made here yet
  std::map<uint64_t, Refusal> ended_refused_;  // the latest: others may not have heard of it
  std::vector<std::function<void(const Layer&)>> held_messages_;

  uint64_t unsettled_ = 0;  // calls without a result
  TimePoint unsettled_since_;
  uint64_t settled_us_ = 0;
  std::optional<TimePoint> frozen_at_;  // since the last quorum was entered
  TimePoint recovery_began_;
  std::atomic<uint64_t> recovered_operations_{0};
  std::atomic<uint64_t> recovery_us_{0};
};

}  // namespace pccl::recovery
