// How many sockets carry what one side of a connection sends, and by which congestion control:
// found by trying, while there is more to send than they take.
//
// One socket moves at most one window a round trip, and under loss-based congestion control a lost
// packet in a thousand leaves a long link a tenth of its rate. Which of it holds is not known
// beforehand. So one thing is changed at a time: where packets are lost, BBR (Cardwell et al., ACM
// Queue 2016) takes the place of loss-based control; where they still are, or where full buffers
// hold the sockets up, there are twice as many. The rate is held against that before. What brought
// less than kGain is undone, and tried again after a rest, unless the connection seldom has more to
// send since: then something else holds the operation up, perhaps another member's connection that
// is still to be made faster. Pure: no sockets, no clock.
#pragma once

#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace pccl::transport {

// A connection's sockets at one moment; counters since it began.
struct StripeSight {
  TimePoint now;
  bool has_more = false;  // to send than the sockets take
  int sockets = 1;        // that there are
  uint64_t delivered_bytes = 0;
  uint64_t others_bytes = 0;  // that all other connections have delivered
  // For so long buffers were full, of all sockets together; see LinkState.
  uint64_t window_limited_us = 0;
  uint64_t buffer_limited_us = 0;
  uint64_t buffer_bytes = 0;
  uint64_t sent_segments = 0;
  uint64_t resent_segments = 0;
  double round_trip_seconds = 0;
  double round_trip_seconds_min = 0;  // without what waits in queues
  bool is_loss_based = false;         // a lost packet makes its congestion control slower
};

class Stripes {
 public:
  static constexpr int kMeasuredMax = 8;
  static constexpr const char* kBbr = "bbr";  // to the kernel
  static constexpr double kGain = 1.1;
  // The same where buffers were full, and nobody shares the line: that is no guess, so it is undone
  // only where it is slower.
  static constexpr double kGainOfBuffers = 0.97;
  // Links below it are left alone: there the machines are the limit, not TCP.
  static constexpr double kRoundTripSecondsMin = 0.005;
  static constexpr double kRestSeconds = 60;  // busy ones; doubled each time, up to the most
  static constexpr double kRestSecondsMax = 960;

  // `first`: sockets to begin with; `most`: never more. `may_use_bbr`: in place of loss-based
  // congestion control.
  Stripes(int first, int most, bool may_use_bbr)
      : sockets_(first), most_(most), may_use_bbr_(may_use_bbr) {}

  // To be called several times a second while bytes are under way. True: what follows has changed.
  bool look(const StripeSight& sight);
  int sockets() const { return sockets_; }
  bool uses_bbr() const { return uses_bbr_; }
  // This kernel has no BBR for us.
  void refuse_bbr();

 private:
  enum class Trial : uint8_t { Bbr, Sockets };

  // What an epoch came to.
  struct Epoch {
    double rate = 0;    // bytes a second while there was more to send
    double others = 0;  // meanwhile, of all other connections
    double loss = 0;    // of its packets
    // Of that time a socket's buffers were full.
    double window_limited = 0;
    double buffer_limited = 0;
    double share = 0;  // of the time there was more to send
  };
  bool judge(const StripeSight& sight, const Epoch& epoch);
  static bool is_shared(const Epoch& epoch);
  bool was_worth_it(const Epoch& epoch) const;
  void undo();
  bool try_next(const StripeSight& sight, const Epoch& epoch);

  int sockets_;
  int most_;
  bool may_use_bbr_;
  bool uses_bbr_ = false;
  bool bbr_has_failed_ = false;  // since the last rest
  bool has_tried_ = false;
  bool is_trying_ = false;
  Trial trial_{};  // the last one
  Epoch before_;   // it
  double gain_wanted_ = kGain;
  double settling_seconds_ = 0;  // still, after a change
  double resting_seconds_ = 0;
  double rest_seconds_ = kRestSeconds;  // the next one
  // The epoch: how long it lasts, and what was seen while there was more to send.
  std::optional<StripeSight> last_;
  double all_seconds_ = 0;
  double seconds_ = 0;
  uint64_t bytes_ = 0;
  uint64_t others_bytes_ = 0;
  uint64_t window_limited_us_ = 0;
  uint64_t buffer_limited_us_ = 0;
  uint64_t sent_ = 0;
  uint64_t resent_ = 0;
};

}  // namespace pccl::transport
