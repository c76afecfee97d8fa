#include "collectives/element_ranges.h"

#include <algorithm>

namespace pccl {
namespace {

// An error is a sentence: what does not fit is counted.
constexpr size_t kRangesShown = 8;

std::vector<ElementRange> merge(std::vector<ElementRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const ElementRange& left, const ElementRange& right) {
    return left.begin < right.begin;
  });
  std::vector<ElementRange> merged;
  for (const ElementRange& range : ranges) {
    if (!merged.empty() && range.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, range.end);
    } else {
      merged.push_back(range);
    }
  }
  return merged;
}

std::string to_text(const std::vector<ElementRange>& ranges) {
  std::string text = "elements ";
  const size_t shown = std::min(ranges.size(), kRangesShown);
  for (size_t i = 0; i < shown; ++i) {
    if (i > 0) text += ", ";
    text += "[" + std::to_string(ranges[i].begin) + ", " + std::to_string(ranges[i].end) + ")";
  }
  if (shown < ranges.size())
    text += " and " + std::to_string(ranges.size() - shown) + " more ranges";
  return text;
}

}  // namespace

std::string describe_reduced(std::vector<ElementRange> results, std::vector<ElementRange> torn,
                             uint64_t count, bool is_in_place) {
  results = merge(std::move(results));
  torn = merge(std::move(torn));
  const std::string rest = is_in_place ? "its input" : "what it held before";
  const std::string input = is_in_place ? "" : " The input is unchanged.";
  if (results.empty() && torn.empty()) return "The tensor holds " + rest + "." + input;
  if (results.size() == 1 && results[0].begin == 0 && results[0].end == count)
    return "The tensor holds the result." + input;
  std::string text = "The tensor holds ";
  if (!results.empty()) text += "the result in " + to_text(results) + ", ";
  if (!torn.empty()) text += "fragments in " + to_text(torn) + ", ";
  return text + rest + " elsewhere." + input;
}

}  // namespace pccl
