// Numbers of frames: kept until acknowledged, counted once.
#include "transport/window.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "transport/connection.h"

using namespace pccl;
using namespace pccl::transport;

namespace {

class FakeLink final : public Link {
 public:
  void flush() override {}
  void abandon(const FrameOwner* /*owner*/) override {}
  bool has_unsent() const override { return false; }
  void shutdown_writing() override {}
  void cut() override {}
};

class Owner final : public FrameOwner {
 public:
  void on_sent(uint64_t /*cookie*/) override {}
};

OutFrame frame(std::vector<std::byte>& payload, FrameOwner* owner, bool stays) {
  OutFrame frame;
  frame.header.length = static_cast<uint32_t>(payload.size());
  frame.payload = payload.data();
  frame.owner = owner;
  frame.stays = stays;
  return frame;
}

}  // namespace

TEST_CASE("what is not kept is gone when it is written, in any order") {
  SendWindow window(nullptr);
  FakeLink link;
  SentFrame& first = window.add({}, link);
  SentFrame& second = window.add({}, link);
  window.on_written(second);
  CHECK(first.frame.header.sequence == 0);
  window.on_written(first);
  CHECK_FALSE(window.has_unacknowledged());
}

TEST_CASE("frames are numbered in order, and a lost carrier's come again in order") {
  SendWindow window(nullptr);
  window.keep();
  FakeLink one;
  FakeLink other;
  std::vector<SentFrame*> frames;
  for (uint32_t i = 0; i < 10; ++i) {
    frames.push_back(&window.add({}, i % 2 == 0 ? one : other));
    CHECK(frames.back()->frame.header.sequence == i);
  }
  for (uint32_t i = 0; i < 6; ++i) window.on_written(*frames[i]);
  CHECK(window.acknowledge(3));
  CHECK(window.has_unacknowledged());
  window.lose(one);
  CHECK(window.has_lost());
  for (const uint32_t expected : {4U, 6U, 8U}) {
    SentFrame* again = window.take_lost(other);
    REQUIRE(again != nullptr);
    CHECK(again->frame.header.sequence == expected);
    CHECK(again->was_begun == (expected == 4));
  }
  CHECK(window.take_lost(other) == nullptr);
  // Acknowledged while it is being written again: it is written to its end.
  CHECK(window.acknowledge(10));
  CHECK_FALSE(window.has_unacknowledged());
  CHECK(frames[4]->frame.header.sequence == 4);
  for (uint32_t i = 4; i < 10; ++i) {
    if (i != 5) window.on_written(*frames[i]);
  }
  CHECK(window.add({}, one).frame.header.sequence == 10);
}

TEST_CASE("an acknowledgement of more than was sent is refused, an old one changes nothing") {
  SendWindow window(nullptr);
  window.keep();
  FakeLink link;
  for (int i = 0; i < 3; ++i) window.on_written(window.add({}, link));
  CHECK_FALSE(window.acknowledge(4));
  CHECK(window.acknowledge(2));
  CHECK(window.acknowledge(1));
  CHECK(window.acknowledged() == 2);
  CHECK(window.acknowledge(3));
}

TEST_CASE(
    "a payload that does not stay is copied when it is written, one that stays when its owner "
    "goes") {
  SendWindow window(nullptr);
  window.keep();
  FakeLink link;
  Owner owner;
  std::vector<std::byte> bytes(100, std::byte{1});
  SentFrame& stays = window.add(frame(bytes, &owner, true), link);
  SentFrame& moves = window.add(frame(bytes, &owner, false), link);
  window.on_written(stays);
  window.on_written(moves);
  CHECK(stays.frame.bytes() == bytes.data());
  CHECK(moves.frame.bytes() != bytes.data());
  window.detach(&owner);
  CHECK(stays.frame.owner == nullptr);
  std::fill(bytes.begin(), bytes.end(), std::byte{2});
  for (const SentFrame* sent : {&stays, &moves}) CHECK(sent->frame.bytes()[99] == std::byte{1});
}

TEST_CASE("the window is full by frames or by bytes, and has room after an acknowledgement") {
  FakeLink link;
  SendWindow by_frames(nullptr);
  by_frames.keep();
  for (uint32_t i = 0; i < SendWindow::kFramesMax; ++i) {
    REQUIRE(by_frames.has_room());
    by_frames.on_written(by_frames.add({}, link));
  }
  CHECK_FALSE(by_frames.has_room());
  CHECK(by_frames.acknowledge(1));
  CHECK(by_frames.has_room());
  SendWindow by_bytes(nullptr);
  by_bytes.keep();
  std::vector<std::byte> payload(kPayloadBytesMax);
  uint32_t count = 0;
  for (; by_bytes.has_room(); ++count) {
    OutFrame large;
    large.header.length = kPayloadBytesMax;
    by_bytes.on_written(by_bytes.add(std::move(large), link));
  }
  CHECK(count == SendWindow::kBytesMax / (kPayloadBytesMax + sizeof(FrameHeader)) + 1);
  CHECK(by_bytes.acknowledge(count));
  CHECK(by_bytes.has_room());
}

TEST_CASE("every number is consumed once, in any order") {
  constexpr uint32_t kSeed = 5;
  CAPTURE(kSeed);
  std::mt19937 random(kSeed);
  ReceiveWindow window;
  std::vector<uint32_t> numbers(2000);
  for (uint32_t i = 0; i < numbers.size(); ++i) numbers[i] = i;
  for (size_t i = 0; i < numbers.size(); i += 50)
    std::shuffle(numbers.begin() + i, numbers.begin() + i + 50, random);
  for (size_t i = 0; i < numbers.size(); ++i) {
    REQUIRE(window.look(numbers[i]) == ReceiveWindow::Sight::Fresh);
    window.consume(numbers[i]);
    REQUIRE(window.look(numbers[i]) == ReceiveWindow::Sight::Again);
    if (i % 50 == 49) {
      CHECK(window.consumed() == i + 1);
      CHECK_FALSE(window.has_gaps());
    }
  }
  CHECK(window.look(window.consumed() + ReceiveWindow::kFramesMax) ==
        ReceiveWindow::Sight::Outside);
  CHECK(window.look(window.consumed() + ReceiveWindow::kFramesMax - 1) ==
        ReceiveWindow::Sight::Fresh);
  CHECK(window.look(0) == ReceiveWindow::Sight::Again);
}

TEST_CASE("a number is admitted once, and none that is far too old") {
  ReplayGuard guard;
  CHECK_FALSE(guard.admit(0));
  CHECK(guard.admit(1));
  CHECK_FALSE(guard.admit(1));
  CHECK(guard.admit(3));
  CHECK(guard.admit(2));
  CHECK_FALSE(guard.admit(2));
  CHECK(guard.admit(1000));
  CHECK_FALSE(guard.admit(3));
  CHECK(guard.admit(937));
  CHECK_FALSE(guard.admit(937));
  CHECK_FALSE(guard.admit(936));
  CHECK(guard.admit(UINT32_MAX));
  CHECK_FALSE(guard.admit(UINT32_MAX));
}
