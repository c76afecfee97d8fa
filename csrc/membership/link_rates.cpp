#include "membership/link_rates.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace pccl::membership {
namespace {

// Below these a window says nothing about what a link can do: the kernel counts busy time in its
// own ticks of up to 10 ms, and a few small messages are all round trip and no bandwidth.
constexpr uint64_t kBusyUsMin = 200'000;
constexpr uint64_t kBusyBytesMin = 256 << 10;
// In a larger world one member's links do not move the median: it is the same for all.
constexpr size_t kExactMembersMax = 16;

// Requires: not empty.
double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

std::string rate_text(double bytes_per_second) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.3g MB/s", bytes_per_second / 1e6);
  return text;
}

double seconds_of(uint64_t begin_us, uint64_t end_us) {
  return 1e-6 * static_cast<double>(end_us - begin_us);
}

}  // namespace

// --- reports -------------------------------------------------------------------------------------

void LinkRates::on_report(const MemberId& member, const Report& report) {
  const auto [at, is_new] = members_.try_emplace(member);
  Known& known = at->second;
  const Figures& figures = report.figures;
  if (is_new || figures.operations_us < known.begin_operations_us) {
    known.begin_clock = report.clock;
    known.begin_operations_us = figures.operations_us;
  }
  if (report.clock < known.clock) return;
  known.clock = report.clock;
  const double seconds = seconds_of(known.begin_clock, report.clock);
  if (seconds >= kRateSeconds) {
    known.operations_share =
        std::min(1.0, seconds_of(known.begin_operations_us, figures.operations_us) / seconds);
    known.begin_clock = report.clock;
    known.begin_operations_us = figures.operations_us;
    known.has_window = true;
  }
  for (const LinkFigures& link : figures.links) {
    if (members_.contains(link.to)) take(known, report.clock, link);
  }
}

void LinkRates::take(Known& known, uint64_t clock, const LinkFigures& figures) {
  const auto found = known.links.find(figures.to);
  if (found == known.links.end() && known.links.size() >= kLinksKeptMax) return;
  Link& link = known.links[figures.to];
  const bool begins = found == known.links.end() || figures.bytes_sent < link.last.bytes_sent ||
                      figures.busy_us < link.last.busy_us;
  link.last = figures;
  if (begins) {
    link.begin = figures;
    link.begin_clock = clock;
  }
  const double seconds = seconds_of(link.begin_clock, clock);
  if (seconds < kRateSeconds) return;
  const uint64_t bytes = figures.bytes_sent - link.begin.bytes_sent;
  const uint64_t busy_us = figures.busy_us - link.begin.busy_us;
  link.bytes_per_second = static_cast<double>(bytes) / seconds;
  if (bytes >= kBusyBytesMin && busy_us >= kBusyUsMin) {
    link.busy_bytes_per_second = static_cast<double>(bytes) / seconds_of(0, busy_us);
    known.has_busy_link = true;
  }
  link.begin = figures;
  link.begin_clock = clock;
}

void LinkRates::keep_only(const Quorum& quorum) {
  const auto is_out = [&quorum](const auto& entry) { return !quorum.contains(entry.first); };
  std::erase_if(members_, is_out);
  for (auto& [id, known] : members_) std::erase_if(known.links, is_out);
}

// --- judging -------------------------------------------------------------------------------------

std::vector<LinkRates::Busy> LinkRates::busy_links() const {
  std::vector<Busy> all;
  for (const auto& [from, known] : members_) {
    for (const auto& [to, link] : known.links) {
      if (link.busy_bytes_per_second > 0) all.push_back({from, to, link.busy_bytes_per_second});
    }
  }
  return all;
}

LinkRates::Verdict LinkRates::judge_links(const MemberId& member, Known& known,
                                          const std::vector<Busy>& busy) const {
  std::vector<double> sends;
  std::vector<double> receives;
  std::vector<double> others;
  const bool is_exact = members_.size() <= kExactMembersMax;
  for (const Busy& link : busy) {
    if (link.from == member) sends.push_back(link.rate);
    if (link.to == member) receives.push_back(link.rate);
    if (!is_exact || (link.from != member && link.to != member)) others.push_back(link.rate);
  }
  std::vector<double> all = sends;
  all.insert(all.end(), receives.begin(), receives.end());
  if (!all.empty()) known.pace.link_bytes_per_second = median(all);
  if (all.empty() || others.empty() || !std::exchange(known.has_busy_link, false))
    return Verdict::Unknown;
  const double usual = median(others);
  double best = *std::max_element(all.begin(), all.end());
  if (all.size() < 2) best = usual;
  for (const std::vector<double>& side : {sends, receives}) {
    if (side.size() >= 2) best = std::min(best, *std::max_element(side.begin(), side.end()));
  }
  if (best >= kFineShare * usual) return Verdict::Fine;
  if (best >= kSlowShare * usual) return Verdict::Between;
  known.pace.reason = "its links carry " + rate_text(best) +
                      " at most while they are busy, those of the others " + rate_text(usual);
  return Verdict::Slow;
}

LinkRates::Verdict LinkRates::judge_waiting(const MemberId& member, Known& known) const {
  std::vector<double> others;
  for (const auto& [id, other] : members_) {
    if (id != member && other.operations_share) others.push_back(*other.operations_share);
  }
  if (others.empty() || !known.operations_share) return Verdict::Unknown;
  const double usual = median(std::move(others));
  known.pace.waited_for = std::max(0.0, usual - *known.operations_share);
  const bool is_half = *known.operations_share < usual / 2;
  if (known.pace.waited_for <= kFineWaitedShare) return Verdict::Fine;
  if (!is_half || known.pace.waited_for < kWaitedShare) return Verdict::Between;
  char text[96];
  std::snprintf(text, sizeof(text), "the others wait for its calls, %.2f s of each second",
                known.pace.waited_for);
  known.pace.reason = text;
  return Verdict::Slow;
}

std::vector<LinkRates::Change> LinkRates::judge(TimePoint now) {
  std::vector<Change> changes;
  if (now < after(judged_at_, kRateSeconds)) return changes;
  judged_at_ = now;
  const std::vector<Busy> busy = busy_links();
  for (auto& [id, known] : members_) {
    if (!std::exchange(known.has_window, false)) continue;
    const Verdict waiting = judge_waiting(id, known);
    const Verdict links = judge_links(id, known, busy);
    const Verdict worst = std::max(waiting, links);
    if (worst == Verdict::Unknown) continue;
    known.slow_windows = worst == Verdict::Slow ? known.slow_windows + 1 : 0;
    known.fine_windows = worst == Verdict::Fine ? known.fine_windows + 1 : 0;
    const int windows = known.pace.is_slow ? known.fine_windows : known.slow_windows;
    if (windows < kSlowWindows) continue;
    known.slow_windows = known.fine_windows = 0;
    known.pace.is_slow = !known.pace.is_slow;
    changes.push_back({id, known.pace.is_slow, known.pace.reason});
  }
  return changes;
}

// --- telling -------------------------------------------------------------------------------------

std::vector<LinkRate> LinkRates::links() const {
  std::vector<LinkRate> all;
  for (const auto& [from, known] : members_) {
    for (const auto& [to, link] : known.links) {
      if (link.last.bytes_sent == 0) continue;
      all.push_back({from, to, link.last.bytes_sent, link.bytes_per_second,
                     link.busy_bytes_per_second, 1e-6 * link.last.round_trip_us,
                     link.last.replaced_sockets});
    }
  }
  return all;
}

Pace LinkRates::pace(const MemberId& member) const {
  const auto found = members_.find(member);
  return found == members_.end() ? Pace{} : found->second.pace;
}

}  // namespace pccl::membership
