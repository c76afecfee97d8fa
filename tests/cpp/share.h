// How much of the repeats runs: sanitizers make everything about ten times slower.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace pccl {

// 1 of so many, set by scripts/test-cpp; 1: all of it.
inline uint64_t test_divisor() {
  const char* divisor = std::getenv("PCCL_TEST_DIVISOR");
  const uint64_t by = divisor == nullptr ? 1 : std::strtoull(divisor, nullptr, 10);
  return by < 1 ? 1 : by;
}

// Of `count` repeats, at least one.
inline uint64_t share(uint64_t count) { return (count + test_divisor() - 1) / test_divisor(); }

}  // namespace pccl
