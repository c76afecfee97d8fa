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
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "base/types.h"
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

// Memory of one block: `count` elements at `data`.
struct Block {
  std::byte* data = nullptr;
  uint64_t count = 0;
};

struct CallOptions {
  double timeout_seconds = 0;  // 0: the communicator's
  bool is_urgent = true;       // false: the caller wait()s at once, so no other thread is woken
  std::shared_ptr<void> keep;  // released when the operation has ended
};

class Communicator {
 public:
  // `addresses[r]` is what rank r's Context::address() gave. Resolves host names, connects to
  // nobody yet. Throws std::invalid_argument; ConnectError where an address is of another version
  // or run, or a name is taken.
  Communicator(std::shared_ptr<Context> context, std::string name, int32_t rank,
               const std::vector<std::vector<std::byte>>& addresses, double timeout_seconds,
               std::string algorithm);
  ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  using WorkPtr = std::shared_ptr<Work>;
  // Steps and bytes of each algorithm: topology/planners.h. `factor` is PremulSum's.
  WorkPtr all_reduce(const std::byte* source, std::byte* target, uint64_t count, DataType dtype,
                     ReduceOp op, double factor, CallOptions options);
  WorkPtr reduce(const std::byte* source, std::byte* target, uint64_t count, DataType dtype,
                 ReduceOp op, double factor, int32_t root, CallOptions options);
  WorkPtr broadcast(std::byte* tensor, uint64_t count, DataType dtype, int32_t root,
                    CallOptions options);
  WorkPtr all_gather(Block source, std::span<const Block> targets, DataType dtype,
                     CallOptions options);
  WorkPtr reduce_scatter(std::span<const Block> sources, Block target, DataType dtype, ReduceOp op,
                         double factor, CallOptions options);
  WorkPtr gather(Block source, std::span<const Block> targets, DataType dtype, int32_t root,
                 CallOptions options);
  WorkPtr scatter(std::span<const Block> sources, Block target, DataType dtype, int32_t root,
                  CallOptions options);
  WorkPtr all_to_all(std::span<const Block> sources, std::span<const Block> targets, DataType dtype,
                     CallOptions options);
  WorkPtr barrier(CallOptions options);
  // Blocks. Rank 0 names the first missing rank, or all with `wait_all_ranks`; the group stays
  // usable. `meanwhile` is called from time to time and ends the wait by throwing.
  void monitored_barrier(double timeout_seconds, bool wait_all_ranks,
                         const std::function<void()>& meanwhile = {});
  WorkPtr send(const std::byte* tensor, uint64_t count, DataType dtype, int32_t destination,
               uint32_t tag, CallOptions options);
  WorkPtr recv(std::byte* tensor, uint64_t count, DataType dtype, int32_t source, uint32_t tag,
               CallOptions options);

  // Breaks the group here and at every other member that is connected.
  void abort(const std::string& reason);
  // Ends the group here only; its name is not used again.
  void close();
  std::string error();
  // Name of the algorithm that a call of this size takes.
  std::string plan(transport::Collective collective, uint64_t count, DataType dtype);

  int32_t rank() const { return rank_; }
  int32_t world_size() const { return planner_->world_size(); }
  double timeout_seconds;

 private:
  WorkPtr start(transport::Signature signature, std::vector<BlockMemory> blocks,
                std::span<const uint64_t> block_counts, double factor, CallOptions options);
  WorkPtr make_work(const char* name, CallOptions& options);
  void submit(std::function<void(Group&)> task, const WorkPtr& work, bool is_urgent);
  void check_root(int32_t root, const char* operation) const;

  std::shared_ptr<Context> context_;
  const std::string name_;
  const int32_t rank_;
  uint64_t id_ = 0;
  std::unique_ptr<CollectivePlanner> planner_;
  uint32_t segment_bytes_ = 0;

  std::atomic<uint32_t> monitored_barriers_{0};
  std::mutex mutex_;
  bool is_closed_ = false;  // guarded by mutex_
};

}  // namespace pccl
