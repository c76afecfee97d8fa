// How many sockets, and which congestion control: found by trying, on links made of formulas.
#include "transport/stripes.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <chrono>

using namespace pccl;
using namespace pccl::transport;

namespace {

constexpr double kTick = 0.25;

// A link on which one socket gets so much at most, and less where packets are lost.
struct FormulaLink {
  double rate = 12.5e6;        // bytes a second, all sockets together
  double socket_rate = 100e6;  // of one
  double lossy_rate = 100e6;   // of one under loss-based control
  double loss = 0;
  double round_trip = 0.1;
  double queue = 0;  // seconds, when it is full
  bool is_loss_based = true;
  bool is_late = false;        // the sender, now and then
  double held_up_rate = 1e12;  // of an operation that waits for something else
  double line = 0;             // other connections get what it leaves of that, if more than
  double others_rate = 0;      // this

  StripeSight sight;
  double sent = 0;
  double resent = 0;
  double bytes = 0;
  double others_bytes = 0;

  double speed(const Stripes& stripes) const {
    const bool is_held_up = is_loss_based && !stripes.uses_bbr();
    const double each = is_held_up ? std::min(socket_rate, lossy_rate) : socket_rate;
    return std::min({rate, each * stripes.sockets(), held_up_rate});
  }

  // Goes on for so long with more to send; how often something changed.
  int run(Stripes& stripes, double seconds) {
    int changes = 0;
    for (double at = 0; at < seconds; at += kTick) {
      const double moved = speed(stripes) * kTick;
      bytes += moved;
      others_bytes += std::max(others_rate, line - speed(stripes)) * kTick;
      sight.others_bytes = static_cast<uint64_t>(others_bytes);
      sent += moved / 1448;
      resent += moved / 1448 * loss;
      const bool is_full = speed(stripes) >= rate;
      sight.now +=
          std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kTick));
      sight.has_more = speed(stripes) < held_up_rate;
      sight.delivered_bytes = static_cast<uint64_t>(bytes);
      if (speed(stripes) >= socket_rate * stripes.sockets())
        sight.buffer_limited_us += static_cast<uint64_t>(1e6 * kTick * stripes.sockets());
      // Late senders look like full buffers.
      if (is_late) sight.buffer_limited_us += static_cast<uint64_t>(0.2e6 * kTick);
      sight.buffer_bytes = static_cast<uint64_t>(socket_rate * round_trip / 0.7) *
                           static_cast<uint64_t>(stripes.sockets());
      sight.sent_segments = static_cast<uint64_t>(sent);
      sight.resent_segments = static_cast<uint64_t>(resent);
      sight.round_trip_seconds = round_trip + (is_full ? queue : 0);
      sight.round_trip_seconds_min = round_trip;
      sight.is_loss_based = is_loss_based;
      changes += stripes.look(sight) ? 1 : 0;
    }
    return changes;
  }
};

}  // namespace

TEST_CASE("A link that one socket can't fill gets as many as it takes") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.rate = 62.5e6, .socket_rate = 20e6};
  link.run(stripes, 15);
  CHECK(stripes.sockets() == 4);
  link.run(stripes, 30);
  CHECK(stripes.sockets() == 4);  // 8 were tried, and brought nothing
}

TEST_CASE("What one socket fills is left at one") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link;
  CHECK(link.run(stripes, 100) == 0);
  link.rate = 50e6;  // it has become wider, and one socket does not follow
  link.socket_rate = 13e6;
  link.run(stripes, 20);
  CHECK(stripes.sockets() == 4);
}

TEST_CASE("What brings nothing is undone, and tried again after longer and longer rests") {
  Stripes stripes(1, Stripes::kMeasuredMax, false);
  FormulaLink link{.loss = 1e-3};
  CHECK(link.run(stripes, 5) == 2);  // there and back
  CHECK(stripes.sockets() == 1);
  CHECK(link.run(stripes, 50) == 0);
  CHECK(link.run(stripes, 30) == 2);
  CHECK(link.run(stripes, 100) == 0);
  CHECK(stripes.sockets() == 1);
}

TEST_CASE("Lost packets bring BBR, and it stays where it is faster") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.lossy_rate = 1.25e6, .loss = 1e-3};
  link.run(stripes, 15);
  CHECK(stripes.uses_bbr());
  CHECK(stripes.sockets() == 1);
}

TEST_CASE("Where there is no BBR, sockets make up for lost packets as far as they can") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.lossy_rate = 1.25e6, .loss = 1e-3};
  while (!stripes.uses_bbr()) link.run(stripes, kTick);
  stripes.refuse_bbr();
  link.run(stripes, 20);
  CHECK_FALSE(stripes.uses_bbr());
  CHECK(stripes.sockets() == Stripes::kMeasuredMax);
}

TEST_CASE("BBR that brings nothing goes again") {
  Stripes stripes(1, 1, true);
  FormulaLink link{.loss = 1e-3};
  CHECK(link.run(stripes, 5) == 2);
  CHECK_FALSE(stripes.uses_bbr());
}

TEST_CASE("A full queue says that the link is the limit: nothing is tried") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.loss = 1e-3, .queue = 0.08};
  CHECK(link.run(stripes, 60) == 0);
}

TEST_CASE("A buffer with room for twice what is under way is not the limit") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.socket_rate = 25e6, .is_late = true};
  CHECK(link.run(stripes, 60) == 0);
  link.socket_rate = 14e6;  // another buffer
  link.run(stripes, 5);
  CHECK(stripes.sockets() > 1);
}

TEST_CASE("What others lose on a line that they share is no gain") {
  Stripes shared(1, Stripes::kMeasuredMax, true);
  FormulaLink line{.rate = 30e6, .socket_rate = 20e6, .line = 50e6};
  line.run(shared, 20);
  CHECK(shared.sockets() == 1);
  Stripes alone(1, Stripes::kMeasuredMax, true);
  FormulaLink wide{.rate = 40e6, .socket_rate = 20e6, .others_rate = 30e6};
  wide.run(alone, 20);
  CHECK(alone.sockets() == 2);
}

TEST_CASE("Near machines are left alone") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.rate = 1e9, .socket_rate = 100e6, .loss = 1e-3, .round_trip = 0.001};
  CHECK(link.run(stripes, 60) == 0);
}

TEST_CASE("Time in which there is little to send does not count") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.rate = 62.5e6, .socket_rate = 20e6};
  for (int i = 0; i < 100; ++i) {  // more to send at every second look
    CHECK(link.run(stripes, kTick) == 0);
    link.sight.has_more = false;
    link.sight.now += std::chrono::milliseconds(250);
    CHECK_FALSE(stripes.look(link.sight));
  }
  link.run(stripes, kTick);
  link.sight.now += std::chrono::hours(1);
  CHECK(link.run(stripes, 2 * kTick) == 0);
  CHECK(stripes.sockets() == 1);
}

TEST_CASE("What is not the limit any more keeps its sockets, also where another link holds it up") {
  Stripes stripes(1, Stripes::kMeasuredMax, true);
  FormulaLink link{.rate = 62.5e6, .socket_rate = 20e6, .held_up_rate = 20.5e6};
  link.run(stripes, 60);
  CHECK(stripes.sockets() == 2);
  link.held_up_rate = 1e12;
  link.run(stripes, 20);
  CHECK(stripes.sockets() == 4);
}

TEST_CASE("Sockets that the other side has added are used, until something was tried here") {
  Stripes stripes(1, Stripes::kMeasuredMax, false);
  FormulaLink link{.loss = 1e-3};
  link.sight.sockets = 4;
  link.run(stripes, kTick);
  CHECK(stripes.sockets() == 4);
  link.run(stripes, 5);  // 8 are tried, and bring nothing
  CHECK(stripes.sockets() == 4);
  link.sight.sockets = 8;
  link.run(stripes, kTick);
  CHECK(stripes.sockets() == 4);
}
