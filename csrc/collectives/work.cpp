#include "collectives/work.h"

#include <utility>

namespace pccl {

std::deque<std::shared_ptr<Work>> CompletionQueue::take(TimePoint deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [this] { return is_closed_ || !done_.empty(); });
  return std::exchange(done_, {});
}

void CompletionQueue::close() {
  std::lock_guard lock(mutex_);
  is_closed_ = true;
  changed_.notify_all();
}

bool Work::wait(TimePoint until) { return engine_.wait(done_, until); }

void Work::notify() {
  std::lock_guard lock(completions_->mutex_);
  if (!done_.load(std::memory_order_acquire)) {
    wants_notice_ = true;
    return;
  }
  completions_->done_.push_back(shared_from_this());
  completions_->changed_.notify_all();
}

void Work::complete(Error error, int source_rank) {
  error_ = std::move(error);
  source_rank_ = source_rank;
  keep_.reset();
  done_.store(true, std::memory_order_release);
  {
    std::lock_guard lock(completions_->mutex_);
    if (wants_notice_) {
      completions_->done_.push_back(shared_from_this());
      completions_->changed_.notify_all();
    }
  }
  engine_.notify_waiters();
}

}  // namespace pccl
