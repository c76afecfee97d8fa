#include "transport/pacing.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace pccl::transport {
namespace {

// A longer time between two looks says nothing of what was between them.
constexpr double kGapSecondsMax = 1;
// A round trip of so many times its least has a queue in it.
constexpr double kQueuedRoundTrip = 1.25;
constexpr double kQueuedSeconds = 1e-3;
// What arrives from one look to the next grows by less where the link is full.
constexpr double kFull = 1.25;
// Above what arrives, so that a wrong figure mends itself.
constexpr double kRoom = 1.05;
// Each look, where no queue stands and the rate is used.
constexpr double kGrowth = 1.5;
constexpr double kUsed = 0.8;

// BBR begins anew after this time: a few looks before it would stop.
constexpr double kAnewSeconds = 8;
// However little arrives at first: half of it is left. With less BBR would find less.
constexpr double kAnewLeast = 0.5;
// Its window is twice rate times least round trip: a longer one leaves a part of the link unused.
constexpr double kRoundTripGrowth = 2;
// With less under way than this nothing is lost by a stop, or the rate has not been found.
constexpr double kUnderWayBytes = 64 << 10;

double seconds_between(TimePoint from, TimePoint to) {
  return std::chrono::duration<double>(to - from).count();
}

}  // namespace

uint64_t Pacing::look(const PaceSight& sight) {
  const std::optional<PaceSight> before = std::exchange(last_, sight);
  if (!sight.is_ramping) {
    delivered_ = {};
    rate_min_ = 0;
    return rate_ = kNone;
  }
  if (!before || !before->has_more || !sight.has_more) return rate_;
  const double seconds = seconds_between(before->now, sight.now);
  if (seconds <= 0 || seconds > kGapSecondsMax) return rate_;
  if (sight.delivered_bytes < before->delivered_bytes) return rate_;  // the kernel's count wrapped
  const auto bytes = static_cast<double>(sight.delivered_bytes - before->delivered_bytes);
  delivered_ = {bytes / seconds, delivered_[0]};
  const double arrives = std::max(delivered_[0], delivered_[1]);
  const bool is_growing = delivered_[0] > kFull * delivered_[1];
  const bool is_queued =
      sight.round_trip_seconds > kQueuedRoundTrip * sight.round_trip_seconds_min + kQueuedSeconds;
  if (is_queued && !is_growing && arrives > 0) {
    rate_ = std::max(rate_min_, static_cast<uint64_t>(kRoom * arrives));
  } else if (rate_ != kNone && arrives > kUsed * static_cast<double>(rate_)) {
    rate_ = static_cast<uint64_t>(kGrowth * static_cast<double>(rate_));
  }
  return rate_;
}

bool Pacing::begins_anew(const PaceSight& sight) {
  if (!began_at_ || sight.is_ramping) began_at_ = sight.now;
  if (sight.is_recovering) return false;
  if (seconds_between(*began_at_, sight.now) < kAnewSeconds) return false;
  if (sight.found_rate * sight.round_trip_seconds_min < kUnderWayBytes) return false;
  if (sight.round_trip_seconds > kRoundTripGrowth * sight.round_trip_seconds_min) return false;
  began_at_ = sight.now;
  rate_ = static_cast<uint64_t>(kRoom * sight.found_rate);
  rate_min_ = static_cast<uint64_t>(kAnewLeast * sight.found_rate);
  delivered_ = {sight.found_rate, sight.found_rate};
  return true;
}

}  // namespace pccl::transport
