// Numbers that look random and are the same on every machine, unlike the distributions of the
// standard library (splitmix64; Steele, Lea and Flood, OOPSLA 2014).
#pragma once

#include <cstdint>

namespace pccl::topology {

class RandomNumbers {
 public:
  explicit RandomNumbers(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    uint64_t bits = state_ += 0x9e3779b97f4a7c15;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111eb;
    return bits ^ (bits >> 31);
  }

  // In 0..limit-1; the bias is limit / 2^64.
  int32_t below(int32_t limit) {
    return static_cast<int32_t>(next() % static_cast<uint64_t>(limit));
  }

  bool happens(double probability) {
    return static_cast<double>(next() >> 11) < probability * static_cast<double>(uint64_t{1} << 53);
  }

 private:
  uint64_t state_;
};

}  // namespace pccl::topology
