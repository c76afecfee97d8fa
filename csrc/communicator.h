// The public C++ interface: start reading here.
//
// A Context is one member of one run: it listens, connects and makes progress. A Communicator is
// one group of members with numbered ranks; its collectives are called in the same order by every
// rank. Calls return a Work at once.
//
// What happens below: plan (topology/) -> this rank's part (collectives/rank_plan.h) -> segments on
// connections (collectives/collective_operation.h, transport/). Memory that a call names must live
// until its Work is done.
//
// Thread safety: everything here may be called from any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "base/types.h"
#include "collective_calls.h"
#include "collective_planner.h"
#include "collectives/router.h"
#include "collectives/work.h"
#include "transport/endpoint.h"

namespace pccl {

class Context {
 public:
  // Throws ConnectError (port in use, no such interface) and std::invalid_argument.
  explicit Context(transport::EndpointOptions options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // What the other members need to reach this one.
  std::vector<std::byte> address() const { return endpoint_.address().encode(); }
  std::string describe_address() const { return endpoint_.address().describe(); }
  bool shares_memory() const { return !endpoint_.address().memory_name.empty(); }
  transport::Statistics statistics() { return endpoint_.statistics(); }
  std::string flight_record() { return endpoint_.flight_record(); }
  auto flight_events(uint64_t seen) { return endpoint_.flight_events(seen); }
  std::shared_ptr<CompletionQueue> completions() { return completions_; }
  // Fails what still runs, says goodbye to the peers, closes every socket. Idempotent.
  void close();

 private:
  friend class Communicator;
  // Runs `task` on the engine's driver and waits for it.
  void run(const std::function<void()>& task);

  std::shared_ptr<CompletionQueue> completions_ = std::make_shared<CompletionQueue>();
  Router router_;
  transport::Endpoint endpoint_;  // after router_: frames stop before the groups go
  std::mutex close_mutex_;
  bool is_closed_ = false;  // guarded by close_mutex_
};

struct CommunicatorOptions {
  double timeout_seconds = 1800;  // of every operation
  std::string algorithm = "auto";
  bool deterministic = false;            // see PlannerOptions
  bool probes = false;                   // likewise
  std::optional<topology::Graph> graph;  // likewise
};

class Communicator final : public CollectiveCalls {
 public:
  // `addresses[r]` is what rank r's Context::address() gave. Resolves host names, connects to
  // nobody yet. Throws std::invalid_argument; ConnectError where an address is of another version
  // or run, or a name is taken.
  Communicator(std::shared_ptr<Context> context, std::string name, int32_t rank,
               const std::vector<std::vector<std::byte>>& addresses,
               const CommunicatorOptions& options);
  ~Communicator() override;
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  // Blocks. Rank 0 names the first missing rank, or all with `wait_all_ranks`; the group stays
  // usable. `meanwhile` is called from time to time and ends the wait by throwing.
  void monitored_barrier(double timeout_seconds, bool wait_all_ranks,
                         const std::function<void()>& meanwhile = {});
  // Breaks the group here and at every other member that is connected.
  void abort(const std::string& reason);
  // Ends the group here only; its name is not used again.
  void close();
  std::string error();
  // Name of the algorithm that a call of this size takes.
  std::string plan(transport::Collective collective, uint64_t count, DataType dtype);

  Place here() const override { return {rank_, planner_->world_size(), 0}; }
  double timeout_seconds;

 private:
  WorkPtr start(const Place& place, transport::Signature signature, std::vector<BlockMemory> blocks,
                std::span<const uint64_t> block_counts, double factor,
                CallOptions options) override;
  WorkPtr start_message(const Place& place, const MessageCall& call, CallOptions options) override;
  WorkPtr make_work(const char* name, CallOptions& options);
  void submit(std::function<void(Group&)> task, const WorkPtr& work, bool is_urgent);

  std::shared_ptr<Context> context_;
  const std::string name_;
  const int32_t rank_;
  uint64_t id_ = 0;
  std::shared_ptr<CollectivePlanner> planner_;
  uint32_t segment_bytes_ = 0;

  std::atomic<uint32_t> monitored_barriers_{0};
  std::mutex mutex_;
  bool is_closed_ = false;  // guarded by mutex_
};

}  // namespace pccl
