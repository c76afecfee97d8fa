#include "topology/link_figures.h"

#include <algorithm>

#include "base/bytes.h"

namespace pccl::topology {
namespace {

constexpr size_t kFigureBytes = 24;
constexpr uint64_t kBytesUnit = 1024;

// Less than this says more of latency, and of the memory of sockets, than of the link.
constexpr uint64_t kBytesMin = 128 << 10;
constexpr uint32_t kBusyMin = 20'000;  // us
constexpr uint32_t kRoundTripsMin = 3;
// Nearer, and faster than that while it was busy: a local network.
constexpr uint32_t kNearUs = 1000;
constexpr double kNearRate = 100e6;
// What a sender tells may be so much more than what its receiver sees.
constexpr double kDoubt = 1.5;
// And in a full round trip its link had at most so many times what it had in the mean.
constexpr double kFullDoubt = 4;
// Two measurements of one link that differ by less are averaged.
constexpr double kNoise = 1.3;
// Of a link without a new figure, each time: doubled after 35 of them.
constexpr double kForgetting = 1.02;
// A link that others held up, and what a rank sends or receives in all on such links, is thought to
// be so many times as fast as it was: so it gets more to carry, until it is full.
constexpr double kTrying = 1.25;
// Of what a rank has sent or received at once, each time.
constexpr double kFading = 1.1;
// A link that has become so much slower makes the way back suspect: it is thought to be no more
// than so many times as fast, until it is measured.
constexpr double kFallen = 2;
// A rank that sent, or received, so much of what it has done at once, until its last link was done,
// had a full line: of its links, each alone may be faster than its part.
constexpr double kFullLine = 0.85;
// A link that was full for less of its busy time was starved; and where it is the only one of its
// rank, whose rate while it is full is not looked at.
constexpr double kFullPart = 0.85;
constexpr double kFullPartAlone = 0.5;
// Behind the round trip: the link was starved.
constexpr uint32_t kStarvedBit = uint32_t{1} << 31;
// Other plans are made when a rate has changed by more.
constexpr double kOther = 1.2;

bool differ(double a, double b, double factor) { return a > b * factor || b > a * factor; }

uint32_t to_units(uint64_t bytes) {
  return static_cast<uint32_t>(std::min<uint64_t>(bytes / kBytesUnit, UINT32_MAX));
}

bool tells(const LinkFigure& figure) {
  return figure.bytes >= kBytesMin && figure.busy_us >= kBusyMin &&
         figure.busy_us / kRoundTripsMin >= figure.round_trip_us;
}

// Whatever a rank says: bytes a second that planners can reckon with.
constexpr double kRateMax = 1e11;
double rate(uint64_t bytes, uint32_t busy_us) {
  return std::clamp(static_cast<double>(bytes) * 1e6 / static_cast<double>(busy_us), 1e3, kRateMax);
}

bool is_near(const LinkFigure& figure) {
  return figure.round_trip_us <= kNearUs && rate(figure.bytes, figure.busy_us) > kNearRate;
}

// As the sender tells, unless its receiver saw less.
double believable_rate(const LinkFigure& sender, const LinkFigure& receiver) {
  const double told = rate(sender.bytes, sender.busy_us);
  if (receiver.received_bytes < kBytesMin || receiver.receiving_us < kBusyMin) return told;
  const double seen = rate(receiver.received_bytes, receiver.receiving_us);
  return told > kDoubt * seen ? seen : told;
}

// What one rank sends, or receives, on all its links.
struct Sum {
  uint64_t bytes = 0;
  uint32_t busy_us = 0;  // of the link that was busy longest
  size_t links = 0;
  double rates = 0;  // of each while it was busy
  double full = 0;   // of each in its last full round trip
  uint64_t starved_us = 0;
  uint64_t full_us = 0;
  void add(const LinkFigure& figure) {
    bytes += figure.bytes;
    if (tells(figure)) {
      links += 1;
      rates += rate(figure.bytes, figure.busy_us);
      full += std::min(static_cast<double>(figure.full_rate), kRateMax);
      (figure.is_starved ? starved_us : full_us) += figure.busy_us;
    }
    busy_us = std::max(busy_us, figure.busy_us);
  }
};

// The rate of a link that others held up: as in the last round trip that was full, if that is more
// or hardly less than before. A little more than it had in the mean it has in any case.
double of_starved(const LinkFigure& figure, const Sum& sender, double now, double before) {
  if (sender.links < 2) return std::max(before, kTrying * now);
  const double full = std::min(static_cast<double>(figure.full_rate), kFullDoubt * now);
  const bool is_noise = full > 0 && !differ(full, before, kNoise);
  return std::max({is_noise ? (full + before) / 2 : before, is_noise ? 0 : full, kTrying * now});
}

// Doubts the ways back of links that have fallen, where they were not measured at the same time.
void doubt_ways_back(const Links& unknown, const Links& before,
                     std::span<const RankFigures> figures, Links& now) {
  const auto n = static_cast<size_t>(now.world_size);
  for (size_t link = 0; link < n * n; ++link) {
    const size_t back = link % n * n + link / n;
    const double was = before.cost[link].seconds_per_byte;
    const double is = now.cost[link].seconds_per_byte;
    const bool has_fallen = was != unknown.cost[link].seconds_per_byte && is != kNoLink &&
                            is > kFallen * was && tells(figures[link / n][link % n]);
    double& other = now.cost[back].seconds_per_byte;
    if (has_fallen && other != kNoLink && !tells(figures[link % n][link / n]))
      other = std::max(other, is / kFallen);
  }
}

bool has_full_line(const Sum& sum, const std::vector<double>& caps, size_t rank) {
  if (caps.empty() || caps[rank] == 0 || sum.links < 2 || sum.busy_us < kBusyMin) return false;
  return rate(sum.bytes, sum.busy_us) >= kFullLine * std::max(1 / caps[rank], sum.rates);
}

// Seconds a byte of a rank that others held up: faster than was known, up to what its links could
// carry together, each as in its last full round trip.
double grown(const Sum& sum, double known) {
  return sum.links < 2 ? known : std::max(known / kTrying, 1 / sum.full);
}

std::vector<double> caps(const std::vector<double>& before, const std::vector<Sum>& sums) {
  std::vector<double> result(sums.size());
  for (size_t rank = 0; rank < sums.size(); ++rank) {
    const double known = before.empty() ? 0 : before[rank];
    result[rank] = known;
    if (sums[rank].busy_us < kBusyMin || sums[rank].bytes < kBytesMin) continue;
    const double now = 1 / rate(sums[rank].bytes, sums[rank].busy_us);
    const bool is_held_up = sums[rank].starved_us > sums[rank].full_us;
    if (known == 0)
      result[rank] = is_held_up ? now / kTrying : now;
    else if (!is_held_up)
      result[rank] = std::min(now, known * kFading);
    else
      result[rank] = std::min({known, now / kTrying, grown(sums[rank], known)});
  }
  return result;
}

}  // namespace

bool measures(const LinkFigure& figure) {
  return tells(figure) || (figure.bytes >= kBytesMin && is_near(figure));
}

double full_part(const RankFigures& figures) {
  const auto sent = std::count_if(figures.begin(), figures.end(), tells);
  return sent < 2 ? kFullPartAlone : kFullPart;
}

size_t figures_bytes(int32_t world_size) {
  // Whole elements of every type.
  return (static_cast<size_t>(world_size) * kFigureBytes + 15) / 16 * 16;
}

void encode(const RankFigures& figures, std::span<std::byte> bytes) {
  ByteWriter out;
  for (const LinkFigure& figure : figures) {
    out.put(to_units(figure.bytes));
    out.put(figure.busy_us);
    out.put(std::min(figure.round_trip_us, kStarvedBit - 1) |
            (figure.is_starved ? kStarvedBit : 0));
    out.put(to_units(figure.received_bytes));
    out.put(figure.receiving_us);
    out.put(to_units(figure.full_rate));
  }
  std::fill(bytes.begin(), bytes.end(), std::byte{0});
  std::copy(out.bytes().begin(), out.bytes().end(), bytes.begin());
}

RankFigures decode_figures(std::span<const std::byte> bytes, int32_t world_size) {
  ByteReader in(bytes);
  RankFigures figures(static_cast<size_t>(world_size));
  for (LinkFigure& figure : figures) {
    figure.bytes = uint64_t{in.get<uint32_t>()} * kBytesUnit;
    figure.busy_us = in.get<uint32_t>();
    const auto round_trip = in.get<uint32_t>();
    figure.round_trip_us = round_trip & ~kStarvedBit;
    figure.is_starved = (round_trip & kStarvedBit) != 0;
    figure.received_bytes = uint64_t{in.get<uint32_t>()} * kBytesUnit;
    figure.receiving_us = in.get<uint32_t>();
    figure.full_rate = uint64_t{in.get<uint32_t>()} * kBytesUnit;
  }
  return figures;
}

Links learned(const Links& unknown, const Links& links, std::span<const RankFigures> figures) {
  Links result = links;
  const auto n = static_cast<size_t>(links.world_size);
  std::vector<Sum> out(n);
  std::vector<Sum> in(n);
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      if (from == to || links.cost[from * n + to].seconds_per_byte == kNoLink) continue;
      out[from].add(figures[from][to]);
      in[to].add(figures[from][to]);
    }
  }
  for (size_t from = 0; from < n; ++from) {
    for (size_t to = 0; to < n; ++to) {
      LinkCost& cost = result.cost[from * n + to];
      if (from == to || cost.seconds_per_byte == kNoLink) continue;
      const LinkFigure& figure = figures[from][to];
      if (figure.round_trip_us > kNearUs) cost.latency_seconds = figure.round_trip_us * 0.5e-6;
      const double best = unknown.cost[from * n + to].seconds_per_byte;
      if (!tells(figure) || is_near(figure)) {
        cost.seconds_per_byte =
            std::max(cost.seconds_per_byte / kForgetting, std::min(best, cost.seconds_per_byte));
        continue;
      }
      const double now = believable_rate(figure, figures[to][from]);
      const double before = 1 / cost.seconds_per_byte;
      result.is_measured = true;
      const bool was_measured = cost.seconds_per_byte != best;
      if (figure.is_starved && was_measured) {
        cost.seconds_per_byte = std::max(best, 1 / of_starved(figure, out[from], now, before));
        continue;
      }
      const bool shares_line = has_full_line(out[from], links.out_seconds_per_byte, from) ||
                               has_full_line(in[to], links.in_seconds_per_byte, to);
      if (shares_line && was_measured && now < before) continue;
      const bool is_noise = !differ(now, before, kNoise);
      cost.seconds_per_byte = 1 / (is_noise ? (now + before) / 2 : now);
    }
  }
  if (!result.is_measured) return result;
  doubt_ways_back(unknown, links, figures, result);
  result.out_seconds_per_byte = caps(links.out_seconds_per_byte, out);
  result.in_seconds_per_byte = caps(links.in_seconds_per_byte, in);
  return result;
}

bool is_other(const Links& before, const Links& now) {
  if (before.is_measured != now.is_measured) return true;
  for (size_t link = 0; link < now.cost.size(); ++link) {
    if (differ(before.cost[link].seconds_per_byte, now.cost[link].seconds_per_byte, kOther))
      return true;
  }
  return false;
}

void take_for_lines(const Links& unknown, Links& links) {
  const auto is_far = [&](size_t link) {
    return links.cost[link].seconds_per_byte < kNoLink &&
           links.cost[link].seconds_per_byte != unknown.cost[link].seconds_per_byte;
  };
  double fastest = kNoLink;
  double slowest = 0;
  for (size_t link = 0; link < links.cost.size(); ++link) {
    if (!is_far(link)) continue;
    fastest = std::min(fastest, links.cost[link].seconds_per_byte);
    slowest = std::max(slowest, links.cost[link].seconds_per_byte);
  }
  if (slowest > kAlike * fastest) return;
  const auto n = static_cast<size_t>(links.world_size);
  for (size_t link = 0; link < links.cost.size(); ++link) {
    if (!is_far(link)) continue;
    const double lines = std::max(links.send_seconds_per_byte(static_cast<int32_t>(link / n)),
                                  links.receive_seconds_per_byte(static_cast<int32_t>(link % n)));
    double& seconds = links.cost[link].seconds_per_byte;
    seconds = std::min(seconds, lines);
  }
}

}  // namespace pccl::topology
