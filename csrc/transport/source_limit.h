// How often strangers of one source may call: a token bucket for each.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "base/clock.h"
#include "transport/address.h"

namespace pccl::transport {

class SourceLimit {
 public:
  // What one call more or less does to memory is bounded by this.
  static constexpr size_t kSourcesMax = 4096;

  // So many at once, then so many a second; 0 a second: no limit.
  SourceLimit(double per_second, double burst) : per_second_(per_second), burst_(burst) {}

  // A source is an IPv4 address, or the network of an IPv6 address (its first 64 bits, which one
  // household has). Loopback has no limit.
  bool admit(const SocketAddress& caller, TimePoint now);

 private:
  struct Bucket {
    double tokens = 0;
    TimePoint at;
  };
  void make_room(TimePoint now);

  const double per_second_;
  const double burst_;
  std::map<std::array<uint8_t, 8>, Bucket> buckets_;
};

}  // namespace pccl::transport
