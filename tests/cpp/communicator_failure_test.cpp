// What happens when calls differ, members go, time is up or somebody gives up: an error at every
// rank, in words, and never a hang.
#include <doctest/doctest.h>

#include <atomic>
#include <thread>

#include "cluster.h"
#include "communicator.h"

using namespace pccl;
using enum DataType;

namespace {

constexpr uint64_t kCount = 997;

std::shared_ptr<Work> all_reduce(Communicator& comm, Bytes& tensor, double timeout_seconds = 0,
                                 DataType dtype = Float32, ReduceOp op = ReduceOp::Sum) {
  return comm.all_reduce(tensor.data(), tensor.data(), tensor.size() / element_bytes(dtype), dtype,
                         op, 1, {.timeout_seconds = timeout_seconds});
}

void expect_error(const Error& error, ErrorKind kind, const std::vector<std::string>& words) {
  expect(error.kind == kind, "kind " + std::to_string(static_cast<int>(kind)) + ", not " +
                                 std::to_string(static_cast<int>(error.kind)) + ": " +
                                 error.message);
  for (const std::string& word : words) {
    expect(error.message.find(word) != std::string::npos, "'" + word + "' in: " + error.message);
  }
}

using Launch = std::function<std::shared_ptr<Work>(Rank&, Bytes&)>;

// Rank 1 calls `odd`, the others `usual`: all of them must learn of both calls.
void check_mismatch(const Launch& usual, const Launch& odd, const std::vector<std::string>& words) {
  for (const Way& way : kWays) {
    for (const int32_t world_size : {2, 3, 5}) {
      run_well({.size = world_size, .way = way}, [&](Rank& rank) {
        Bytes tensor = blank(Float32, kCount * 8);
        const Launch& launch = rank.rank == 1 ? odd : usual;
        Error error = outcome(launch(rank, tensor));
        // Who was done before the others knew hears of it in the next call.
        if (!error) error = outcome(rank.comm->barrier({}));
        expect_error(error, ErrorKind::CallMismatch, words);
        expect(!rank.comm->error().empty(), "the group knows that it is broken");
        rank.meet();
      });
    }
  }
}

std::shared_ptr<Work> reduce_floats(Rank& rank, Bytes& tensor, uint64_t count) {
  return rank.comm->all_reduce(tensor.data(), tensor.data(), count, Float32, ReduceOp::Sum, 1, {});
}

}  // namespace

TEST_CASE("calls with different counts are an error on every rank that names both") {
  check_mismatch([](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount); },
                 [](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount + 1); },
                 {"float32[997]", "float32[998]", "different calls"});
}

TEST_CASE("an empty call against one that is not is an error on every rank that names both") {
  check_mismatch([](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount); },
                 [](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, 0); },
                 {"float32[997]", "all_reduce(float32, sum)"});
}

TEST_CASE("calls with different dtypes are an error on every rank that names both") {
  check_mismatch([](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount); },
                 [](Rank& rank, Bytes& tensor) {
                   return rank.comm->all_reduce(tensor.data(), tensor.data(), kCount, Int32,
                                                ReduceOp::Sum, 1, {});
                 },
                 {"float32[997]", "int32[997]"});
}

TEST_CASE("calls with different operators are an error on every rank that names both") {
  check_mismatch([](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount); },
                 [](Rank& rank, Bytes& tensor) {
                   return rank.comm->all_reduce(tensor.data(), tensor.data(), kCount, Float32,
                                                ReduceOp::Max, 1, {});
                 },
                 {"sum", "max"});
}

TEST_CASE("different collectives are an error on every rank that names both") {
  check_mismatch([](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount); },
                 [](Rank& rank, Bytes& tensor) {
                   return rank.comm->broadcast(tensor.data(), kCount, Float32, 1, {});
                 },
                 {"all_reduce", "broadcast"});
  check_mismatch([](Rank& rank, Bytes& /*tensor*/) { return rank.comm->barrier({}); },
                 [](Rank& rank, Bytes& tensor) { return reduce_floats(rank, tensor, kCount); },
                 {"all_reduce", "barrier"});
}

TEST_CASE("different roots are an error on every rank that names both") {
  check_mismatch(
      [](Rank& rank, Bytes& tensor) {
        return rank.comm->broadcast(tensor.data(), kCount, Float32, 0, {});
      },
      [](Rank& rank, Bytes& tensor) {
        return rank.comm->broadcast(tensor.data(), kCount, Float32, 1, {});
      },
      {"root 0", "root 1"});
}

TEST_CASE("a gather that expects another size than is sent is an error that names the sender") {
  run_well({.size = 3}, [](Rank& rank) {
    Bytes tensor = blank(Float32, 10);
    Bytes space = blank(Float32, 30);
    const std::vector<Block> blocks = {
        {space.data(), 10}, {space.data() + 40, 9}, {space.data() + 76, 10}};
    Error error = outcome(rank.comm->gather({tensor.data(), 10}, blocks, Float32, 0, {}));
    if (!error) error = outcome(rank.comm->barrier({}));
    expect_error(error, ErrorKind::CallMismatch, {"rank 1", "40 bytes", "36"});
    rank.meet();
  });
}

TEST_CASE(
    "abort() ends what runs on every rank, with the reason, also where nothing was sent yet") {
  for (const Way& way : kWays) {
    for (const bool is_connected : {true, false}) {
      run_well({.size = 4, .way = way}, [&](Rank& rank) {
        if (is_connected) finish(rank.comm->barrier({}));
        rank.meet();
        Bytes tensor = blank(Float32, 2'000'003);
        if (rank.rank == 3) {
          rank.comm->abort("I have had enough");
          expect_error(outcome(all_reduce(*rank.comm, tensor)), ErrorKind::Aborted,
                       {"I have had enough", "before this call"});
        } else {
          expect_error(outcome(all_reduce(*rank.comm, tensor)), ErrorKind::Aborted,
                       {"I have had enough", "rank 3"});
        }
        rank.meet();
      });
    }
  }
}

// With more ranks the first whose time is up names its neighbour, who may itself wait for another.
TEST_CASE("when the time is up, every rank that waits says for whom; the late one hears of it") {
  for (const Way& way : kWays) {
    for (const int32_t world_size : {2, 3}) {
      run_well({.size = world_size, .way = way}, [](Rank& rank) {
        const int32_t late = rank.world.size - 1;
        Bytes tensor = blank(Float32, kCount);
        if (rank.rank != late) {
          const TimePoint begin = Clock::now();
          const Error error = outcome(all_reduce(*rank.comm, tensor, 0.3));
          const std::string whom = rank.world.size == 2 ? "waiting for rank 1" : "waiting for rank";
          expect_error(error, ErrorKind::Timeout, {"deadline", whom, "all_reduce(float32[997]"});
          expect(Clock::now() - begin > std::chrono::milliseconds(250), "not before its time");
        }
        rank.meet();
        if (rank.rank == late) {
          expect_error(outcome(all_reduce(*rank.comm, tensor)), ErrorKind::Timeout, {"told by"});
        }
        rank.meet();
      });
    }
  }
}

TEST_CASE("a rank that leaves is named by those who still need it") {
  for (const Way& way : kWays) {
    run_well({.size = 3, .way = way}, [](Rank& rank) {
      Bytes tensor = blank(Float32, kCount);
      finish(all_reduce(*rank.comm, tensor));
      if (rank.rank == 1) {
        rank.context->close();
      } else {
        expect_error(outcome(all_reduce(*rank.comm, tensor)), ErrorKind::MemberLost,
                     {"rank 1", "has left"});
      }
      rank.meet();
    });
  }
}

TEST_CASE("who is done leaves, and the others are not disturbed") {
  for (const Way& way : kWays) {
    for (int round = 0; round < 10; ++round) {
      run_well({.size = 5, .way = way}, [](Rank& rank) {
        Bytes tensor = make(Float32, 65537, [](uint64_t) { return 1; });
        finish(rank.comm->all_reduce(tensor.data(), tensor.data(), 65537, Float32, ReduceOp::Sum, 1,
                                     {.is_urgent = false}));
        expect(tensor == make(Float32, 65537, [](uint64_t) { return 5; }), "the sum");
      });
    }
  }
}

TEST_CASE("a member that was never there cannot be reached, and every rank hears of it") {
  run_well({.size = 3}, [](Rank& rank) {
    std::vector<Bytes> members = rank.addresses;
    {
      const auto gone = make_context(kWays[0]);
      members.push_back(gone->address());
    }
    Communicator comm(rank.context, "with a ghost", rank.rank, members, {kSoonSeconds});
    Bytes tensor = blank(Float32, kCount);
    expect_error(outcome(all_reduce(comm, tensor)), ErrorKind::Connect, {"rank 3", "refused"});
    rank.meet();
  });
}

TEST_CASE("another group of the same members goes on when one is broken") {
  for (const Way& way : kWays) {
    run_well({.size = 3, .way = way}, [](Rank& rank) {
      const auto other = rank.group("other", {});
      Bytes tensor = blank(Float32, kCount);
      rank.meet();
      if (rank.rank == 0) rank.comm->abort("broken");
      const Error error = outcome(all_reduce(*rank.comm, tensor));
      expect_error(error, ErrorKind::Aborted, {"broken"});
      for (int i = 0; i < 10; ++i) {
        Bytes ones = make(Float32, 65537, [](uint64_t) { return 1; });
        finish(all_reduce(*other, ones));
        expect(ones == make(Float32, 65537, [](uint64_t) { return 3; }), "the other group's sum");
      }
      rank.meet();
    });
  }
}

TEST_CASE("what lay in the mailbox of a broken group is credit again for the others") {
  for (const Way& way : kWays) {
    run_well({.size = 2, .way = way}, [](Rank& rank) {
      const auto other = rank.group("other", {});
      // Twelve times what may be under way without a grant; each round breaks a group of its own.
      for (int round = 0; round < 6; ++round) {
        const auto doomed = rank.group("doomed " + std::to_string(round), {});
        rank.meet();
        Bytes tensor = blank(Float32, 1 << 20);
        std::vector<std::shared_ptr<Work>> works;
        for (int i = 0; i < 4 && rank.rank == 0; ++i) {
          works.push_back(doomed->broadcast(tensor.data(), 1 << 20, Float32, 0, {}));
        }
        rank.meet();
        if (rank.rank == 1) doomed->abort("no more");
        for (const auto& work : works) expect_error(outcome(work), ErrorKind::Aborted, {"no more"});
        rank.meet();
      }
      Bytes ones = make(Float32, 300'007, [](uint64_t) { return 1; });
      finish(all_reduce(*other, ones));
      expect(ones == make(Float32, 300'007, [](uint64_t) { return 2; }), "the sum");
      rank.meet();
    });
  }
}

TEST_CASE("frames for a group that is never made here do no harm") {
  for (const Way& way : kWays) {
    run_well({.size = 2, .way = way}, [](Rank& rank) {
      finish(rank.comm->barrier({}));
      std::unique_ptr<Communicator> lonely;
      Bytes tensor = blank(Float32, 100'003);
      std::shared_ptr<Work> work;
      if (rank.rank == 0) {
        lonely = rank.group("lonely", {});
        work = all_reduce(*lonely, tensor, 0.3);
      }
      finish(rank.comm->barrier({}));
      if (work) expect_error(outcome(work), ErrorKind::Timeout, {"rank 1"});
      rank.meet();
    });
  }
}

TEST_CASE("calls while the context closes end with an error, each of them") {
  for (int round = 0; round < 20; ++round) {
    run_well({.size = 2, .way = kWays[round % 3]}, [](Rank& rank) {
      finish(rank.comm->barrier({}));
      std::atomic<int> calls{0};
      std::atomic<int> unended{0};
      std::vector<std::thread> threads;
      for (int t = 0; t < 3; ++t) {
        threads.emplace_back([&] {
          try {
            while (true) {
              calls += 1;
              calls.notify_all();
              Bytes byte(1);
              const auto work = rank.comm->recv(byte.data(), 1, UInt8, 1 - rank.rank, 5, {});
              if (!work->wait(after(Clock::now(), kSoonSeconds))) unended += 1;
              rank.comm->error();
            }
          } catch (const Aborted&) {
          }
        });
      }
      for (int seen = calls; seen < 3; seen = calls) calls.wait(seen);
      rank.context->close();
      for (std::thread& thread : threads) thread.join();
      expect(unended == 0, "every work ends");
      rank.meet();
    });
  }
}

TEST_CASE("a closed group or context says so") {
  run_well({.size = 2}, [](Rank& rank) {
    Bytes tensor = blank(Float32, kCount);
    const auto other = rank.group("other", {});
    other->close();
    expect_error(outcome(all_reduce(*other, tensor)), ErrorKind::Aborted, {"closed"});
    rank.meet();
    rank.context->close();
    try {
      all_reduce(*rank.comm, tensor);
      expect(false, "a call on a closed context throws");
    } catch (const Aborted&) {
    }
    expect(rank.comm->error().find("closed") != std::string::npos, "error() says it");
  });
}
