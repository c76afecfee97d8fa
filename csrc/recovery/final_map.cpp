#include "recovery/final_map.h"

#include <algorithm>
#include <iterator>

#include "base/bytes.h"

namespace pccl::recovery {
namespace {

constexpr size_t kRangeBytes = 3 * sizeof(uint64_t) + sizeof(double);

bool continues(const FinalMap::Range& left, const FinalMap::Range& right) {
  return left.end == right.begin && left.quorum_id == right.quorum_id &&
         left.weight == right.weight;
}

}  // namespace

void FinalMap::add(const Range& range) {
  // Segments mostly arrive in order, so the usual case is the end.
  if (range.begin >= range.end) return;
  if (ranges_.empty() || ranges_.back().end <= range.begin) {
    if (!ranges_.empty() && continues(ranges_.back(), range)) {
      ranges_.back().end = range.end;
    } else {
      ranges_.push_back(range);
    }
    return;
  }
  std::vector<Range> merged;
  merged.reserve(ranges_.size() + 2);
  const auto append = [&merged](const Range& next) {
    if (next.begin >= next.end) return;
    if (!merged.empty() && continues(merged.back(), next)) {
      merged.back().end = next.end;
    } else {
      merged.push_back(next);
    }
  };
  Range rest = range;
  for (const Range& known : ranges_) {
    if (rest.begin < rest.end && rest.begin < known.begin) {
      Range piece = rest;
      piece.end = std::min(rest.end, known.begin);
      append(piece);
    }
    append(known);
    rest.begin = std::max(rest.begin, std::min(known.end, rest.end));
  }
  append(rest);
  ranges_ = std::move(merged);
}

bool FinalMap::covers(uint64_t begin, uint64_t end) const {
  uint64_t at = begin;
  for (const Range& range : ranges_) {
    if (at >= end) break;
    if (range.end <= at) continue;
    if (range.begin > at) return false;
    at = range.end;
  }
  return at >= end;
}

uint64_t FinalMap::element_count() const {
  uint64_t count = 0;
  for (const Range& range : ranges_) count += range.end - range.begin;
  return count;
}

std::vector<std::byte> FinalMap::encode() const {
  ByteWriter out;
  out.put(static_cast<uint32_t>(ranges_.size()));
  for (const Range& range : ranges_) {
    out.put(range.begin);
    out.put(range.end);
    out.put(range.quorum_id);
    out.put(range.weight);
  }
  return out.bytes();
}

std::optional<FinalMap> FinalMap::decode(std::span<const std::byte> bytes, uint64_t element_count) {
  ByteReader in(bytes);
  const size_t count = in.get<uint32_t>();
  if (!in.ok() || count > kRangesMax || bytes.size() != sizeof(uint32_t) + count * kRangeBytes)
    return std::nullopt;
  FinalMap map;
  map.ranges_.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    Range range;
    range.begin = in.get<uint64_t>();
    range.end = in.get<uint64_t>();
    range.quorum_id = in.get<uint64_t>();
    range.weight = in.get<double>();
    const uint64_t from = map.ranges_.empty() ? 0 : map.ranges_.back().end;
    if (range.begin < from || range.begin >= range.end || range.end > element_count)
      return std::nullopt;
    map.ranges_.push_back(range);
  }
  return map;
}

}  // namespace pccl::recovery
