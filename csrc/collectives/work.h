// The caller's handle on an operation, and the queue of works that somebody wants to hear about.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/errors.h"
#include "transport/address.h"
#include "transport/engine.h"

namespace pccl {

class Work;

// Elements [begin, end) of a result, and whose contributions they sum up.
struct Contribution {
  uint64_t begin = 0;
  uint64_t end = 0;
  std::vector<transport::MemberId> members;
  double weight = 0;  // of all together; their number where contributions have no weight
};

// Works on which notify() was called, in order of completion. Any thread.
class CompletionQueue {
 public:
  // All that are done; waits for the first until `deadline`. Empty: nothing came, or closed.
  std::deque<std::shared_ptr<Work>> take(TimePoint deadline);
  void close();

 private:
  friend class Work;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Guarded by mutex_.
  std::deque<std::shared_ptr<Work>> done_;
  bool is_closed_ = false;
};

// Owned by the caller and, until it is done, by the operation.
class Work : public std::enable_shared_from_this<Work> {
 public:
  Work(transport::Engine& engine, std::shared_ptr<CompletionQueue> completions, std::string name,
       TimePoint until, std::shared_ptr<void> keep)
      : operation(std::move(name)),
        deadline(until),
        engine_(engine),
        completions_(std::move(completions)),
        keep_(std::move(keep)) {}

  // Blocks until done or `until`; true if done.
  bool wait(TimePoint until);
  bool is_completed() const { return done_.load(std::memory_order_acquire); }
  // Requires: is_completed().
  const Error& error() const { return error_; }
  int source_rank() const { return source_rank_; }
  // Of a reduction in an elastic run; else empty.
  const std::vector<Contribution>& contributions() const { return contributions_; }
  void notify();

  // By the operation, on the driver.
  void complete(Error error, int source_rank = -1);
  // Requires: not complete.
  void set_contributions(std::vector<Contribution> contributions) {
    contributions_ = std::move(contributions);
  }

  const std::string operation;
  const TimePoint deadline;

 private:
  transport::Engine& engine_;
  std::shared_ptr<CompletionQueue> completions_;
  std::shared_ptr<void> keep_;  // memory that the operation uses
  std::atomic<bool> done_{false};
  Error error_;
  int source_rank_ = -1;
  std::vector<Contribution> contributions_;
  bool wants_notice_ = false;  // guarded by completions_->mutex_
};

}  // namespace pccl
