#include "transport/engine.h"

#include <sys/epoll.h>
#include <sys/eventfd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <system_error>

namespace pccl::transport {
namespace {

// How long after the last wait() the background thread leaves the driver's seat free: a loop of
// synchronous small operations then never meets it, and an idle process wakes up no more than once.
constexpr auto kQuietPeriod = std::chrono::milliseconds(2);
// Nothing waits longer than this for a missed wake-up; a bound, not a mechanism.
constexpr auto kSleepMax = std::chrono::milliseconds(500);
constexpr int kRoundsUnpolledMax = 16;

}  // namespace

Engine::Engine(Periodic& periodic)
    : periodic_(periodic),
      epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wakeup_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  if (!epoll_ || !wakeup_)
    throw std::system_error(errno, std::generic_category(), "engine: epoll_create1/eventfd");
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.ptr = nullptr}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wakeup_.get(), &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "engine: epoll_ctl");
  }
}

Engine::~Engine() { stop(); }

void Engine::start() { thread_ = std::thread(&Engine::background, this); }

void Engine::stop() {
  stopping_.store(true);
  interrupt();
  {
    std::unique_lock lock(mutex_);
    seat_changed_.notify_all();
    background_changed_.notify_all();
    // Callbacks are short, so the driver is here soon; the bound is for a wake-up that got lost.
    while (has_driver_) seat_changed_.wait_for(lock, kSleepMax);
  }
  if (thread_.joinable()) thread_.join();
  {
    std::lock_guard lock(tasks_mutex_);
    accepts_tasks_ = false;
  }
  // Nobody drives any more; whoever waits for a task's end still gets it.
  run_tasks();
  std::lock_guard lock(mutex_);
  has_stopped_ = true;
  seat_changed_.notify_all();
}

void Engine::interrupt() {
  const uint64_t one = 1;
  // Fails only when the counter is full, and then the driver is awake anyway.
  [[maybe_unused]] const ssize_t written = ::write(wakeup_.get(), &one, sizeof(one));
}

bool Engine::submit(std::function<void()> task, bool urgent) {
  {
    std::lock_guard lock(tasks_mutex_);
    if (!accepts_tasks_) return false;
    tasks_.push_back(std::move(task));
    has_tasks_.store(true, std::memory_order_seq_cst);
  }
  if (asleep_.load(std::memory_order_seq_cst)) interrupt();
  if (!urgent) return true;
  std::lock_guard lock(mutex_);
  if (!has_driver_) {
    background_wanted_ = true;
    background_changed_.notify_all();
  }
  return true;
}

bool Engine::wait(const std::atomic<bool>& done, TimePoint deadline) {
  if (done.load(std::memory_order_acquire)) return true;
  std::unique_lock lock(mutex_);
  waiters_.fetch_add(1);
  bool in_time = true;
  while (!done.load(std::memory_order_acquire) && in_time && !stopping_.load()) {
    if (!has_driver_) {
      has_driver_ = true;
      lock.unlock();
      while (!done.load(std::memory_order_acquire) && in_time && !stopping_.load()) {
        poll_once(deadline, &done);
        in_time = Clock::now() < deadline;
      }
      lock.lock();
      has_driver_ = false;
      if (waiters_.load() > 1 || stopping_.load()) seat_changed_.notify_all();
    } else {
      if (driver_is_background_) interrupt();
      seat_changed_.wait_until(lock, std::min(deadline, Clock::now() + kSleepMax));
      in_time = Clock::now() < deadline;
    }
  }
  // stop() runs what was accepted; that may be what this waits for.
  while (!done.load(std::memory_order_acquire) && stopping_.load() && !has_stopped_ &&
         Clock::now() < deadline) {
    seat_changed_.wait_until(lock, std::min(deadline, Clock::now() + kSleepMax));
  }
  waiters_.fetch_sub(1);
  last_wait_end_ = Clock::now();
  if (waiters_.load() == 0) {
    // A task that came when this thread still had the seat and did not look any more.
    if (has_tasks_.load()) background_wanted_ = true;
    if (background_dozes_ || background_wanted_) background_changed_.notify_all();
  }
  return done.load(std::memory_order_acquire);
}

void Engine::notify_waiters() {
  // Read by writing, so that the flag and this counter are seen in one order: a waiter that is not
  // counted yet will see the flag.
  if (waiters_.fetch_add(0) == 0) return;
  std::lock_guard lock(mutex_);
  // A lone waiter that drives looks at its flag by itself.
  if (waiters_.load() > 1 || driver_is_background_) seat_changed_.notify_all();
}

void Engine::background() {
  std::unique_lock lock(mutex_);
  while (!stopping_.load()) {
    const TimePoint now = Clock::now();
    const bool is_busy = has_driver_ || waiters_.load() > 0;
    if (is_busy || (!background_wanted_ && now < last_wait_end_ + kQuietPeriod)) {
      background_dozes_ = is_busy;
      background_changed_.wait_until(lock,
                                     is_busy ? now + kSleepMax : last_wait_end_ + kQuietPeriod);
      background_dozes_ = false;
      continue;
    }
    has_driver_ = driver_is_background_ = true;
    background_wanted_ = false;
    lock.unlock();
    while (!stopping_.load() && waiters_.load() == 0) poll_once(Clock::now() + kSleepMax, nullptr);
    lock.lock();
    has_driver_ = driver_is_background_ = false;
    seat_changed_.notify_all();
  }
}

void Engine::run_tasks() {
  if (!has_tasks_.load(std::memory_order_acquire)) return;
  std::vector<std::function<void()>> tasks;
  {
    std::lock_guard lock(tasks_mutex_);
    tasks.swap(tasks_);
    has_tasks_.store(false);
  }
  for (auto& task : tasks) task();
}

void Engine::poll_once(TimePoint until, const std::atomic<bool>* done) {
  run_tasks();
  std::vector<Pollable*> turns;
  turns.swap(turns_);
  for (Pollable* pollable : turns) {
    // An earlier turn may have removed this one.
    if (std::find(removed_.begin(), removed_.end(), pollable) == removed_.end())
      pollable->on_turn();
  }
  TimePoint now = Clock::now();
  if (now >= next_time_) {
    next_time_ = TimePoint::max();
    const TimePoint next = periodic_.on_time(now);
    wake_at(next);  // no later than what it has asked for meanwhile
  }
  periodic_.flush();
  // A caller whose tasks are done at once need not poll; but if it does nothing else, the events of
  // everybody else would wait for it to end.
  const bool is_done = done != nullptr && done->load(std::memory_order_acquire);
  if (is_done && ++rounds_unpolled_ < kRoundsUnpolledMax) return;
  rounds_unpolled_ = 0;

  int timeout_ms = 0;
  asleep_.store(true, std::memory_order_seq_cst);
  const bool has_work = periodic_.before_sleep() || is_done || !turns_.empty() ||
                        has_tasks_.load(std::memory_order_seq_cst);
  if (!has_work && !stopping_.load()) {
    const TimePoint wake = std::min({until, next_time_, now + kSleepMax});
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(wake - now).count();
    timeout_ms = static_cast<int>(std::clamp<int64_t>(left, 0, 1000));
  }
  // What was removed until here can't be in the batch, and may have been added again.
  removed_.clear();
  std::array<epoll_event, 64> events;
  const int count =
      epoll_wait(epoll_.get(), events.data(), static_cast<int>(events.size()), timeout_ms);
  asleep_.store(false, std::memory_order_relaxed);
  periodic_.after_sleep();
  for (int i = 0; i < count; ++i) {
    auto* pollable = static_cast<Pollable*>(events[i].data.ptr);
    if (pollable == nullptr) continue;  // edge-triggered eventfd: need not be read
    if (std::find(removed_.begin(), removed_.end(), pollable) == removed_.end())
      pollable->on_events(events[i].events);
  }
  removed_.clear();
  periodic_.flush();
}

void Engine::add(int fd, Pollable* pollable) {
  epoll_event event{.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data = {.ptr = pollable}};
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) {
    throw std::system_error(errno, std::generic_category(), "engine: epoll_ctl");
  }
}

void Engine::remove(int fd, Pollable* pollable) {
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  std::erase(turns_, pollable);
  removed_.push_back(pollable);
}

void Engine::again(Pollable* pollable) {
  if (std::find(turns_.begin(), turns_.end(), pollable) == turns_.end()) turns_.push_back(pollable);
}

void Engine::wake_at(TimePoint when) { next_time_ = std::min(next_time_, when); }

}  // namespace pccl::transport
