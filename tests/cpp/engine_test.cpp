// The progress engine: one driver at a time, nothing forgotten, nobody left waiting.
#include "transport/engine.h"

#include <doctest/doctest.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <functional>
#include <thread>
#include <vector>

using namespace pccl;
using namespace pccl::transport;

namespace {

using std::chrono::milliseconds;

// For what must happen: long enough for a loaded machine under a sanitizer.
TimePoint soon() { return after(Clock::now(), 10); }

// Counts what the engine asks for. Its timer is set by the driver, like everything here.
class Watch final : public Periodic {
 public:
  TimePoint on_time(TimePoint now) override {
    if (!has_alarm || now < alarm) return has_alarm ? alarm : TimePoint::max();
    has_alarm = false;
    if (on_alarm) on_alarm(now);
    return has_alarm ? alarm : TimePoint::max();
  }
  void flush() override {}
  bool before_sleep() override {
    if (sleeping.exchange(true)) overlaps += 1;
    return false;
  }
  void after_sleep() override { sleeping = false; }

  std::function<void(TimePoint)> on_alarm;
  bool has_alarm = false;
  TimePoint alarm;
  std::atomic<bool> sleeping{false};
  std::atomic<int> overlaps{0};  // two drivers at once
};

class Readable final : public Pollable {
 public:
  explicit Readable(std::function<void()> on_event) : on_event_(std::move(on_event)) {}
  void on_events(uint32_t epoll_events) override {
    if ((epoll_events & EPOLLIN) != 0) on_event_();
  }
  void on_turn() override { turns += 1; }
  int turns = 0;

 private:
  std::function<void()> on_event_;
};

FileDescriptor make_eventfd() { return FileDescriptor(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)); }
void ring(const FileDescriptor& bell) {
  const uint64_t one = 1;
  CHECK(::write(bell.get(), &one, sizeof(one)) == sizeof(one));
}

// An engine with its background thread, stopped before its watch goes.
struct Running {
  explicit Running(bool with_thread = true) : engine(watch) {
    if (with_thread) engine.start();
  }
  ~Running() { engine.stop(); }
  // Runs `task` on the driver and waits for it.
  void run(const std::function<void()>& task) {
    std::atomic<bool> done{false};
    REQUIRE(engine.submit(
        [&] {
          task();
          done = true;
          engine.notify_waiters();
        },
        false));
    while (!done) engine.wait(done, soon());
  }
  Watch watch;
  Engine engine;
};

}  // namespace

TEST_CASE("whoever waits runs tasks on its own thread, in order, without a background thread") {
  Running running(false);
  std::vector<int> order;
  std::atomic<bool> done{false};
  for (int i = 0; i < 5; ++i) {
    running.engine.submit([&order, i] { order.push_back(i); }, false);
  }
  std::thread::id driver;
  running.engine.submit(
      [&] {
        driver = std::this_thread::get_id();
        done = true;
      },
      false);
  CHECK(running.engine.wait(done, soon()));
  CHECK(driver == std::this_thread::get_id());
  CHECK(order == std::vector<int>{0, 1, 2, 3, 4});
}

TEST_CASE("an urgent task runs on the background thread when nobody waits") {
  Running running;
  std::atomic<int> ran{0};
  std::thread::id driver;
  for (int i = 1; i <= 20; ++i) {
    running.engine.submit(
        [&] {
          driver = std::this_thread::get_id();
          ran += 1;
          ran.notify_all();
        },
        true);
    for (int seen = ran; seen < i; seen = ran) ran.wait(seen);
  }
  CHECK(driver != std::this_thread::get_id());
}

TEST_CASE("a task may submit another") {
  Running running;
  std::atomic<bool> done{false};
  running.engine.submit([&] { running.engine.submit([&] { done = true; }, true); }, false);
  CHECK(running.engine.wait(done, soon()));
}

TEST_CASE("a wait returns true at once when it is done, false at its deadline, not earlier") {
  Running running;
  const std::atomic<bool> done{true};
  CHECK(running.engine.wait(done, Clock::now() - milliseconds(1)));
  const std::atomic<bool> never{false};
  const TimePoint deadline = Clock::now() + milliseconds(30);
  CHECK_FALSE(running.engine.wait(never, deadline));
  CHECK(Clock::now() >= deadline);
  CHECK_FALSE(running.engine.wait(never, Clock::now() - milliseconds(1)));
}

TEST_CASE("of many waiters one drives, and each ends with its own task") {
  Running running;
  constexpr int kThreads = 6;
  constexpr int kRounds = 200;
  std::atomic<int> ran{0};
  std::atomic<int> late{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < kRounds; ++i) {
        std::atomic<bool> done{false};
        running.engine.submit(
            [&] {
              ran += 1;
              done = true;
              running.engine.notify_waiters();
            },
            i % 2 == 0);
        // The task refers to this frame.
        while (!running.engine.wait(done, soon())) late += 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(ran == kThreads * kRounds);
  CHECK(late == 0);
  CHECK(running.watch.overlaps == 0);
}

TEST_CASE("a waiter that gets the seat from another goes on with what that one left") {
  Running running(false);
  std::atomic<bool> first_done{false};
  std::atomic<bool> second_done{false};
  std::atomic<bool> second_waits{false};
  std::thread second([&] {
    second_waits = true;
    second_waits.notify_all();
    CHECK(running.engine.wait(second_done, soon()));
  });
  second_waits.wait(false);
  running.engine.submit(
      [&] {
        first_done = true;
        running.engine.notify_waiters();
      },
      false);
  CHECK(running.engine.wait(first_done, soon()));
  // Now the second one must be driving, or about to.
  running.engine.submit(
      [&] {
        second_done = true;
        running.engine.notify_waiters();
      },
      false);
  second.join();
}

TEST_CASE("a timer rings no earlier than it should, and wakes a driver that sleeps") {
  Running running;
  std::atomic<bool> rang{false};
  TimePoint alarm;
  TimePoint rang_at;
  running.run([&] {
    alarm = Clock::now() + milliseconds(20);
    running.watch.on_alarm = [&](TimePoint now) {
      rang_at = now;
      rang = true;
      rang.notify_all();
      running.engine.notify_waiters();
    };
    running.watch.has_alarm = true;
    running.watch.alarm = alarm;
    running.engine.wake_at(alarm);
  });
  SUBCASE("in the background") { rang.wait(false); }
  SUBCASE("in a wait") { CHECK(running.engine.wait(rang, soon())); }
  CHECK(rang_at >= alarm);
}

TEST_CASE("a file descriptor that becomes readable reaches its owner") {
  Running running;
  const FileDescriptor bell = make_eventfd();
  std::atomic<bool> rang{false};
  Readable owner([&] {
    rang = true;
    running.engine.notify_waiters();
  });
  running.run([&] { running.engine.add(bell.get(), &owner); });
  for (int i = 0; i < 10; ++i) {
    ring(bell);
    CHECK(running.engine.wait(rang, soon()));
    rang = false;
  }
  running.run([&] { running.engine.remove(bell.get(), &owner); });
}

TEST_CASE("a caller that runs one task after the other does not keep events waiting") {
  Running running;
  const FileDescriptor bell = make_eventfd();
  std::atomic<bool> rang{false};
  Readable owner([&] { rang = true; });
  running.run([&] { running.engine.add(bell.get(), &owner); });
  ring(bell);
  const TimePoint deadline = soon();
  while (!rang && Clock::now() < deadline) running.run([] {});
  CHECK(rang);
  running.run([&] { running.engine.remove(bell.get(), &owner); });
}

TEST_CASE("a file descriptor removed by another's event gets no event of the same batch") {
  Running running(false);
  const std::array<FileDescriptor, 2> bells = {make_eventfd(), make_eventfd()};
  std::array<std::unique_ptr<Readable>, 2> owners;
  std::atomic<bool> rang{false};
  int events = 0;
  for (size_t i = 0; i < 2; ++i) {
    owners[i] = std::make_unique<Readable>([&, i] {
      events += 1;
      // The first that hears destroys the other.
      running.engine.remove(bells[1 - i].get(), owners[1 - i].get());
      owners[1 - i].reset();
      rang = true;
    });
  }
  running.run([&] {
    for (size_t i = 0; i < 2; ++i) running.engine.add(bells[i].get(), owners[i].get());
    for (const FileDescriptor& bell : bells) ring(bell);
  });
  CHECK(running.engine.wait(rang, soon()));
  running.run([] {});
  CHECK(events == 1);
}

TEST_CASE("an owner that changes its file descriptor between polls hears of the new one") {
  Running running(false);
  const std::array<FileDescriptor, 2> bells = {make_eventfd(), make_eventfd()};
  std::atomic<bool> rang{false};
  Readable owner([&] { rang = true; });
  running.run([&] { running.engine.add(bells[0].get(), &owner); });
  // Like a dialer that goes on to the next address when its time is up: the event of the new socket
  // is there before the driver polls.
  running.run([&] {
    running.watch.on_alarm = [&](TimePoint) {
      running.engine.remove(bells[0].get(), &owner);
      running.engine.add(bells[1].get(), &owner);
      ring(bells[1]);
    };
    running.watch.has_alarm = true;
    running.watch.alarm = Clock::now();
    running.engine.wake_at(Clock::now());
  });
  CHECK(running.engine.wait(rang, soon()));
  running.run([&] { running.engine.remove(bells[1].get(), &owner); });
}

TEST_CASE("again() gives one more turn, unless its owner is removed before") {
  Running running(false);
  const FileDescriptor bell = make_eventfd();
  Readable owner([] {});
  running.run([&] {
    running.engine.add(bell.get(), &owner);
    running.engine.again(&owner);
    running.engine.again(&owner);
  });
  running.run([] {});
  CHECK(owner.turns == 1);
  running.run([&] {
    running.engine.again(&owner);
    running.engine.remove(bell.get(), &owner);
  });
  running.run([] {});
  CHECK(owner.turns == 1);
}

TEST_CASE("stop() wakes every waiter, runs every accepted task, and accepts no other") {
  for (int round = 0; round < 20; ++round) {
    Watch watch;
    Engine engine(watch);
    engine.start();
    const std::atomic<bool> never{false};
    std::atomic<int> waiting{0};
    std::atomic<int> accepted{0};
    std::atomic<int> ran{0};
    std::vector<std::thread> threads;
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&] {
        waiting += 1;
        waiting.notify_all();
        CHECK_FALSE(engine.wait(never, soon()));
      });
      threads.emplace_back([&] {
        waiting += 1;
        waiting.notify_all();
        while (engine.submit([&ran] { ran += 1; }, true)) accepted += 1;
      });
    }
    for (int seen = waiting; seen < 6; seen = waiting) waiting.wait(seen);
    const TimePoint begin = Clock::now();
    engine.stop();
    for (std::thread& thread : threads) thread.join();
    CHECK(Clock::now() - begin < std::chrono::seconds(5));
    CHECK(ran == accepted);
    CHECK_FALSE(engine.submit([] {}, true));
    CHECK_FALSE(engine.wait(never, soon()));
    engine.stop();
  }
}

TEST_CASE("after stop() no driver is left in a callback") {
  Watch watch;
  Engine engine(watch);
  std::atomic<bool> in_task{false};
  std::atomic<bool> is_stopping{false};
  std::atomic<bool> has_left{false};
  const std::atomic<bool> never{false};
  engine.submit(
      [&] {
        in_task = true;
        in_task.notify_all();
        is_stopping.wait(false);
        std::this_thread::yield();
        has_left = true;
      },
      false);
  std::thread driver([&] { engine.wait(never, soon()); });
  in_task.wait(false);
  std::thread stopper([&] {
    is_stopping = true;
    is_stopping.notify_all();
    engine.stop();
    CHECK(has_left);
  });
  stopper.join();
  driver.join();
}
