// Recovery with real connections: members as threads, and the test decides who is in.
#include <doctest/doctest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "operation_log_run.h"
#include "share.h"

namespace pccl::recovery {
namespace {

TEST_CASE("survivors complete an all_reduce in place although members stop in the middle") {
  int mixed = 0;
  for (const Way& way : kWays) {
    for (uint64_t seed = 0; seed < share(16); ++seed) {
      CAPTURE(way.name);
      CAPTURE(seed);
      std::mt19937_64 random(seed);
      const size_t world_size = 2 + random() % 4;
      Run run(world_size, way, seed % 2 == 0);
      const size_t count = 1 + random() % 2'000'000;
      const bool is_uniform = seed % 4 >= 2;
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
  if (test_divisor() == 1) CHECK(mixed > 0);
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
  const uint64_t seeds = share(15);
  for (const Way& way : {kWays[0], kWays[2]}) {
    for (uint64_t seed = 0; seed < seeds; ++seed) {
      CAPTURE(way.name);
      CAPTURE(seed);
      std::mt19937_64 random(seed);
      const bool leaves_pools = seed % 2 == 0;
      Run run(3 + random() % 3, way, leaves_pools);
      std::vector<Program> programs(kMembersMax);
      for (Program& program : programs) {
        program.tensors.resize(kOperations);
        program.works.resize(kOperations);
      }
      std::map<size_t, std::thread> threads;
      std::atomic<bool> stop{false};
      const auto begin = [&](size_t i) {
        threads[i] = std::thread([&, i, member = run.members[i].get(), first = run.joined_at[i],
                                  window = 1 + random() % 6] {
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
            program.works[op] = member->start(all_reduce(program.tensors[op]));
          }
        });
      };
      for (size_t i = 0; i < run.members.size(); ++i) begin(i);
      for (int step = 0; step < 8; ++step) {
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 8000));
        if (random() % 3 == 0 && run.members.size() < kMembersMax) {
          run.members.push_back(std::make_unique<Member>(way, leaves_pools));
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

RunCall broadcast(std::vector<int64_t>& tensor, int32_t root) {
  RunCall call = all_reduce(tensor);
  call.signature = {Collective::Broadcast, DataType::Int64, ReduceOp::Sum, root, tensor.size()};
  return call;
}

TEST_CASE("a broadcast goes on when others are lost, and ends on all survivors when its root is") {
  int ended = 0;
  for (const Way& way : {kWays[0], kWays[2]}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      CAPTURE(way.name);
      CAPTURE(seed);
      std::mt19937_64 random(seed);
      Run run(4, way);
      const size_t count = 1 + random() % 1'000'000;
      const size_t root = random() % 4;
      const size_t late = random() % 5;
      std::vector<std::vector<int64_t>> tensors(4);
      std::vector<std::shared_ptr<Work>> works(4);
      const auto begin = [&](size_t i) {
        tensors[i].assign(count, contribution(i));
        works[i] = run.members[i]->start(broadcast(tensors[i], static_cast<int32_t>(root)));
      };
      for (size_t i = 0; i < 4; ++i) {
        if (i != late) begin(i);
      }
      const size_t lost = random() % 4;
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
      run.members[lost]->hold(true);
      run.change({lost}, {});
      if (late < 4 && late != lost) begin(late);
      const Error first = outcome(works[*run.alive.begin()]);
      for (const size_t i : run.alive) {
        const Error error = outcome(works[i]);
        CHECK(error.kind == first.kind);
        if (error) {
          CHECK(error.kind == ErrorKind::MemberLost);
          CHECK(lost == root);
        } else {
          CHECK(tensors[i] == std::vector<int64_t>(count, contribution(root)));
        }
      }
      if (first) ended += 1;
      for (auto& member : run.members) member->close();
    }
  }
  CHECK(ended > 0);
}

TEST_CASE("a collective whose shape depends on the world ends alike on every survivor") {
  int ended = 0;
  int well = 0;
  for (uint64_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    Run run(3, kWays[2]);
    constexpr uint64_t kCount = 50'000;
    std::vector<std::vector<int64_t>> inputs(3);
    std::vector<std::vector<int64_t>> outputs(3);
    std::vector<std::shared_ptr<Work>> works(3);
    for (size_t i = 0; i < 3; ++i) {
      inputs[i].assign(kCount, contribution(i));
      outputs[i].assign(3 * kCount, 0);
      RunCall call;
      call.signature = {Collective::AllGather, DataType::Int64, ReduceOp::Sum, -1, kCount};
      for (size_t r = 0; r < 3; ++r) {
        auto* output = reinterpret_cast<std::byte*>(outputs[i].data() + r * kCount);
        call.blocks.push_back({nullptr, output, kCount});
        call.block_counts.push_back(kCount);
      }
      call.blocks[i].input = reinterpret_cast<const std::byte*>(inputs[i].data());
      call.quorum_id = run.quorum_id;
      works[i] = run.members[i]->start(std::move(call));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
    run.members[2]->hold(true);
    run.change({2}, {});
    const Error first = outcome(works[0]);
    const Error second = outcome(works[1]);
    CHECK(first.kind == second.kind);
    if (first) {
      CHECK(first.kind == ErrorKind::MemberLost);
      ended += 1;
    } else {
      CHECK(outputs[0] == outputs[1]);
      well += 1;
    }
    // The run goes on.
    std::vector<int64_t> tensor(10, contribution(0));
    std::vector<int64_t> other(10, contribution(1));
    const auto work = run.members[0]->start(all_reduce(tensor));
    wait_well(run.members[1]->start(all_reduce(other)));
    wait_well(work);
    CHECK(tensor == std::vector<int64_t>(10, sum_of({0, 1})));
    for (auto& member : run.members) member->close();
  }
  CHECK(ended > 0);
  CHECK(well > 0);
}

TEST_CASE("a call that was meant for an older quorum ends on every member, and the run goes on") {
  Run run(2, kWays[2]);
  const uint64_t old = run.quorum_id;
  run.members.push_back(std::make_unique<Member>(kWays[2]));
  run.change({}, {2});
  std::vector<std::vector<int64_t>> tensors(3, std::vector<int64_t>(5, 1));
  std::vector<std::shared_ptr<Work>> works(3);
  for (size_t i = 0; i < 3; ++i) {
    auto* data = reinterpret_cast<std::byte*>(tensors[i].data());
    RunCall call;
    call.signature = {Collective::Reduce, DataType::Int64, ReduceOp::Sum, 0, 5};
    call.blocks = {{data, data, 5}};
    call.quorum_id = i == 1 ? old : run.quorum_id;
    works[i] = run.members[i]->start(std::move(call));
  }
  for (const auto& work : works) CHECK(outcome(work).kind == ErrorKind::MemberLost);
  for (size_t i = 0; i < 3; ++i) {
    tensors[i].assign(5, contribution(i));
    works[i] = run.members[i]->start(all_reduce(tensors[i]));
  }
  for (const auto& work : works) wait_well(work);
  CHECK(tensors[0] == std::vector<int64_t>(5, sum_of({0, 1, 2})));
  for (auto& member : run.members) member->close();
}

TEST_CASE("a message to a rank of another quorum ends, and goes to nobody") {
  for (const bool is_held : {false, true}) {
    CAPTURE(is_held);
    Run run(4, kWays[0]);
    std::vector<std::vector<int64_t>> tensors(4, std::vector<int64_t>(10, 1));
    std::vector<std::shared_ptr<Work>> works;
    const auto call = [&] {
      // Ranks 2 and 3 of the first quorum are 0 and 1 of the next one, or nobody.
      works.push_back(run.members[3]->message(true, 1, 2, tensors[3]));
      works.push_back(run.members[2]->message(false, 1, 3, tensors[2]));
    };
    if (is_held) {
      for (const size_t i : {2, 3}) run.members[i]->hold(true);
      call();
    }
    run.change({0, 1}, {});
    if (!is_held) call();
    for (const auto& work : works) {
      const Error error = outcome(work);
      CHECK(error.kind == ErrorKind::MemberLost);
      CHECK(error.message.find("meant in quorum 1") != std::string::npos);
    }
    works = {run.members[3]->message(true, 2, 0, tensors[3]),
             run.members[2]->message(false, 2, 1, tensors[2])};
    for (const auto& work : works) wait_well(work);
    // One that waits for the next quorum hears that there is none.
    run.members[3]->hold(true);
    const auto waiting = run.members[3]->message(true, 2, 0, tensors[3]);
    run.members[3]->fail({ErrorKind::Aborted, "planted"});
    CHECK(outcome(waiting).message.find("planted") != std::string::npos);
    for (auto& member : run.members) member->close();
  }
}

TEST_CASE("weights are those of the members that contributed") {
  for (uint64_t seed = 0; seed < 12; ++seed) {
    CAPTURE(seed);
    std::mt19937_64 random(seed);
    Run run(3, kWays[2]);
    const size_t count = 1 + random() % 300'000;
    std::vector<std::vector<double>> tensors(3);
    std::vector<std::shared_ptr<Work>> works(3);
    const double weights[] = {0.5, 0, 3};
    for (size_t i = 0; i < 3; ++i) {
      // A contribution of no weight may be anything.
      tensors[i].assign(count, i == 1 ? NAN : static_cast<double>(i + 1));
      auto* data = reinterpret_cast<std::byte*>(tensors[i].data());
      RunCall call;
      call.signature = {Collective::AllReduce, DataType::Float64, ReduceOp::WeightedAvg, -1, count};
      call.blocks = {{data, data, count}};
      call.factor = weights[i];
      works[i] = run.members[i]->start(std::move(call));
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
    run.members[2]->hold(true);
    run.change({2}, {});
    wait_well(works[0]);
    wait_well(works[1]);
    CHECK(std::memcmp(tensors[0].data(), tensors[1].data(), count * sizeof(double)) == 0);
    for (const Contribution& range : works[0]->contributions()) {
      const bool has_all = range.members.size() == 3;
      CHECK(range.weight == (has_all ? 3.5 : 0.5));
      const double expected = has_all ? (0.5 * 1 + 3 * 3) / 3.5 : 1.0;
      const auto is_expected = [&](double value) { return std::abs(value - expected) < 1e-9; };
      const auto begin = tensors[0].begin();
      CHECK(std::all_of(begin + static_cast<ptrdiff_t>(range.begin),
                        begin + static_cast<ptrdiff_t>(range.end), is_expected));
    }
    for (auto& member : run.members) member->close();
  }
}

TEST_CASE("after an error each element is the input or the result, and the error says which") {
  int partly = 0;
  for (const Way& way : {kWays[0], kWays[2]}) {
    for (uint64_t seed = 0; seed < 12; ++seed) {
      CAPTURE(way.name);
      CAPTURE(seed);
      std::mt19937_64 random(seed);
      const bool is_uniform = seed % 3 == 2;
      Run run(3, way);
      const size_t count = 500'000 + random() % 1'500'000;
      std::vector<std::vector<int64_t>> tensors;
      for (size_t i = 0; i < 3; ++i) tensors.emplace_back(count, contribution(i));
      std::vector<std::shared_ptr<Work>> works;
      for (size_t i = 0; i < 3; ++i)
        works.push_back(run.members[i]->start(all_reduce(tensors[i], is_uniform)));
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
      // In some, one is lost before it ends: finals of two quorums.
      const bool loses = seed % 2 == 1;
      if (loses) {
        run.members[2]->hold(true);
        run.change({2}, {});
        std::this_thread::sleep_for(std::chrono::microseconds(random() % 1000));
      }
      run.members[0]->fail({ErrorKind::Aborted, "the test wants it."});
      for (const size_t i : run.alive) {
        REQUIRE(works[i]->wait(after(Clock::now(), kSoonSeconds)));
        std::vector<int64_t> expected(count, contribution(i));
        size_t results = 0;
        for (const Contribution& range : works[i]->contributions()) {
          const int64_t sum = sum_of(range.members.size() == 3 ? std::set<size_t>{0, 1, 2}
                                                               : std::set<size_t>{0, 1});
          for (uint64_t e = range.begin; e < range.end; ++e) expected[e] = sum;
          results += range.end - range.begin;
        }
        REQUIRE(tensors[i] == expected);
        if (!works[i]->error()) continue;
        const std::string& text = works[i]->error().message;
        CHECK((!is_uniform || results == 0 || results == count));
        const std::string held = results == 0       ? "The tensor holds its input."
                                 : results == count ? "The tensor holds the result."
                                                    : "The tensor holds the result in elements [";
        CHECK_MESSAGE(text.find(held) != std::string::npos, text);
        if (results > 0 && results < count) partly += 1;
      }
      for (auto& member : run.members) member->close();
    }
  }
  CHECK(partly > 0);
}

TEST_CASE(
    "a contribution that is no number is refused on every member, by name, and mixed in nowhere") {
  for (const bool is_lost : {false, true}) {
    CAPTURE(is_lost);
    Run run(4, kWays[0]);
    constexpr size_t kCount = 300'000;
    std::vector<std::vector<int64_t>> tensors;
    std::vector<std::shared_ptr<Work>> works(4);
    for (size_t i = 0; i < 4; ++i) tensors.emplace_back(kCount, contribution(i));
    const auto start = [&](size_t i) {
      RunCall call = all_reduce(tensors[i]);
      if (i == 1) call.nonfinite = 17;
      works[i] = run.members[i]->start(std::move(call));
    };
    for (const size_t i : {size_t{0}, size_t{3}}) start(i);
    if (is_lost) {
      // What stood still in one quorum and is refused in the next.
      run.members[3]->hold(true);
      run.change({3}, {});
    }
    for (const size_t i : {size_t{1}, size_t{2}}) start(i);
    const std::string name = "member " + transport::to_text(run.members[1]->address().member_id);
    for (const size_t i : run.alive) {
      REQUIRE(works[i]->wait(after(Clock::now(), kSoonSeconds)));
      const std::string& text = works[i]->error().message;
      CHECK(works[i]->error().kind == ErrorKind::NonFinite);
      CHECK_MESSAGE(text.find(i == 1 ? "this member" : name) != std::string::npos, text);
      CHECK_MESSAGE(text.find("element 17") != std::string::npos, text);
      CHECK(tensors[i] == std::vector<int64_t>(kCount, contribution(i)));
    }
    for (const size_t i : run.alive) works[i] = run.members[i]->start(all_reduce(tensors[i]));
    for (const size_t i : run.alive) {
      wait_well(works[i]);
      CHECK(tensors[i] == std::vector<int64_t>(kCount, sum_of(run.alive)));
    }
    for (auto& member : run.members) member->close();
  }
}

}  // namespace
}  // namespace pccl::recovery
