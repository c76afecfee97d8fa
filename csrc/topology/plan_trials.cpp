#include "topology/plan_trials.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>
#include <vector>

namespace pccl::topology {
namespace {

// What large calls may use. A label's low byte says which, from 1 on; the next one, for what.
constexpr std::array<std::string_view, 8> kAlgorithms = {
    "direct",       "ring",  "halving_doubling", "double_binary_tree",
    "packed_trees", "rings", "hierarchical",     "quickest_tree"};
constexpr uint32_t kAlgorithmMask = 0xff;
constexpr uint32_t kCodedBit = 0x8000;

// What was tried is worse if it takes so many times as long, and clearly if so many times.
constexpr double kWorse = 1.05;
constexpr double kFarWorse = 1.5;
// The algorithm in use takes so many times as long as when another one failed: links have changed.
constexpr double kChanged = 1.3;
constexpr int32_t kRestsMax = 1024;
// Of one call, in the mean of those before and it.
constexpr double kNewest = 0.5;

uint32_t kind_of(const PlanTrials::Kind& kind) {
  return static_cast<uint32_t>(std::bit_width(kind.bytes)) << 8 | (kind.is_coded ? kCodedBit : 0);
}

// 0: none of them.
uint32_t number_of(std::string_view algorithm) {
  const auto* found = std::find(kAlgorithms.begin(), kAlgorithms.end(), algorithm);
  return found == kAlgorithms.end() ? 0 : static_cast<uint32_t>(found - kAlgorithms.begin()) + 1;
}

// Of each rank's own entry; none: they don't tell of the same call.
std::optional<CallFigure> agreed(std::span<const RankFigures> figures) {
  std::vector<uint32_t> times;
  CallFigure call = last_call(figures.front(), 0);
  for (size_t rank = 0; rank < figures.size(); ++rank) {
    const CallFigure own = last_call(figures[rank], rank);
    if (own.label != call.label) return std::nullopt;
    times.push_back(own.us);
  }
  const uint32_t algorithm = call.label & kAlgorithmMask;
  if (algorithm == 0 || algorithm > kAlgorithms.size() || times.size() < 2) return std::nullopt;
  std::nth_element(times.begin(), times.begin() + 1, times.end());
  call.us = times[1];
  return call;
}

}  // namespace

uint32_t PlanTrials::label(const Kind& kind, std::string_view algorithm) {
  const uint32_t number = number_of(algorithm);
  return number == 0 ? 0 : kind_of(kind) | number;
}

bool PlanTrials::is_refused(const Record& record, const Trial& trial) {
  return trial.has_failed && trial.rests > 0 && record.seconds <= kChanged * trial.against;
}

std::string_view PlanTrials::choose(const Kind& kind, std::string_view wanted) const {
  const auto record = records_.find(kind_of(kind));
  if (record == records_.end()) return wanted;
  const auto trial = record->second.trials.find(number_of(wanted));
  if (trial == record->second.trials.end() || !is_refused(record->second, trial->second))
    return wanted;
  return kAlgorithms[record->second.used - 1];
}

bool PlanTrials::judge(Record& record, uint32_t algorithm, double seconds) {
  Trial& trial = record.trials[algorithm];
  if (trial.has_failed) {  // once more
    trial.has_failed = false;
    trial.calls = 0;
  }
  trial.seconds = trial.calls == 0 ? seconds : std::min(trial.seconds, seconds);
  trial.calls += 1;
  if (trial.seconds <= kWorse * record.seconds) {
    record.used = algorithm;
    record.seconds = trial.seconds;
    record.trials.erase(algorithm);
    return false;
  }
  const bool is_bad = trial.seconds > kFarWorse * record.seconds;
  if (trial.calls < (is_bad ? kBadCalls : kCalls)) return false;
  trial.has_failed = true;
  trial.against = record.seconds;
  trial.rests = trial.rests_next;
  trial.rests_next = std::min(2 * trial.rests_next, kRestsMax);
  return true;
}

bool PlanTrials::learn(std::span<const RankFigures> figures) {
  const std::optional<CallFigure> call = agreed(figures);
  if (!call) return false;
  Record& record = records_[call->label & ~kAlgorithmMask];
  const uint32_t algorithm = call->label & kAlgorithmMask;
  const double seconds = call->us * 1e-6;
  if (record.used == 0) {
    record.used = algorithm;
    record.seconds = seconds;
    return false;
  }
  if (record.used != algorithm) return judge(record, algorithm, seconds);
  record.seconds += kNewest * (seconds - record.seconds);
  bool is_over = false;
  for (auto& [number, trial] : record.trials) {
    if (trial.rests == 0) continue;
    trial.rests -= 1;
    is_over = is_over || !is_refused(record, trial);
  }
  return is_over;
}

}  // namespace pccl::topology
