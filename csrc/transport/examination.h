// What caller and coordinator say to each other when the caller asks how the network sees it: what
// came of dialing it back, then a burst of bytes each way. For pccl doctor.
//
// After the Hello (Intent::Examine) and its Reply: a Sighting; the caller's burst; its rate, 8
// bytes; the coordinator's burst. Nothing of it is kept, and a burst's bytes are all zero.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "transport/stream.h"

namespace pccl::transport {

struct Sighting {
  std::string seen_as;        // the caller's address, as it arrives here
  bool was_dialed = false;    // the caller named a port
  bool is_reached = false;    // somebody listens at that port of that address
  uint32_t microseconds = 0;  // that the dial took
  std::string error;          // why it is not reached

  std::vector<std::byte> encode() const;  // with its length, 2 bytes, in front
  static std::optional<Sighting> decode(std::span<const std::byte> body);
};
inline constexpr size_t kSightingBytesMax = 512;

// A burst ends with the first of these, and a block whose first byte is 0.
inline constexpr double kBurstSeconds = 1;
inline constexpr uint64_t kBurstBytesMax = 32 << 20;
inline constexpr size_t kBurstBlockBytes = 16 << 10;

// Again: a turn is over, and there is more to do at once.
enum class BurstStep : uint8_t { Waits, Again, Done, Failed };

class BurstSender {
 public:
  BurstStep go_on(Stream& stream, TimePoint now);

 private:
  TimePoint end_;
  uint64_t bytes_ = 0;
  size_t in_block_ = 0;
  bool is_last_ = false;
};

class BurstReceiver {
 public:
  BurstStep go_on(Stream& stream, TimePoint now);
  uint64_t bytes() const { return bytes_; }
  // Over the second half of its time: a connection is slow when it begins. 0: unknown.
  double bytes_per_second() const;

 private:
  void note(size_t bytes, TimePoint now);

  std::vector<std::pair<TimePoint, uint64_t>> samples_;  // bytes until then
  TimePoint last_;
  uint64_t bytes_ = 0;
  size_t in_block_ = 0;
  bool is_last_ = false;
};

}  // namespace pccl::transport
