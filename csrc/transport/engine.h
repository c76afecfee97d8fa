// The progress engine: one epoll loop that whoever waits may drive.
//
// At most one thread drives at a time. A caller that waits for its operation takes the driver's
// seat, so that a small message is received, reduced and answered without any hand-off between
// threads. A background thread drives when nobody waits, so that asynchronous operations,
// handshakes and goodbyes go on.
//
// Thread safety: submit(), wait(), notify_waiters() from any thread; everything else, and every
// callback, only on the driver.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/file_descriptor.h"

namespace pccl::transport {

// Something with a file descriptor. Registered edge-triggered: on_events() must read or write until
// it would block, or ask for another turn with Engine::again().
class Pollable {
 public:
  virtual ~Pollable() = default;
  virtual void on_events(uint32_t epoll_events) = 0;
  // Another turn after Engine::again(); no new events.
  virtual void on_turn() {}
};

// Something that watches the clock or memory instead of a file descriptor.
class Periodic {
 public:
  virtual ~Periodic() = default;
  // Does what is due at `now`; returns when it wants to be called next.
  virtual TimePoint on_time(TimePoint now) = 0;
  // Hands to the kernel what callbacks have queued for sending.
  virtual void flush() = 0;
  // The driver is about to sleep: announce it where peers look; true if there is work after all.
  virtual bool before_sleep() = 0;
  virtual void after_sleep() = 0;
};

class Engine {
 public:
  // `periodic` outlives the engine; called by the driver only.
  explicit Engine(Periodic& periodic);
  ~Engine();  // stop() must have been called

  void start();
  // Ends the background thread and waits until whoever drives has left; afterwards nobody drives,
  // and every task that was accepted has run. Idempotent. Not from a callback.
  void stop();

  // Runs `task` on the driver, in order of submission. `urgent` wakes a driver for it; otherwise
  // the caller promises to wait() at once.
  bool submit(std::function<void()> task, bool urgent);

  // Drives, or waits for the driver, until `done` or `deadline`; returns `done`.
  bool wait(const std::atomic<bool>& done, TimePoint deadline);

  // After setting a flag that somebody may wait() for.
  void notify_waiters();

  // --- driver only ---
  void add(int fd, Pollable* pollable);
  void remove(int fd, Pollable* pollable);
  void again(Pollable* pollable);
  // on_time() is called no later than `when`.
  void wake_at(TimePoint when);

 private:
  void background();
  void poll_once(TimePoint until, const std::atomic<bool>* done);
  void run_tasks();
  void interrupt();

  Periodic& periodic_;
  FileDescriptor epoll_;
  FileDescriptor wakeup_;  // eventfd
  std::thread thread_;

  std::mutex mutex_;
  std::condition_variable seat_changed_;        // for waiters
  std::condition_variable background_changed_;  // for the background thread
  // Guarded by mutex_.
  bool background_dozes_ = false;  // until background_changed_, not just for the quiet period
  bool has_driver_ = false;
  bool driver_is_background_ = false;
  bool background_wanted_ = false;
  bool has_stopped_ = false;  // and every accepted task has run
  TimePoint last_wait_end_;

  std::atomic<int> waiters_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> asleep_{false};  // the driver is in epoll_wait, or about to be

  std::mutex tasks_mutex_;
  // Guarded by tasks_mutex_.
  std::vector<std::function<void()>> tasks_;
  bool accepts_tasks_ = true;
  std::atomic<bool> has_tasks_{false};

  // Driver only.
  std::vector<Pollable*> turns_;
  std::vector<Pollable*> removed_;  // during the current batch of turns or events
  TimePoint next_time_;
  int rounds_unpolled_ = 0;  // in a row
};

}  // namespace pccl::transport
