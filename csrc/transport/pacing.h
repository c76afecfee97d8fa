// How fast a socket may send while BBR looks for its link's rate, and when BBR looks anew.
//
// BBR begins by sending almost three times as fast as it has seen bytes arrive, until that brings
// no more. It takes no notice while the sender is at its end, and a sender whose socket buffer
// holds less than three times what is under way always is: on a long link it goes on for the whole
// connection, and a fourth of its packets are dropped at the full queue. So where a queue stands,
// the kernel is told to send as fast as bytes arrive; what is written then waits in the socket, and
// BBR sees that it has found the rate. (Cardwell et al., BBR congestion control, ACM Queue 2016,
// "startup"; Cheng et al., draft-cheng-iccrg-delivery-rate-estimation, 2022,
// "application-limited".)
//
// Once it has found the rate, BBR all but stops every 10 s, for 0.2 s and a round trip, to see a
// round trip without a queue. In a ring one socket that stands still holds all members up, and each
// does so at a time of its own. A BBR that begins anew keeps the least round trip that the kernel
// has seen, and empties the queue after its beginning, for about a round trip, without a stop. So
// it does so in time, at the rate that it has found: not while it recovers from losses, when it
// would begin with the little that is under way then; where round trips have grown so much that the
// old least one would hold it up, it is left to look in its own way. (BBR's authors have replaced
// the stop by half a window since: draft-ietf-ccwg-bbr, "ProbeRTT".) Pure: no sockets, no clock.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace pccl::transport {

// A socket at one moment.
struct PaceSight {
  TimePoint now;
  bool has_more = false;       // to send than it takes
  bool is_ramping = false;     // BBR is at its beginning
  bool is_recovering = false;  // from losses
  double found_rate = 0;       // by BBR, bytes a second; 0: it is at its beginning, or is not used
  uint64_t delivered_bytes = 0;   // since it began
  double round_trip_seconds = 0;  // lately
  double round_trip_seconds_min = 0;
};

class Pacing {
 public:
  static constexpr uint64_t kNone = UINT64_MAX;  // to the kernel, too

  // To be called several times a second while bytes are under way. Bytes a second.
  uint64_t look(const PaceSight& sight);

  // Likewise: BBR should begin anew, at what look() says from now on.
  bool begins_anew(const PaceSight& sight);

 private:
  uint64_t rate_ = kNone;
  uint64_t rate_min_ = 0;  // while it begins anew
  std::optional<PaceSight> last_;
  std::optional<TimePoint> began_at_;  // BBR, as far as it was seen
  // Of the last times between two looks in which there was more to send, bytes a second.
  std::array<double, 2> delivered_{};
};

}  // namespace pccl::transport
