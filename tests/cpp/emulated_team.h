// The lanes of a warp, one after the other on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

// kLanes lanes, the last first: no lane may need what an earlier one did in the same step.
template <unsigned kLanes>
struct EmulatedTeam {
  template <class F>
  uint32_t max(const F& f) {
    uint32_t most = 0;
    for (unsigned lane = kLanes; lane-- > 0;) most = std::max(most, f(lane, kLanes));
    return most;
  }
  template <class F>
  void each(const F& f) {
    for (unsigned lane = kLanes; lane-- > 0;) f(lane, kLanes);
  }
};
