// A group of members as the operations see it: ranks, connections, what runs, what came too early,
// what broke.
//
// Membership is given; this floor neither chooses it nor changes it. Driver only.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/errors.h"
#include "collectives/collective_operation.h"
#include "collectives/message_operation.h"
#include "collectives/number_set.h"
#include "collectives/operation.h"
#include "collectives/plan_source.h"
#include "transport/endpoint.h"

namespace pccl {

// What frames carry instead of a group's name.
uint64_t group_id(const std::string& run, const std::string& name);

// A frame that came before its operation was started here.
struct EarlyFrame {
  transport::FrameHeader header;
  transport::Payload payload;
};

class Group;

// Whoever changes the members of a run when some are lost (recovery/). With one, a lost member ends
// no operation: they wait until the observer replaces the group, or their deadlines pass.
class GroupObserver {
 public:
  virtual ~GroupObserver() = default;
  // A frame of an elastic run: Finals or Done.
  virtual void on_elastic_frame(Group& group, const transport::FrameHeader& header,
                                transport::Payload payload) = 0;
  virtual void on_member_lost(Group& group, int32_t rank, const Error& error) = 0;
  // The group is broken, here or by another rank: a wrong call, a deadline, an abort.
  virtual void on_broken(Group& group, const Error& error) = 0;
};

class Group {
 public:
  // `connections[own_rank]` is null, and those of ranks that this one has no edge to in the graph
  // of the members: nothing moves between them, and none is dialed.
  Group(transport::Endpoint& endpoint, std::string group_name, uint64_t its_id, int32_t own_rank,
        std::vector<transport::Connection*> connections);
  ~Group();

  // Each ends through its work.
  // A call without a plan is planned by `plans`, in the order of calls.
  void start_collective(CollectiveCall call, std::shared_ptr<Work> work,
                        std::vector<uint64_t> block_counts = {});
  void plan_by(std::shared_ptr<PlanSource> plans);
  // The same with a number that all ranks agree on. Requires: none was started under it.
  void start_numbered(uint64_t number, CollectiveCall call, std::shared_ptr<Work> work);
  void start_send(int32_t destination, uint32_t tag, MessageMemory memory,
                  std::shared_ptr<Work> work);
  void start_receive(int32_t source, uint32_t tag, MessageMemory memory,
                     std::shared_ptr<Work> work);

  // Breaks the group: every operation fails here and, told by an abort frame, at the others.
  void fail(const Error& error);
  // Fails every operation here, tells nobody. For closing.
  void close(const Error& error);
  const Error& broken() const { return broken_; }

  // --- for recovery ---
  void observe(GroupObserver* observer) { observer_ = observer; }
  // No operation below `bound` that has not been started will be.
  void skip_below(uint64_t bound) { calls_.insert_all_below(bound); }
  CollectiveOperation* find(uint64_t number);
  // Operation `number` ends here or never begins; what the others send for it is dropped.
  void drop(uint64_t number);
  // Ends every operation here without telling anybody, and takes no frame any more.
  void freeze();

  // --- from the router ---
  transport::Placement place(const transport::FrameHeader& header);
  void on_frame(const transport::FrameHeader& header, transport::Payload payload);
  void on_connection_lost(int32_t peer, const Error& error);
  void on_credit(int32_t peer);
  void on_mailbox_filling();
  TimePoint on_time(TimePoint now);
  // Starts what waits for its plan.
  void start_waiting();
  int32_t rank_of(const transport::Connection& connection) const;
  // Destroys what has ended. When no operation is on the stack.
  void sweep() { ended_.clear(); }
  // What the first few operations wait for.
  void note_running();

  // --- for its plans ---
  // Whether frames to that rank leave now; dials it where nobody has.
  bool reach(int32_t peer);
  bool has_left(int32_t peer) const;  // a group that no recovery changes
  uint32_t send_probe(int32_t peer);  // bytes
  void tell_figures(int32_t peer, std::vector<std::byte> bytes);
  void tell_turn(int32_t peer, uint64_t round);
  transport::LinkTraffic counted(int32_t peer) { return to(peer).counted(); }
  void wake_at(TimePoint time) { endpoint_.engine().wake_at(time); }

  // --- for operations ---
  transport::Connection& to(int32_t peer) { return *connections_[static_cast<size_t>(peer)]; }
  transport::BufferPool& pool() { return endpoint_.pool(); }
  FlightRecorder& recorder() { return endpoint_.recorder(); }
  // An operation ends in an error that its group may not know of.
  void note_failure(const Operation& operation, const Error& error);
  void send(int32_t peer, transport::OutFrame frame);
  void send_control(int32_t peer, const transport::FrameHeader& header);
  void mark_unsent(int32_t peer);
  void on_finished(Operation& operation);
  // The payload of a frame is used or dropped: its sender gets its credit back.
  void give_credit(const transport::FrameHeader& header);
  // Accounts for a frame that waits for its call; false, with the group broken, if it is too many.
  bool put_into_mailbox(const transport::FrameHeader& header);
  void take_out_of_mailbox(const transport::FrameHeader& header);
  std::string describe(int32_t peer) const;                    // "rank 2 (10.0.0.7:4123)"
  std::string describe(const std::set<int32_t>& peers) const;  // the first few of them

  const std::string name;
  const uint64_t id;
  const int32_t rank;
  int32_t world_size() const { return static_cast<int32_t>(connections_.size()); }

 private:
  // False, with the work failed, if the group is broken or the peer can't be reached.
  bool ready_to_talk(Operation& operation, const std::vector<int32_t>& peers);
  void on_data(const transport::FrameHeader& header, transport::Payload payload);
  bool is_neighbour(int32_t peer) const {
    return connections_[static_cast<size_t>(peer)] != nullptr;
  }
  void tell_broken(int32_t peer);
  void tell_of_links(int32_t peer, const transport::FrameHeader& header,
                     std::vector<std::byte> bytes);
  void drop_early();
  void drop(const std::vector<EarlyFrame>& frames);
  bool is_crowded(const std::vector<int32_t>& peers);
  void on_abort(const transport::FrameHeader& header, const transport::Payload& payload);
  void note_broken(const Error& error);
  std::vector<Operation*> running();

  transport::Endpoint& endpoint_;
  std::vector<transport::Connection*> connections_;
  GroupObserver* observer_ = nullptr;
  const bool is_sparse_;  // it has no connection to some
  bool is_frozen_ = false;
  Error broken_;
  std::set<int32_t> told_;  // peers that know that it is broken

  std::shared_ptr<PlanSource> plans_;
  // Calls that have no plan yet.
  struct Waiting {
    CollectiveCall call;
    std::shared_ptr<Work> work;
    std::vector<uint64_t> block_counts;
  };
  std::deque<Waiting> waiting_;
  // Collectives, in the order of calls.
  NumberSet calls_;
  std::map<uint64_t, std::unique_ptr<CollectiveOperation>> collectives_;
  std::map<uint64_t, std::vector<EarlyFrame>> early_;  // by call
  // The latest calls that have ended, to recognise a peer that called something else.
  static constexpr size_t kRememberedCalls = 64;
  std::deque<std::pair<uint64_t, transport::Signature>> remembered_;

  Messages messages_;
  std::vector<std::unique_ptr<Operation>> ended_;
};

}  // namespace pccl
