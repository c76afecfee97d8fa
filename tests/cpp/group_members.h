// Members of a group in one process, with real connections; calls bring their plans along.
#pragma once

#include <doctest/doctest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cluster.h"
#include "collectives/group.h"
#include "collectives/router.h"
#include "topology/cost_model.h"
#include "transport/endpoint.h"

namespace pccl {

class Member {
 public:
  explicit Member(const Way& way)
      : endpoint_({.run = "test",
                   .bind_host = "127.0.0.1",
                   .sockets = way.sockets,
                   .shared_memory = way.shared_memory},
                  router_) {
    endpoint_.start();
  }
  ~Member() {
    run([this] { router_.close({ErrorKind::Aborted, "closed"}); });
    endpoint_.close(after(Clock::now(), 1));
  }
  Member(const Member&) = delete;
  Member& operator=(const Member&) = delete;

  // A group of these members; its calls are numbered from 0.
  void enter(const std::string& name, const std::vector<std::unique_ptr<Member>>& members) {
    run([&] {
      int32_t rank = -1;
      std::vector<transport::Connection*> connections;
      for (const auto& member : members) {
        const bool is_own = member.get() == this;
        if (is_own) rank = static_cast<int32_t>(connections.size());
        const transport::MemberAddress& address = member->endpoint_.address();
        connections.push_back(is_own ? nullptr
                                     : &endpoint_.connection(address, transport::resolve(address)));
      }
      group_ = group_id("test", name);
      router_.add(std::make_unique<Group>(endpoint_, name, group_, rank, connections));
    });
  }
  void leave() {
    run([this] { router_.remove(group_, {ErrorKind::Aborted, "left"}); });
  }
  std::vector<std::shared_ptr<Work>> start(std::vector<CollectiveCall> calls) {
    std::vector<std::shared_ptr<Work>> works;
    run([&] {
      for (CollectiveCall& call : calls) {
        works.push_back(std::make_shared<Work>(endpoint_.engine(), completions_, "all_reduce",
                                               after(Clock::now(), kSoonSeconds), nullptr));
        router_.find(group_)->start_collective(std::move(call), works.back());
      }
    });
    return works;
  }
  // A frame that this member's own operations would not send.
  void tell(int32_t peer, const transport::FrameHeader& header) {
    const TimePoint deadline = after(Clock::now(), kSoonSeconds);
    for (bool is_told = false; !is_told;
         std::this_thread::sleep_for(std::chrono::milliseconds(1))) {
      REQUIRE(Clock::now() < deadline);
      run([&] {
        Group& group = *router_.find(group_);
        transport::FrameHeader told = header;
        told.group = group_;
        told.source_rank = group.rank;
        is_told = group.reach(peer);
        if (is_told) group.send_control(peer, told);
      });
    }
  }

 private:
  // On the driver.
  void run(const std::function<void()>& task) {
    std::atomic<bool> done{false};
    endpoint_.engine().submit(
        [&] {
          task();
          done.store(true);
          endpoint_.engine().notify_waiters();
        },
        true);
    endpoint_.engine().wait(done, after(Clock::now(), kSoonSeconds));
    REQUIRE(done.load());
  }

  Router router_;
  transport::Endpoint endpoint_;
  std::shared_ptr<CompletionQueue> completions_ = std::make_shared<CompletionQueue>();
  uint64_t group_ = 0;
};

using Members = std::vector<std::unique_ptr<Member>>;

// Links of 30 to 130 MB/s and 1 ms within each half of the ranks, a tenth of that between them.
inline topology::Links two_sites(int32_t world_size) {
  std::mt19937_64 random(1);
  topology::Measurement measured{.world_size = world_size};
  for (int32_t from = 0; from < world_size; ++from) {
    for (int32_t to = 0; to < world_size; ++to) {
      const bool is_near = (from < world_size / 2) == (to < world_size / 2);
      const double rate = 30e6 + static_cast<double>(random() % 100) * 1e6;
      measured.bytes_per_second.push_back(is_near ? rate : rate / 10);
      measured.latency_seconds.push_back(is_near ? 1e-3 : 20e-3);
    }
  }
  return topology::measured_links(measured);
}

}  // namespace pccl
