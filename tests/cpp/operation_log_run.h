// Members of a run as threads with real connections; the test decides who is in.
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cluster.h"
#include "collective_planner.h"
#include "pooled_plans.h"
#include "recovery/operation_log.h"

namespace pccl::recovery {

using transport::Collective;
using transport::MemberAddress;

class Member {
 public:
  explicit Member(const Way& way, bool leaves_pools = false)
      : leaves_pools_(leaves_pools),
        endpoint_({.run = "test",
                   .bind_host = "127.0.0.1",
                   .sockets = way.sockets,
                   .shared_memory = way.shared_memory},
                  sink_),
        log_(endpoint_, router_, "test", endpoint_.address().member_id,
             {[](const MemberId&, const Error&) {}, [](const Error&) {}}) {
    endpoint_.start();
  }
  ~Member() { close(); }
  void close() {
    if (std::exchange(is_closed_, true)) return;
    run([this] { log_.close({ErrorKind::Aborted, "closed"}); });
    run([this] { router_.close({ErrorKind::Aborted, "closed"}); });
    endpoint_.close(after(Clock::now(), 1));
  }

  // On the driver, as everything in the log must be.
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
  const MemberAddress& address() const { return endpoint_.address(); }

  OperationLog::Progress hold(bool freezes) {
    OperationLog::Progress progress;
    run([&] { progress = log_.hold(freezes); });
    return progress;
  }
  void enter(uint64_t quorum_id, const std::vector<Member*>& members,
             const std::vector<uint64_t>& joined_at, uint64_t first_operation,
             uint64_t recover_from, bool drops) {
    run([&] {
      RunQuorum quorum{.quorum_id = quorum_id, .joined_at = joined_at};
      std::vector<MemberAddress> addresses;
      for (Member* member : members) {
        const bool is_own = member == this;
        if (is_own) quorum.rank = static_cast<int32_t>(addresses.size());
        addresses.push_back(member->address());
        quorum.members.push_back(member->address().member_id);
        quorum.connections.push_back(
            is_own
                ? nullptr
                : &endpoint_.connection(member->address(), transport::resolve(member->address())));
      }
      auto planner = std::make_shared<CollectivePlanner>(
          PlannerOptions{.hosts = host_numbers(addresses), .rank = quorum.rank});
      quorum.links = planner->links();
      quorum.segment_bytes = 4 << 10;  // many, also of small tensors
      quorum.plans = planner;
      if (leaves_pools_) {
        quorum.plans = std::make_shared<PooledPlans>(planner, static_cast<int32_t>(members.size()),
                                                     quorum.rank);
      }
      log_.enter(std::move(quorum), first_operation, recover_from, drops);
    });
  }
  std::shared_ptr<Work> start(RunCall call, double seconds = kSoonSeconds) {
    auto work = std::make_shared<Work>(endpoint_.engine(), completions_, "test",
                                       after(Clock::now(), seconds), nullptr);
    endpoint_.engine().submit(
        [this, work, shared = std::make_shared<RunCall>(std::move(call))] {
          log_.start(std::move(*shared), work);
        },
        true);
    return work;
  }
  std::shared_ptr<Work> message(bool is_send, uint64_t quorum_id, int32_t peer,
                                std::vector<int64_t>& tensor) {
    auto work = std::make_shared<Work>(endpoint_.engine(), completions_, "test",
                                       after(Clock::now(), kSoonSeconds), nullptr);
    const MessageMemory memory{reinterpret_cast<std::byte*>(tensor.data()), tensor.size(),
                               DataType::Int64, 4096};
    run([&] {
      is_send ? log_.start_send(quorum_id, peer, 7, memory, work)
              : log_.start_receive(quorum_id, peer, 7, memory, work);
    });
    return work;
  }
  void fail(const Error& error) {
    run([&] { log_.fail(error); });
  }
  void set_round_trip(const MemberAddress& peer, double seconds) {
    run([&] { endpoint_.connection(peer, {}).round_trip_seconds = seconds; });
  }
  uint64_t kept_bytes() {
    uint64_t bytes = 0;
    run([&] { bytes = log_.kept_bytes(); });
    return bytes;
  }

 private:
  // What Run::Driver is in a run.
  class Sink final : public transport::FrameSink {
   public:
    explicit Sink(Member& member) : member_(member) {}
    transport::Placement place(transport::Connection& from,
                               const transport::FrameHeader& header) override {
      return member_.router_.place(from, header);
    }
    void on_frame(transport::Connection& from, const transport::FrameHeader& header,
                  transport::Payload payload) override {
      member_.router_.on_frame(from, header, std::move(payload));
    }
    void on_lost(transport::Connection& connection, const Error& error) override {
      member_.router_.on_lost(connection, error);
    }
    TimePoint on_time(TimePoint now) override {
      return std::min(member_.router_.on_time(now), member_.log_.on_time(now));
    }

   private:
    Member& member_;
  };
  const bool leaves_pools_;
  Router router_;
  Sink sink_{*this};
  transport::Endpoint endpoint_;
  std::shared_ptr<CompletionQueue> completions_ = std::make_shared<CompletionQueue>();
  OperationLog log_;
  bool is_closed_ = false;
};

inline RunCall all_reduce(std::vector<int64_t>& tensor, bool is_uniform = false) {
  auto* data = reinterpret_cast<std::byte*>(tensor.data());
  RunCall call;
  call.signature = {Collective::AllReduce, DataType::Int64, ReduceOp::Sum, -1, tensor.size()};
  call.blocks = {{data, data, tensor.size()}};
  call.is_uniform = is_uniform;
  return call;
}

// Eight bits for each member: a sum shows who is in it, and how often.
inline int64_t contribution(size_t member) { return int64_t{1} << (8 * member); }
inline int64_t sum_of(const std::set<size_t>& members) {
  int64_t sum = 0;
  for (const size_t member : members) sum += contribution(member);
  return sum;
}

struct Run {
  explicit Run(size_t count, const Way& way, bool leaves_pools = false) {
    for (size_t i = 0; i < count; ++i)
      members.push_back(std::make_unique<Member>(way, leaves_pools));
    for (size_t i = 0; i < count; ++i) alive.insert(i);
    change({}, {});
  }
  // The coordinator's part: drops these, or lets these in.
  void change(const std::set<size_t>& dropped, const std::set<size_t>& added) {
    change(dropped, added, !dropped.empty());
  }
  void change(const std::set<size_t>& dropped, const std::set<size_t>& added, bool freezes) {
    for (const size_t i : dropped) alive.erase(i);
    uint64_t first = 0;
    uint64_t from = UINT64_MAX;
    for (const size_t i : alive) {
      if (added.contains(i)) continue;
      const OperationLog::Progress progress = members[i]->hold(freezes);
      first = std::max(first, progress.started);
      from = std::min(from, progress.completed);
    }
    for (const size_t i : added) {
      alive.insert(i);
      joined_at[i] = first;
    }
    quorum_id += 1;
    std::vector<Member*> in;
    std::vector<uint64_t> joined;
    for (const size_t i : alive) {
      in.push_back(members[i].get());
      joined.push_back(joined_at[i]);
    }
    for (const size_t i : alive)
      members[i]->enter(quorum_id, in, joined, first, std::min(from, first), freezes);
  }

  std::vector<std::unique_ptr<Member>> members;
  std::map<MemberId, size_t> index_of() const {
    std::map<MemberId, size_t> all;
    for (size_t i = 0; i < members.size(); ++i) all[members[i]->address().member_id] = i;
    return all;
  }
  std::set<size_t> alive;
  std::map<size_t, uint64_t> joined_at;
  uint64_t quorum_id = 0;
};

inline void wait_well(const std::shared_ptr<Work>& work) {
  REQUIRE(work->wait(after(Clock::now(), 2 * kSoonSeconds)));
  REQUIRE_MESSAGE(!work->error(), work->error().message);
}

// Whether each element sums up exactly those that the work names, without gaps.
inline void check_contributions(const Work& work, const std::vector<int64_t>& tensor,
                                const std::map<MemberId, size_t>& index_of) {
  uint64_t covered = 0;
  for (const Contribution& range : work.contributions()) {
    REQUIRE(range.begin == covered);
    covered = range.end;
    std::set<size_t> members;
    for (const MemberId& id : range.members) members.insert(index_of.at(id));
    REQUIRE(range.weight == static_cast<double>(members.size()));
    const int64_t expected = sum_of(members);
    REQUIRE(std::all_of(tensor.begin() + static_cast<std::ptrdiff_t>(range.begin),
                        tensor.begin() + static_cast<std::ptrdiff_t>(range.end),
                        [expected](int64_t value) { return value == expected; }));
  }
  REQUIRE(covered == tensor.size());
}

}  // namespace pccl::recovery
