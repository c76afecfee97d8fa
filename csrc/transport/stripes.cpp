#include "transport/stripes.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace pccl::transport {
namespace {

// A longer time between two looks says nothing of what was between them.
constexpr double kGapSecondsMax = 1;
// An epoch's length: at least, and in round trips.
constexpr double kEpochSeconds = 1;
constexpr double kEpochRoundTrips = 10;
// Time in which there was little to send belongs to an epoch, too, which ends after so many
// lengths.
constexpr double kIdleEpochs = 3.001;
// A connection that has more to send for less than this part of the time that it had before is not
// what operations wait for any more.
constexpr double kLimitShare = 0.5;
// Until a change has taken effect.
constexpr double kSettleSeconds = 0.5;
constexpr double kSettleRoundTrips = 5;
// Lost packets of sent ones from which on loss-based control is suspected.
constexpr double kLossMin = 1e-4;
// The share of its time for which full buffers must have held a socket up to be suspected, and
// where other connections may share its line.
constexpr double kLimitedMin = 0.1;
constexpr double kSharedLimitedMin = 0.25;
// A send buffer holds, beside the kernel's bookkeeping, up to seven tenths of its bytes. Where what
// is under way is well below it, something else is the limit.
constexpr double kBufferShare = 0.4;
// A round trip of so many times its least, or by so much longer than a part more, has a full queue
// in it: the link itself is the limit.
constexpr double kQueuedRoundTrip = 1.5;
constexpr double kQueuedLongRoundTrip = 1.2;
constexpr double kQueuedSeconds = 0.005;
// Other connections that move so many times as much as one may share its line.
constexpr double kSharedMin = 0.5;
// Of what one connection gains the others may lose so much.
constexpr double kTakenMax = 0.5;

uint64_t growth(uint64_t before, uint64_t now) { return now > before ? now - before : 0; }

}  // namespace

bool Stripes::look(const StripeSight& sight) {
  const std::optional<StripeSight> before = std::exchange(last_, sight);
  // What the other side has added for its bytes suits ours as well, as long as nobody has tried.
  if (!has_tried_) sockets_ = std::clamp(sight.sockets, sockets_, most_);
  if (!before || sight.round_trip_seconds_min < kRoundTripSecondsMin) return false;
  const double seconds = std::chrono::duration<double>(sight.now - before->now).count();
  if (seconds > kGapSecondsMax) return false;
  const bool has_more = before->has_more && sight.has_more;
  if (settling_seconds_ > 0) {
    settling_seconds_ -= has_more ? seconds : 0;
    return false;
  }
  all_seconds_ += seconds;
  if (has_more) {
    seconds_ += seconds;
    bytes_ += growth(before->delivered_bytes, sight.delivered_bytes);
    others_bytes_ += growth(before->others_bytes, sight.others_bytes);
    window_limited_us_ += growth(before->window_limited_us, sight.window_limited_us);
    buffer_limited_us_ += growth(before->buffer_limited_us, sight.buffer_limited_us);
    sent_ += growth(before->sent_segments, sight.sent_segments);
    resent_ += growth(before->resent_segments, sight.resent_segments);
  }
  const double length = std::max(kEpochSeconds, kEpochRoundTrips * sight.round_trip_seconds);
  const bool is_idle = all_seconds_ >= kIdleEpochs * length;
  if (seconds_ < length && !is_idle) return false;
  const double spent = std::max(seconds_, 1e-3);
  const Epoch epoch{
      .rate = static_cast<double>(bytes_) / spent,
      .others = static_cast<double>(others_bytes_) / spent,
      .loss = static_cast<double>(resent_) / static_cast<double>(std::max(sent_, resent_ + 1)),
      .window_limited = 1e-6 * static_cast<double>(window_limited_us_) / (sockets_ * spent),
      .buffer_limited = 1e-6 * static_cast<double>(buffer_limited_us_) / (sockets_ * spent),
      .share = seconds_ / all_seconds_};
  resting_seconds_ -= std::min(seconds_, resting_seconds_);
  all_seconds_ = seconds_ = 0;
  bytes_ = others_bytes_ = window_limited_us_ = buffer_limited_us_ = sent_ = resent_ = 0;
  if (!judge(sight, epoch)) return false;
  has_tried_ = true;
  settling_seconds_ = std::max(kSettleSeconds, kSettleRoundTrips * sight.round_trip_seconds);
  return true;
}

void Stripes::refuse_bbr() {
  if (trial_ == Trial::Bbr) is_trying_ = false;
  may_use_bbr_ = false;
  uses_bbr_ = false;
}

bool Stripes::judge(const StripeSight& sight, const Epoch& epoch) {
  if (std::exchange(is_trying_, false)) {
    if (epoch.share < kLimitShare * before_.share) return false;
    if (!was_worth_it(epoch)) {
      undo();
      return true;
    }
  }
  return try_next(sight, epoch);
}

bool Stripes::is_shared(const Epoch& epoch) { return epoch.others >= kSharedMin * epoch.rate; }

bool Stripes::was_worth_it(const Epoch& epoch) const {
  if (trial_ == Trial::Bbr || !is_shared(before_)) return epoch.rate >= gain_wanted_ * before_.rate;
  return epoch.rate >= kGain * before_.rate &&
         before_.others - epoch.others <= kTakenMax * (epoch.rate - before_.rate);
}

void Stripes::undo() {
  if (trial_ == Trial::Bbr) {
    uses_bbr_ = false;
    bbr_has_failed_ = true;
  } else {
    sockets_ /= 2;
    resting_seconds_ = rest_seconds_;
    rest_seconds_ = std::min(2 * rest_seconds_, kRestSecondsMax);
    bbr_has_failed_ = false;
  }
}

bool Stripes::try_next(const StripeSight& sight, const Epoch& epoch) {
  const double least = sight.round_trip_seconds_min;
  const bool is_full =
      sight.round_trip_seconds >
      std::min(kQueuedRoundTrip * least, kQueuedLongRoundTrip * least + kQueuedSeconds);
  const bool is_idle = epoch.share < 1 / kIdleEpochs;
  if (resting_seconds_ > 0 || is_full || is_idle) return false;
  const bool suspects_loss = sight.is_loss_based && epoch.loss >= kLossMin;
  // The kernel counts a sender that comes a little late as well.
  const bool is_buffer_full =
      epoch.rate * least >= kBufferShare * static_cast<double>(sight.buffer_bytes);
  const double limited_min = is_shared(epoch) ? kSharedLimitedMin : kLimitedMin;
  const bool suspects_buffers = epoch.window_limited >= limited_min ||
                                (epoch.buffer_limited >= limited_min && is_buffer_full);
  if (suspects_loss && may_use_bbr_ && !uses_bbr_ && !bbr_has_failed_) {
    trial_ = Trial::Bbr;
    uses_bbr_ = true;
  } else if ((suspects_loss || suspects_buffers) && 2 * sockets_ <= most_) {
    trial_ = Trial::Sockets;
    sockets_ *= 2;
  } else {
    return false;
  }
  is_trying_ = true;
  gain_wanted_ = trial_ == Trial::Sockets && suspects_buffers ? kGainOfBuffers : kGain;
  before_ = epoch;
  return true;
}

}  // namespace pccl::transport
