// Received bytes: lent, kept, moved out of their ring, and their buffers used again.
#include "transport/payload.h"

#include <doctest/doctest.h>

#include <cstring>
#include <map>
#include <string>
#include <vector>

using namespace pccl::transport;

namespace {

// Holds records like a ring does, and remembers who asked.
class Holder final : public RecordHolder {
 public:
  bool hold(uint64_t record, Payload* payload) override {
    if (is_full) return false;
    held[record] = payload;
    return true;
  }
  void moved(uint64_t record, Payload* payload) override { held.at(record) = payload; }
  void release(uint64_t record) override {
    held.erase(record);
    released += 1;
  }

  bool is_full = false;
  std::map<uint64_t, Payload*> held;
  int released = 0;
};

std::string text_of(const Payload& payload) {
  return {reinterpret_cast<const char*>(payload.data()), payload.size()};
}

const std::byte* bytes_of(const std::string& text) {
  return reinterpret_cast<const std::byte*>(text.data());
}

}  // namespace

TEST_CASE("a lent payload points to the lender's bytes until it is kept") {
  BufferPool pool;
  std::string lender = "hello";
  Payload payload(bytes_of(lender), lender.size(), &pool);
  CHECK(payload.data() == bytes_of(lender));
  CHECK(payload.own_buffer() == nullptr);
  payload.keep();
  CHECK(payload.data() != bytes_of(lender));
  lender = "xxxxx";
  CHECK(text_of(payload) == "hello");
  const std::byte* kept = payload.data();
  payload.keep();
  CHECK(payload.data() == kept);
}

TEST_CASE("an empty payload needs no buffer to be kept") {
  BufferPool pool;
  Payload payload(nullptr, 0, &pool);
  payload.keep();
  CHECK(payload.data() == nullptr);
  CHECK(payload.own_buffer() == nullptr);
  Payload none;
  none.keep();
  CHECK(none.size() == 0);
}

TEST_CASE("a payload with a buffer of its own gives it back to the pool") {
  BufferPool pool;
  BufferPool::Buffer buffer = pool.take(1000);
  std::byte* bytes = buffer.bytes.get();
  {
    Payload payload(std::move(buffer), 1000, &pool);
    CHECK(payload.data() == bytes);
    CHECK(payload.own_buffer() == bytes);
    payload.keep();
    CHECK(payload.data() == bytes);
  }
  CHECK(pool.take(900).bytes.get() == bytes);
}

TEST_CASE("a kept record is held in place, follows moves, and is released once") {
  BufferPool pool;
  const auto holder = std::make_shared<Holder>();
  const std::string ring = "record";
  {
    Payload payload(bytes_of(ring), ring.size(), &pool, holder, 42);
    payload.keep();
    CHECK(holder->held.at(42) == &payload);
    CHECK(payload.data() == bytes_of(ring));
    Payload moved(std::move(payload));
    CHECK(holder->held.at(42) == &moved);
    Payload assigned;
    assigned = std::move(moved);
    CHECK(holder->held.at(42) == &assigned);
    CHECK(text_of(assigned) == "record");
  }
  CHECK(holder->released == 1);
  CHECK(holder->held.empty());
}

TEST_CASE("a record that is not kept is not the holder's business") {
  BufferPool pool;
  const auto holder = std::make_shared<Holder>();
  const std::string ring = "record";
  {
    Payload payload(bytes_of(ring), ring.size(), &pool, holder, 1);
    Payload moved(std::move(payload));
  }
  CHECK(holder->released == 0);
}

TEST_CASE("a record that the holder has no room for is copied") {
  BufferPool pool;
  const auto holder = std::make_shared<Holder>();
  holder->is_full = true;
  std::string ring = "record";
  {
    Payload payload(bytes_of(ring), ring.size(), &pool, holder, 1);
    payload.keep();
    ring = "??????";
    CHECK(text_of(payload) == "record");
    CHECK(payload.own_buffer() != nullptr);
  }
  CHECK(holder->released == 0);
}

TEST_CASE("a holder may take its record back: the bytes move out and stay") {
  BufferPool pool;
  const auto holder = std::make_shared<Holder>();
  std::string ring = "record";
  Payload payload(bytes_of(ring), ring.size(), &pool, holder, 1);
  payload.keep();
  holder->held.at(1)->move_out();
  ring = "??????";
  CHECK(text_of(payload) == "record");
  Payload moved(std::move(payload));
  CHECK(text_of(moved) == "record");
  moved.reset();
  CHECK(holder->released == 0);  // it took the record itself
}

TEST_CASE("a held payload that is overwritten releases its record") {
  BufferPool pool;
  const auto holder = std::make_shared<Holder>();
  const std::string ring = "ab";
  Payload first(bytes_of(ring), 1, &pool, holder, 1);
  Payload second(bytes_of(ring) + 1, 1, &pool, holder, 2);
  first.keep();
  second.keep();
  first = std::move(second);
  CHECK(holder->released == 1);
  CHECK(holder->held.count(1) == 0);
  CHECK(holder->held.at(2) == &first);
  CHECK(text_of(first) == "b");
}

TEST_CASE("the pool gives a buffer of at least the size, and not a far larger one") {
  BufferPool pool;
  for (const size_t size : {size_t{0}, size_t{1}, size_t{255}, size_t{257}, size_t{1} << 20}) {
    BufferPool::Buffer buffer = pool.take(size);
    REQUIRE(buffer.bytes);
    CHECK(buffer.capacity >= size);
    std::memset(buffer.bytes.get(), 1, buffer.capacity);
    pool.give_back(std::move(buffer));
  }
  CHECK(pool.take(1).capacity < 1 << 20);
}

TEST_CASE("the pool keeps no more than its limit") {
  BufferPool pool;
  constexpr size_t kSize = 1 << 20;
  std::vector<BufferPool::Buffer> buffers;
  for (size_t i = 0; i < 2 * BufferPool::kKeptBytesMax / kSize; ++i) {
    buffers.push_back(pool.take(kSize));
  }
  for (BufferPool::Buffer& buffer : buffers) pool.give_back(std::move(buffer));
  CHECK(pool.kept_bytes() == BufferPool::kKeptBytesMax);
  pool.give_back({});
  CHECK(pool.kept_bytes() == BufferPool::kKeptBytesMax);
}
