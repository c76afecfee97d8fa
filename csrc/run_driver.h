// What a Run does on its engine's thread: frames, time and actions between the two machines.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "collective_planner.h"
#include "coordinator_lines.h"
#include "membership/member.h"
#include "recovery/operation_log.h"
#include "run.h"

namespace pccl {

class Run::Driver final : public transport::FrameSink {
 public:
  Driver(Run& run, const RunOptions& options);

  // Asks DNS, so it blocks. Throws ConnectError.
  void resolve();
  void begin();
  void leave();
  // Whether others may need a result of this member; they are told what it has.
  bool owes_results();
  void gate_newcomers() { is_gated_ = true; }
  void admit(uint64_t quorum_id);
  void set_revision(uint64_t revision, const membership::Digest& digest);
  std::pair<uint64_t, uint64_t> recoveries() const {  // any thread
    return {log_->recovered_operations(), log_->recovery_us()};
  }
  void with_log(const std::function<void(recovery::OperationLog&)>& task);

  transport::Placement place(transport::Connection& from,
                             const transport::FrameHeader& header) override;
  void on_frame(transport::Connection& from, const transport::FrameHeader& header,
                transport::Payload payload) override;
  void on_lost(transport::Connection& connection, const Error& error) override;
  TimePoint on_time(TimePoint now) override;
  void note_running(FlightRecorder& recorder) override;

 private:
  void perform();
  void act(const membership::SendToCoordinator& action);
  void act(const membership::Hold& action);
  void act(const membership::Enter& action);
  void act(const membership::Evicted& action);
  void act(const membership::TakeOver& action);
  recovery::RunQuorum quorum_of(const membership::Quorum& quorum, std::vector<RunMember>& members);
  std::optional<topology::Graph> graph_of(
      const std::vector<transport::MemberAddress>& members) const;
  void note_quorum(const recovery::RunQuorum& quorum, const membership::Enter& action);
  void note_clock(const membership::Status& status, TimePoint now);
  void end(const Error& error);
  void answer_hold(const membership::Hold& hold);
  membership::Figures figures();
  void show(const std::function<void(Run::Seen&)>& change);

  Run& run_;
  const RunOptions options_;
  std::vector<transport::SocketAddress> coordinator_addresses_;
  Router router_;
  std::unique_ptr<recovery::OperationLog> log_;
  std::unique_ptr<membership::Member> member_;
  std::unique_ptr<CoordinatorLines> lines_;
  std::shared_ptr<CollectivePlanner> planner_;  // of the quorum in force; with its log
  // Connections that were lost inside a callback, to be told to the member machine outside of it.
  struct LostLink {
    transport::MemberId peer{};
    bool has_ended = false;
    std::string reason;
  };
  std::vector<LostLink> lost_links_;
  transport::MemberId last_told_{};  // whose link was the last one in a report
  bool is_gated_ = false;
  std::optional<membership::Hold> gated_hold_;  // for newcomers; admit() answers it
  uint64_t admitted_quorum_id_ = 0;
  std::vector<transport::MemberId> last_members_;  // of the quorum before, for the record
  bool is_coordinator_heard_ = false;
  std::string waits_for_;
  bool is_performing_ = false;
  bool is_leaving_ = false;
  bool has_ended_ = false;
};

}  // namespace pccl
