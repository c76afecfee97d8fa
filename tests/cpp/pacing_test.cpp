// When a socket is told how fast to send, on links made of formulas.
#include "transport/pacing.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>

using namespace pccl;
using namespace pccl::transport;

namespace {

constexpr double kTick = 0.25;
constexpr double kRate = 12.5e6;  // the link's
constexpr double kRoundTrip = 0.1;
constexpr double kQueue = 0.1;  // seconds, when it is full

// BBR at its beginning, which sees itself as the limit: its rate grows, its end it doesn't see.
struct FormulaSocket {
  double rate = kRate;
  PaceSight sight{.has_more = true, .is_ramping = true};
  Pacing pacing;
  double wanted = 1e6;
  double queued = 0;  // bytes
  double dropped = 0;
  double delivered = 0;

  uint64_t run(double seconds) {
    uint64_t pace = Pacing::kNone;
    for (double at = 0; at < seconds; at += kTick) {
      sight.now +=
          std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kTick));
      sight.delivered_bytes = static_cast<uint64_t>(delivered);
      sight.round_trip_seconds = kRoundTrip + queued / rate;
      sight.round_trip_seconds_min = kRoundTrip;
      pace = pacing.look(sight);
      const double sent = std::min(wanted, static_cast<double>(pace)) * kTick;
      wanted = std::min(2 * wanted, 2.89 * rate);
      const double taken = std::min(sent, rate * kTick);
      delivered += taken;
      queued = std::max(queued + sent - rate * kTick, 0.0);
      dropped += std::max(queued - kQueue * rate, 0.0);
      queued = std::min(queued, kQueue * rate);
    }
    return pace;
  }
};

}  // namespace

TEST_CASE("where a queue stands and no more arrives, it is sent as fast as it arrives") {
  FormulaSocket socket;
  socket.run(1);
  CHECK(socket.queued == 0);
  const uint64_t pace = socket.run(3);
  CHECK(static_cast<double>(pace) == doctest::Approx(kRate).epsilon(0.1));
  socket.dropped = 0;
  socket.run(10);
  CHECK(socket.dropped < 0.1 * kRate * 10);  // 65 % of it would be
}

TEST_CASE("what has found its rate is left to itself, and what still grows as well") {
  FormulaSocket socket;
  socket.sight.is_ramping = false;
  CHECK(socket.run(10) == Pacing::kNone);
  // A queue in front of others: acknowledgements come late, and more arrives each time.
  FormulaSocket growing;
  growing.wanted = 0.1e6;
  growing.queued = 0.09 * kRate;
  for (int i = 0; i < 5; ++i) {
    growing.queued = 0.09 * kRate;
    CHECK(growing.run(kTick) == Pacing::kNone);
  }
}

TEST_CASE("a pace that was too slow mends itself, and ends where the rate is found") {
  FormulaSocket socket{.rate = 0.2 * kRate};
  CHECK(static_cast<double>(socket.run(4)) < 0.3 * kRate);
  socket.rate = kRate;  // others have ended
  CHECK(static_cast<double>(socket.run(10)) >= kRate);
  socket.sight.is_ramping = false;
  CHECK(socket.run(kTick) == Pacing::kNone);
}

TEST_CASE("while there is little to send nothing is learned") {
  FormulaSocket socket;
  socket.run(4);
  const uint64_t pace = socket.run(kTick);
  socket.sight.has_more = false;
  socket.wanted = 0.1e6;
  CHECK(socket.run(5) == pace);
}

TEST_CASE("BBR begins anew before it would stop, at the rate that it has found") {
  FormulaSocket socket;
  PaceSight& sight = socket.sight;
  sight.is_ramping = false;
  sight.found_rate = kRate;
  const auto renewals = [&](double seconds) {
    int32_t count = 0;
    for (double at = 0; at < seconds; at += kTick) {
      socket.run(kTick);
      if (!socket.pacing.begins_anew(sight)) continue;
      count += 1;
      sight.is_ramping = true;
      const uint64_t pace = socket.pacing.look(sight);
      CHECK(static_cast<double>(pace) == doctest::Approx(kRate).epsilon(0.1));
      sight.is_ramping = false;
    }
    return count;
  };
  socket.wanted = 0.9 * kRate;
  CHECK(renewals(9) == 1);
  CHECK(renewals(60) >= 6);
  // Round trips have grown: its old least one would hold it up.
  socket.queued = 1.1 * kRoundTrip * kRate;
  sight.round_trip_seconds = 2.1 * kRoundTrip;
  sight.now += std::chrono::seconds(60);
  CHECK_FALSE(socket.pacing.begins_anew(sight));
  sight.round_trip_seconds = kRoundTrip;
  sight.is_recovering = true;
  CHECK_FALSE(socket.pacing.begins_anew(sight));
  sight.is_recovering = false;
  // Little is under way, or nothing was found.
  sight.found_rate = 1e4;
  CHECK_FALSE(socket.pacing.begins_anew(sight));
  sight.found_rate = 0;
  CHECK_FALSE(socket.pacing.begins_anew(sight));
  sight.found_rate = kRate;
  CHECK(socket.pacing.begins_anew(sight));
}

TEST_CASE("who begins anew with little under way is not held to that") {
  FormulaSocket socket;
  PaceSight& sight = socket.sight;
  sight.is_ramping = false;
  sight.found_rate = kRate;
  socket.wanted = 0.9 * kRate;
  CHECK_FALSE(socket.pacing.begins_anew(sight));
  for (int look = 0; look < 36; ++look) {
    socket.run(kTick);
    socket.wanted = 0.9 * kRate;
  }
  REQUIRE(socket.pacing.begins_anew(sight));
  sight.is_ramping = true;
  // Hardly anything arrives, and acknowledgements are late from before.
  for (int look = 0; look < 4; ++look) {
    socket.wanted = 0.02 * kRate;
    socket.queued = 0.09 * kRate;
    CHECK(static_cast<double>(socket.run(kTick)) >= 0.5 * kRate);
  }
  // It has found another rate.
  sight.is_ramping = false;
  CHECK(socket.run(kTick) == Pacing::kNone);
}
