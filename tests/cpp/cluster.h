// N ranks as N threads with real sockets or real shared memory, each with a context of its own.
#pragma once

#include <doctest/doctest.h>

#include <barrier>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "communicator.h"
#include "kernels_reference.h"

namespace pccl {

using Bytes = std::vector<std::byte>;

// For what must happen: long enough for a loaded machine under a sanitizer.
inline constexpr double kSoonSeconds = 60;

struct Way {
  const char* name;
  int sockets;
  bool shared_memory;
};
inline const std::vector<Way> kWays = {
    {"TCP", 1, false}, {"TCP, 3 sockets", 3, false}, {"memory", 1, true}};

struct World {
  int32_t size = 2;
  Way way = kWays[0];
  std::string algorithm = "auto";
  double timeout_seconds = kSoonSeconds;
};

inline std::shared_ptr<Context> make_context(const Way& way) {
  return std::make_shared<Context>(transport::EndpointOptions{.run = "test",
                                                              .bind_host = "127.0.0.1",
                                                              .sockets = way.sockets,
                                                              .shared_memory = way.shared_memory,
                                                              .connect_timeout_seconds = 20});
}

// Checks on the threads of ranks: a failed one ends the rank.
inline void expect(bool is_true, const std::string& what) {
  if (!is_true) throw std::runtime_error("expected: " + what);
}

inline void finish(const std::shared_ptr<Work>& work) {
  expect(work->wait(after(Clock::now(), 2 * kSoonSeconds)), work->operation + " ends");
  if (work->error()) throw_error(work->error());
}

// How `work` ends, as an error or none.
inline Error outcome(const std::shared_ptr<Work>& work) {
  expect(work->wait(after(Clock::now(), 2 * kSoonSeconds)), work->operation + " ends");
  return work->error();
}

// What one rank sees.
class Rank {
 public:
  Rank(int32_t own, const World& its_world, std::barrier<>& all, std::vector<Bytes>& published)
      : rank(own), world(its_world), all_(all), context(make_context(world.way)) {
    published[static_cast<size_t>(rank)] = context->address();
    meet();
    addresses = published;
    comm = group("world", {});
  }
  // A group of these ranks, or of all.
  std::unique_ptr<Communicator> group(const std::string& name, const std::vector<int32_t>& ranks) {
    std::vector<Bytes> members;
    int32_t own = rank;
    for (size_t i = 0; i < ranks.size(); ++i) {
      members.push_back(addresses[static_cast<size_t>(ranks[i])]);
      if (ranks[i] == rank) own = static_cast<int32_t>(i);
    }
    return std::make_unique<Communicator>(
        context, name, own, ranks.empty() ? addresses : members,
        CommunicatorOptions{world.timeout_seconds, world.algorithm});
  }
  // All threads meet here, without any message. Not after a failed expectation.
  void meet() { all_.arrive_and_wait(); }
  void leave() { comm.reset(); }
  // Every rank must have called this with equal bytes, in equal order.
  void same_everywhere(const Bytes& bytes) {
    const std::string_view view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    digest = (digest ^ std::hash<std::string_view>{}(view)) * 0x100000001b3;
  }

  const int32_t rank;
  const World& world;

 private:
  std::barrier<>& all_;

 public:
  std::shared_ptr<Context> context;
  std::vector<Bytes> addresses;
  std::unique_ptr<Communicator> comm;
  uint64_t digest = 0;
};

struct Ran {
  std::vector<std::string> errors;  // by rank, empty where all went well
  std::vector<uint64_t> digests;
};

inline Ran run(const World& world, const std::function<void(Rank&)>& body) {
  const auto size = static_cast<size_t>(world.size);
  Ran ran{std::vector<std::string>(size), std::vector<uint64_t>(size)};
  std::vector<Bytes> published(size);
  std::barrier<> all(world.size);
  std::vector<std::thread> threads;
  for (int32_t r = 0; r < world.size; ++r) {
    threads.emplace_back([&, r] {
      const auto index = static_cast<size_t>(r);
      try {
        Rank rank(r, world, all, published);
        body(rank);
        ran.digests[index] = rank.digest;
      } catch (const std::exception& error) {
        ran.errors[index] = error.what();
        all.arrive_and_drop();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return ran;
}

// Runs `body` on every rank; all must end well and with the same digest.
inline void run_well(const World& world, const std::function<void(Rank&)>& body) {
  INFO("world of ", world.size, ", ", std::string(world.way.name), ", ", world.algorithm);
  const Ran ran = run(world, body);
  for (size_t r = 0; r < ran.errors.size(); ++r) {
    CHECK_MESSAGE(ran.errors[r].empty(), "rank ", r, ": ", ran.errors[r]);
    CHECK(ran.digests[r] == ran.digests[0]);
  }
}

// --- values --------------------------------------------------------------------------------------

// One element; complex numbers get an imaginary part of 0.
inline void put(Bytes& bytes, DataType dtype, double value) {
  const auto append = [&bytes](auto element) {
    const auto* begin = reinterpret_cast<const std::byte*>(&element);
    bytes.insert(bytes.end(), begin, begin + sizeof(element));
  };
  switch (dtype) {
    case DataType::Float64:
      return append(value);
    case DataType::Float32:
      return append(static_cast<float>(value));
    case DataType::Float16:
      return append(reference::reference_encode(reference::kFloat16Shape, value));
    case DataType::BFloat16:
      return append(reference::reference_encode(reference::kBFloat16Shape, value));
    case DataType::Float8:
    case DataType::UInt8:
      return append(static_cast<uint8_t>(value));
    case DataType::Bool:
      return append(static_cast<uint8_t>(value != 0));
    case DataType::Int8:
      return append(static_cast<int8_t>(value));
    case DataType::Int16:
      return append(static_cast<int16_t>(value));
    case DataType::Int32:
      return append(static_cast<int32_t>(value));
    case DataType::Int64:
      return append(static_cast<int64_t>(value));
    case DataType::UInt16:
      return append(static_cast<uint16_t>(value));
    case DataType::UInt32:
      return append(static_cast<uint32_t>(value));
    case DataType::UInt64:
      return append(static_cast<uint64_t>(value));
    case DataType::Complex64:
      append(static_cast<float>(value));
      return append(0.0F);
    case DataType::Complex128:
      append(value);
      return append(0.0);
  }
}

template <typename Value>
Bytes make(DataType dtype, uint64_t count, const Value& value) {
  if (dtype == DataType::Float32) {  // the frequent one, at the speed that sanitizers leave
    std::vector<float> elements(count);
    for (uint64_t i = 0; i < count; ++i) elements[i] = static_cast<float>(value(i));
    const auto* begin = reinterpret_cast<const std::byte*>(elements.data());
    return {begin, begin + count * sizeof(float)};
  }
  Bytes bytes;
  bytes.reserve(count * element_bytes(dtype));
  for (uint64_t i = 0; i < count; ++i) put(bytes, dtype, value(i));
  return bytes;
}

// Bytes that no result has.
inline Bytes blank(DataType dtype, uint64_t count) {
  return {count * element_bytes(dtype), std::byte{0xA5}};
}

}  // namespace pccl
