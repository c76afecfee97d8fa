// The clock that deadlines are measured with.
#pragma once

#include <chrono>
#include <cstdint>

namespace pccl {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

// `seconds` from `start`, capped at 100 years so that it cannot overflow.
inline TimePoint after(TimePoint start, double seconds) {
  constexpr double kSecondsMax = 3.15e9;
  const double bounded = seconds < 0 ? 0 : (seconds > kSecondsMax ? kSecondsMax : seconds);
  return start +
         std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(bounded));
}

// Requires: not negative.
inline uint64_t microseconds(Clock::duration duration) {
  return static_cast<uint64_t>(
      std::chrono::duration_cast<std::chrono::microseconds>(duration).count());
}

}  // namespace pccl
