// Point-to-point messages and the monitored barrier, over real sockets and shared memory.
#include <doctest/doctest.h>

#include <algorithm>
#include <set>

#include "cluster.h"
#include "communicator.h"
#include "share.h"

using namespace pccl;
using enum DataType;

namespace {

// It repeats itself after 251 bytes, which divide no segment.
Bytes message(uint64_t number, uint64_t size) {
  const Bytes period =
      make(UInt8, 251, [=](uint64_t i) { return static_cast<double>((i * 31 + number) % 251); });
  Bytes bytes(size);
  for (uint64_t at = 0; at < size; at += period.size()) {
    std::copy_n(period.begin(), std::min<uint64_t>(period.size(), size - at),
                bytes.begin() + static_cast<ptrdiff_t>(at));
  }
  return bytes;
}

std::shared_ptr<Work> send(Rank& rank, const Bytes& bytes, int32_t destination, uint32_t tag = 0) {
  return rank.comm->send(bytes.data(), bytes.size(), UInt8, destination, tag, {});
}
std::shared_ptr<Work> recv(Rank& rank, Bytes& bytes, int32_t source, uint32_t tag = 0,
                           double timeout_seconds = 0) {
  return rank.comm->recv(bytes.data(), bytes.size(), UInt8, source, tag,
                         {.timeout_seconds = timeout_seconds});
}

// None, one, a prime, around a segment of either kind, more than window and ring.
const std::vector<uint64_t> kSizes = {0,        1, 997, (256 << 10) + 1, 512 << 10, (512 << 10) + 1,
                                      9'000'011};

void on_all_ways(int32_t size, const std::function<void(Rank&)>& body) {
  for (const Way& way : kWays) run_well({.size = size, .way = way}, body);
}

void expect_error(const Error& error, ErrorKind kind, const std::vector<std::string>& words) {
  expect(error.kind == kind, "another kind of error than: " + error.message);
  for (const std::string& word : words) {
    expect(error.message.find(word) != std::string::npos, "'" + word + "' in: " + error.message);
  }
}

}  // namespace

TEST_CASE("messages of every size arrive, whoever comes first") {
  on_all_ways(2, [](Rank& rank) {
    for (const bool is_receiver_first : {true, false}) {
      for (const uint64_t size : kSizes) {
        if (rank.rank == 0) {
          if (is_receiver_first) rank.meet();
          const Bytes bytes = message(size, size);
          const auto work = send(rank, bytes, 1);
          if (!is_receiver_first) rank.meet();
          finish(work);
        } else {
          Bytes bytes = blank(UInt8, size);
          if (!is_receiver_first) rank.meet();
          const auto work = recv(rank, bytes, 0);
          if (is_receiver_first) rank.meet();
          finish(work);
          expect(bytes == message(size, size), "the message");
          expect(work->source_rank() == 0, "its sender");
        }
        rank.meet();
      }
    }
  });
}

TEST_CASE("messages of one tag keep their order, those of different tags do not wait") {
  on_all_ways(2, [](Rank& rank) {
    constexpr uint64_t kMessages = 40;
    const auto size_of = [](uint64_t i) { return (i * 7919) % 70000; };
    std::vector<Bytes> bytes;
    std::vector<std::shared_ptr<Work>> works;
    for (uint64_t i = 0; i < kMessages; ++i) {
      bytes.push_back(rank.rank == 0 ? message(i, size_of(i)) : blank(UInt8, size_of(i)));
    }
    for (uint64_t i = 0; i < kMessages; ++i) {
      const auto tag = static_cast<uint32_t>(i % 4);
      if (rank.rank == 0) works.push_back(send(rank, bytes[i], 1, tag));
    }
    for (uint32_t tag = 4; tag-- > 0 && rank.rank == 1;) {
      for (uint64_t i = tag; i < kMessages; i += 4) works.push_back(recv(rank, bytes[i], 0, tag));
    }
    for (const auto& work : works) finish(work);
    for (uint64_t i = 0; i < kMessages; ++i) expect(bytes[i] == message(i, size_of(i)), "bytes");
  });
}

TEST_CASE("a receive from anybody takes one message of each sender, and says whose it was") {
  on_all_ways(5, [](Rank& rank) {
    for (const uint64_t size : {uint64_t{1}, uint64_t{3'000'017}}) {
      if (rank.rank == 0) {
        std::set<int32_t> senders;
        for (int i = 1; i < 5; ++i) {
          Bytes bytes = blank(UInt8, size);
          const auto work = recv(rank, bytes, -1, 3);
          finish(work);
          const auto sender = static_cast<uint64_t>(work->source_rank());
          expect(bytes == message(sender, size), "the bytes of that sender");
          senders.insert(work->source_rank());
        }
        expect(senders == std::set<int32_t>{1, 2, 3, 4}, "each sender once");
      } else {
        finish(send(rank, message(static_cast<uint64_t>(rank.rank), size), 0, 3));
      }
      rank.meet();
    }
  });
}

TEST_CASE("all ranks send to all and receive from all at a time") {
  on_all_ways(4, [](Rank& rank) {
    const auto number = [](int32_t from, int32_t to) {
      return static_cast<uint64_t>(from) * 4 + static_cast<uint64_t>(to);
    };
    std::vector<Bytes> sent(4);
    std::vector<Bytes> received(4);
    std::vector<std::shared_ptr<Work>> works;
    for (int32_t peer = 0; peer < 4; ++peer) {
      if (peer == rank.rank) continue;
      const auto at = static_cast<size_t>(peer);
      sent[at] = message(number(rank.rank, peer), 2'000'003);
      received[at] = blank(UInt8, 2'000'003);
      works.push_back(send(rank, sent[at], peer));
      works.push_back(recv(rank, received[at], peer));
    }
    for (const auto& work : works) finish(work);
    for (int32_t peer = 0; peer < 4; ++peer) {
      if (peer == rank.rank) continue;
      expect(received[static_cast<size_t>(peer)] == message(number(peer, rank.rank), 2'000'003),
             "the message of each");
    }
  });
}

TEST_CASE("messages that nobody has received do not hold up a collective") {
  std::vector<const char*> algorithms = {"auto",     "ring",     "direct",
                                         "doubling", "exchange", "double_binary_tree"};
  algorithms.resize(share(algorithms.size()));
  for (const char* algorithm : algorithms) {
    for (const Way& way : kWays) {
      run_well({.size = 2, .way = way, .algorithm = algorithm}, [](Rank& rank) {
        // More than may be under way without a grant.
        constexpr uint64_t kSize = 3 << 20;
        std::vector<Bytes> bytes;
        std::vector<std::shared_ptr<Work>> sends;
        for (uint64_t i = 0; i < 5; ++i) {
          bytes.push_back(rank.rank == 0 ? message(i, kSize) : blank(UInt8, kSize));
          if (rank.rank != 0) continue;
          sends.push_back(send(rank, bytes.back(), 1, static_cast<uint32_t>(i)));
        }
        for (const uint64_t count : {1, 65537, 700'001}) {
          Bytes tensor = make(Float32, count, [](uint64_t) { return 1; });
          finish(rank.comm->all_reduce(tensor.data(), tensor.data(), count, Float32, ReduceOp::Sum,
                                       1, {}));
          expect(tensor == make(Float32, count, [](uint64_t) { return 2; }), "the sum");
        }
        // The last one is taken first.
        for (uint64_t i = 5; i-- > 0 && rank.rank == 1;) {
          finish(recv(rank, bytes[i], 0, static_cast<uint32_t>(i)));
          expect(bytes[i] == message(i, kSize), "the message");
        }
        for (const auto& work : sends) finish(work);
      });
    }
  }
}

TEST_CASE("calls that one rank makes far ahead wait for the other") {
  on_all_ways(2, [](Rank& rank) {
    constexpr uint64_t kCalls = 40;
    constexpr uint64_t kCount = 200'003;
    std::vector<Bytes> tensors;
    std::vector<std::shared_ptr<Work>> works;
    for (uint64_t i = 0; i < kCalls; ++i) {
      tensors.push_back(make(Float32, kCount, [i](uint64_t) { return static_cast<double>(i); }));
    }
    if (rank.rank == 1) rank.meet();
    for (Bytes& tensor : tensors) {
      works.push_back(rank.comm->all_reduce(tensor.data(), tensor.data(), kCount, Float32,
                                            ReduceOp::Sum, 1, {}));
      if (rank.rank == 1) finish(works.back());
    }
    if (rank.rank == 0) rank.meet();
    for (uint64_t i = 0; i < kCalls; ++i) {
      finish(works[i]);
      expect(tensors[i] == make(Float32, kCount, [i](uint64_t) { return 2.0 * double(i); }), "sum");
    }
  });
}

TEST_CASE("a message of another size or dtype is an error at the receiver that names both") {
  on_all_ways(2, [](Rank& rank) {
    if (rank.rank == 0) {
      finish(send(rank, message(0, 10), 1));
      finish(send(rank, message(0, 10), 1));
      finish(send(rank, message(7, 10), 1));
    } else {
      Bytes bytes = blank(UInt8, 12);
      const Bytes before = bytes;
      expect_error(outcome(rank.comm->recv(bytes.data(), 12, UInt8, 0, 0, {})),
                   ErrorKind::CallMismatch, {"uint8[10]", "uint8[12]", "unchanged"});
      expect_error(outcome(rank.comm->recv(bytes.data(), 10, Int8, 0, 0, {})),
                   ErrorKind::CallMismatch, {"uint8[10]", "int8[10]"});
      expect(bytes == before, "the tensor is unchanged");
      // The group is not broken, and the next message is the next one.
      bytes.resize(10);
      finish(recv(rank, bytes, 0));
      expect(bytes == message(7, 10), "the third message");
    }
    finish(rank.comm->barrier({}));
  });
}

TEST_CASE("a receive whose message does not come ends in time, and the group goes on") {
  on_all_ways(2, [](Rank& rank) {
    if (rank.rank == 1) {
      Bytes bytes = blank(UInt8, 10);
      expect_error(outcome(recv(rank, bytes, 0, 9, 0.1)), ErrorKind::Timeout,
                   {"tag 9", "rank 0", "unchanged"});
      expect_error(outcome(recv(rank, bytes, -1, 9, 0.1)), ErrorKind::Timeout, {"any rank"});
    }
    finish(rank.comm->barrier({}));
    if (rank.rank == 0) finish(send(rank, message(1, 10), 1, 9));
    if (rank.rank == 1) {
      Bytes bytes = blank(UInt8, 10);
      finish(recv(rank, bytes, 0, 9));
      expect(bytes == message(1, 10), "a later message");
    }
  });
}

TEST_CASE("a message that was sent before its sender left can still be received") {
  on_all_ways(2, [](Rank& rank) {
    if (rank.rank == 0) {
      finish(send(rank, message(3, 70'000), 1, 1));
      rank.context->close();
      rank.meet();
    } else {
      rank.meet();
      Bytes bytes = blank(UInt8, 70'000);
      finish(recv(rank, bytes, 0, 1));
      expect(bytes == message(3, 70'000), "the message");
      expect_error(outcome(recv(rank, bytes, 0, 2)), ErrorKind::MemberLost, {"rank 0", "left"});
    }
  });
}

TEST_CASE("a monitored barrier lets all pass when all are there") {
  on_all_ways(4, [](Rank& rank) {
    for (int i = 0; i < 5; ++i) rank.comm->monitored_barrier(kSoonSeconds, i % 2 == 0);
  });
}

TEST_CASE("a monitored barrier names who is missing: the first, or all") {
  for (const bool wait_all_ranks : {false, true}) {
    run_well({.size = 4}, [&](Rank& rank) {
      const bool is_missing = rank.rank == 1 || rank.rank == 3;
      std::string message;
      try {
        if (!is_missing) rank.comm->monitored_barrier(0.4, wait_all_ranks);
      } catch (const CollectiveTimeout& error) {
        message = error.what();
      }
      if (rank.rank == 0) {
        expect(message.find(wait_all_ranks ? "Ranks 1, 3 failed" : "Rank 1 failed") !=
                   std::string::npos,
               "the missing ones in: " + message);
      } else if (!is_missing) {
        expect(message.find("Rank 0 failed to pass") != std::string::npos, "rank 0: " + message);
      }
      // The group is as good as before.
      rank.meet();
      finish(rank.comm->barrier({}));
    });
  }
}
