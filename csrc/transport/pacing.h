// How fast a socket may send while BBR looks for its link's rate.
//
// BBR begins by sending almost three times as fast as it has seen bytes arrive, until that brings
// no more. It takes no notice while the sender is at its end, and a sender whose socket buffer
// holds less than three times what is under way always is: on a long link it goes on for the whole
// connection, and a fourth of its packets are dropped at the full queue. So where a queue stands,
// the kernel is told to send as fast as bytes arrive; what is written then waits in the socket, and
// BBR sees that it has found the rate. (Cardwell et al., BBR congestion control, ACM Queue 2016,
// "startup"; Cheng et al., draft-cheng-iccrg-delivery-rate-estimation, 2022,
// "application-limited".) Pure: no sockets, no clock.
#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "base/clock.h"

namespace pccl::transport {

// A socket at one moment.
struct PaceSight {
  TimePoint now{};
  bool has_more = false;          // to send than it takes
  bool is_ramping = false;        // BBR is at its beginning
  uint64_t delivered_bytes = 0;   // since it began
  double round_trip_seconds = 0;  // lately
  double round_trip_seconds_min = 0;
};

class Pacing {
 public:
  static constexpr uint64_t kNone = UINT64_MAX;  // to the kernel, too

  // To be called several times a second while bytes are under way. Bytes a second.
  uint64_t look(const PaceSight& sight);

 private:
  uint64_t rate_ = kNone;
  std::optional<PaceSight> last_;
  // Of the last times between two looks in which there was more to send, bytes a second.
  std::array<double, 2> delivered_{};
};

}  // namespace pccl::transport
