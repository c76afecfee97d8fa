// Which elements of one operation's result are final at one member, and since when. A value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace pccl::recovery {

class FinalMap {
 public:
  // Elements [begin, end), made final in that quorum from contributions of that weight in all.
  struct Range {
    uint64_t begin = 0;
    uint64_t end = 0;
    uint64_t quorum_id = 0;
    double weight = 0;
    bool operator==(const Range&) const = default;
  };
  // Bounds what bytes from the network can make us hold: a map fits into one frame.
  static constexpr size_t kRangesMax = 16000;

  // What is final already stays as it is: only the rest of the range is added.
  void add(const Range& range);
  void clear() { ranges_.clear(); }

  // Disjoint, ascending, neighbours of one kind are one.
  const std::vector<Range>& ranges() const { return ranges_; }
  bool covers(uint64_t begin, uint64_t end) const;
  uint64_t element_count() const;

  std::vector<std::byte> encode() const;
  // nullopt: no map of a tensor of `element_count` elements.
  static std::optional<FinalMap> decode(std::span<const std::byte> bytes, uint64_t element_count);

  bool operator==(const FinalMap&) const = default;

 private:
  std::vector<Range> ranges_;
};

}  // namespace pccl::recovery
