// Recovery with real connections: members as threads, and the test decides who is in.
#include "recovery/operation_log.h"

#include <doctest/doctest.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cluster.h"
#include "collective_planner.h"

namespace pccl::recovery {
namespace {

using transport::Collective;
using transport::MemberAddress;

class Member {
 public:
  explicit Member(const Way& way)
      : endpoint_({.run = "test",
                   .bind_host = "127.0.0.1",
                   .sockets = way.sockets,
                   .shared_memory = way.shared_memory},
                  router_),
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
      auto planner =
          std::make_shared<CollectivePlanner>(host_numbers(addresses), quorum.rank, "auto");
      quorum.links = planner->links();
      quorum.segment_bytes = 4 << 10;  // many, also of small tensors
      quorum.plans = planner;
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
  uint64_t kept_bytes() {
    uint64_t bytes = 0;
    run([&] { bytes = log_.kept_bytes(); });
    return bytes;
  }

 private:
  Router router_;
  transport::Endpoint endpoint_;
  std::shared_ptr<CompletionQueue> completions_ = std::make_shared<CompletionQueue>();
  OperationLog log_;
  bool is_closed_ = false;
};

RunCall all_reduce(std::vector<int64_t>& tensor, bool is_uniform = false) {
  auto* data = reinterpret_cast<std::byte*>(tensor.data());
  RunCall call;
  call.signature = {Collective::AllReduce, DataType::Int64, ReduceOp::Sum, -1, tensor.size()};
  call.blocks = {{data, data, tensor.size()}};
  call.is_uniform = is_uniform;
  return call;
}

// Eight bits for each member: a sum shows who is in it, and how often.
int64_t contribution(size_t member) { return int64_t{1} << (8 * member); }
int64_t sum_of(const std::set<size_t>& members) {
  int64_t sum = 0;
  for (const size_t member : members) sum += contribution(member);
  return sum;
}

struct Run {
  explicit Run(size_t count, const Way& way) {
    for (size_t i = 0; i < count; ++i) members.push_back(std::make_unique<Member>(way));
    for (size_t i = 0; i < count; ++i) alive.insert(i);
    change({}, {});
  }
  // The coordinator's part: drops these, or lets these in.
  void change(const std::set<size_t>& dropped, const std::set<size_t>& added) {
    for (const size_t i : dropped) alive.erase(i);
    uint64_t first = 0;
    uint64_t from = UINT64_MAX;
    for (const size_t i : alive) {
      if (added.contains(i)) continue;
      const OperationLog::Progress progress = members[i]->hold(!dropped.empty());
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
      members[i]->enter(quorum_id, in, joined, first, std::min(from, first), !dropped.empty());
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

void wait_well(const std::shared_ptr<Work>& work) {
  REQUIRE(work->wait(after(Clock::now(), 2 * kSoonSeconds)));
  REQUIRE_MESSAGE(!work->error(), work->error().message);
}

// Whether each element sums up exactly those that the work names, without gaps.
void check_contributions(const Work& work, const std::vector<int64_t>& tensor,
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

TEST_CASE("survivors complete an all_reduce in place although members stop in the middle") {
  int mixed = 0;
  for (const Way& way : kWays) {
    for (uint64_t seed = 0; seed < 16; ++seed) {
      CAPTURE(way.name);
      CAPTURE(seed);
      std::mt19937_64 random(seed);
      const size_t world_size = 2 + random() % 4;
      Run run(world_size, way);
      const size_t count = 1 + random() % 2'000'000;
      const bool is_uniform = seed % 4 == 3;
      std::vector<std::vector<int64_t>> tensors(world_size);
      std::vector<std::shared_ptr<Work>> works(world_size);
      const size_t late = random() % (world_size + 1);  // calls only after the change
      for (size_t i = 0; i < world_size; ++i) {
        tensors[i].assign(count, contribution(i));
        if (i != late) works[i] = run.members[i]->start(all_reduce(tensors[i], is_uniform));
      }
      std::set<size_t> dropped;
      const size_t drops = 1 + random() % (world_size - 1);
      while (dropped.size() < drops) dropped.insert(random() % world_size);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
      // A dropped member stands still, as if stopped.
      for (const size_t i : dropped) run.members[i]->hold(true);
      run.change(dropped, {});
      if (late < world_size && !dropped.contains(late))
        works[late] = run.members[late]->start(all_reduce(tensors[late], is_uniform));
      const std::vector<int64_t>& first = tensors[*run.alive.begin()];
      for (const size_t i : run.alive) {
        wait_well(works[i]);
        REQUIRE(tensors[i] == first);
        check_contributions(*works[i], tensors[i], run.index_of());
        const size_t sets = works[i]->contributions().size();
        CHECK((!is_uniform || sets == 1));
        if (sets > 1) mixed += 1;
      }
      for (auto& member : run.members) member->close();
    }
  }
  // Else nobody was ever lost in the middle.
  CHECK(mixed > 0);
}

// One member's program: a list of operations of sizes that all members know.
struct Program {
  std::vector<std::vector<int64_t>> tensors;
  std::vector<std::shared_ptr<Work>> works;
};

size_t size_of(uint64_t seed, uint64_t operation) {
  std::mt19937_64 random(seed * 1000 + operation);
  const size_t sizes[] = {0, 1, 100, 8'000, 9'000, 60'000, 700'000};
  return sizes[random() % std::size(sizes)];
}

TEST_CASE("operations go on through losses, losses during recoveries, and newcomers") {
  constexpr uint64_t kOperations = 60;
  constexpr size_t kMembersMax = 7;
  constexpr uint64_t kSeeds = 15;
  for (const Way& way : {kWays[0], kWays[2]}) {
    for (uint64_t seed = 0; seed < kSeeds; ++seed) {
      CAPTURE(way.name);
      CAPTURE(seed);
      std::mt19937_64 random(seed);
      Run run(3 + random() % 3, way);
      std::vector<Program> programs(kMembersMax);
      for (Program& program : programs) {
        program.tensors.resize(kOperations);
        program.works.resize(kOperations);
      }
      std::map<size_t, std::thread> threads;
      std::atomic<bool> stop{false};
      const auto begin = [&](size_t i) {
        threads[i] = std::thread([&, i, first = run.joined_at[i], window = 1 + random() % 6] {
          Program& program = programs[i];
          const auto in_flight = static_cast<uint64_t>(window);
          for (uint64_t op = first; op < kOperations + in_flight && !stop; ++op) {
            if (op >= first + in_flight) {
              const auto& work = program.works[op - in_flight];
              while (!stop && !work->wait(after(Clock::now(), 0.05))) {
              }
            }
            if (op >= kOperations) continue;
            program.tensors[op].assign(size_of(seed, op), contribution(i));
            program.works[op] = run.members[i]->start(all_reduce(program.tensors[op]));
          }
        });
      };
      for (size_t i = 0; i < run.members.size(); ++i) begin(i);
      for (int step = 0; step < 8; ++step) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 8000));
        if (random() % 3 == 0 && run.members.size() < kMembersMax) {
          run.members.push_back(std::make_unique<Member>(way));
          run.change({}, {run.members.size() - 1});
          if (run.joined_at[run.members.size() - 1] < kOperations) begin(run.members.size() - 1);
        } else if (run.alive.size() > 1) {
          auto victim = run.alive.begin();
          std::advance(victim, random() % run.alive.size());
          const size_t lost = *victim;
          run.members[lost]->hold(true);
          run.change({lost}, {});
        }
      }
      // Survivors come to their ends by themselves.
      for (auto& [i, thread] : threads) {
        if (run.alive.contains(i)) thread.join();
      }
      stop = true;
      for (auto& [i, thread] : threads) {
        if (thread.joinable()) thread.join();
      }
      for (uint64_t op = 0; op < kOperations; ++op) {
        CAPTURE(op);
        const std::vector<int64_t>* first = nullptr;
        for (const size_t i : run.alive) {
          if (run.joined_at[i] > op) continue;
          wait_well(programs[i].works[op]);
          const std::vector<int64_t>& tensor = programs[i].tensors[op];
          REQUIRE(tensor.size() == size_of(seed, op));
          check_contributions(*programs[i].works[op], tensor, run.index_of());
          if (first == nullptr) first = &tensor;
          REQUIRE(tensor == *first);
        }
      }
      for (auto& member : run.members) member->close();
    }
  }
}

}  // namespace
}  // namespace pccl::recovery
