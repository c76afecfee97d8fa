#include "link_probes.h"

#include <algorithm>
#include <utility>

namespace pccl {

using topology::LinkFigure;
using topology::ProbeRound;
using topology::RankFigures;
using transport::LinkTraffic;

namespace {

constexpr double kTickSeconds = 0.005;
// Less says nothing about a link.
constexpr uint64_t kBytesMin = 48 << 10;
// Under way, unless so many round trips of what the link has shown need more.
constexpr uint64_t kAheadBytesMin = 64 << 10;
constexpr double kAheadRoundTrips = 2.5;
// A rate that has grown by less from one look to the one after the next grows no more: TCP doubles
// it in each round trip until the link is full.
constexpr double kGrowth = 1.25;
constexpr double kLookSecondsMin = 0.01;
// Within a local network a burst is short, and sent at once.
constexpr double kNearSeconds = 0.001;
constexpr uint64_t kNearBurstBytes = 256 << 10;
// For a rank that says nothing in a round.
constexpr double kWaitSecondsMax = 3;
// Figures are told as if a link had been busy for so long.
constexpr uint32_t kToldUs = 10'000'000;

double in_seconds(Clock::duration time) { return std::chrono::duration<double>(time).count(); }

bool is_near(const LinkTraffic& traffic) {
  return traffic.round_trip_seconds_min > 0 && traffic.round_trip_seconds_min < kNearSeconds;
}

}  // namespace

LinkProbes::LinkProbes(std::vector<bool> missing, int32_t world_size, int32_t rank)
    : missing_(std::move(missing)),
      world_size_(world_size),
      rank_(rank),
      rounds_(topology::probe_rounds(missing_, world_size, rank)),
      heard_(static_cast<size_t>(world_size)),
      own_alone_(static_cast<size_t>(world_size)),
      own_together_(static_cast<size_t>(world_size)),
      told_(static_cast<size_t>(world_size)) {}

void LinkProbes::begin(TimePoint now) {
  if (phase_ != Phase::Idle) return;
  phase_ = Phase::Gathering;
  heard_[static_cast<size_t>(rank_)] = 1;
  for (int32_t peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    group_->reach(peer);
    group_->tell_turn(peer, 0);
  }
  group_->wake_at(now);
}

void LinkProbes::on_turn(int32_t rank, uint64_t round) {
  is_declined_ |= round == kNoProbes;
  uint64_t& heard = heard_[static_cast<size_t>(rank)];
  heard = std::max(heard, std::min(round, kNoProbes) + 1);
  if (group_ != nullptr) group_->wake_at(Clock::now());
}

bool LinkProbes::all_said(const std::vector<int32_t>& ranks, uint64_t round) const {
  return std::all_of(ranks.begin(), ranks.end(),
                     [&](int32_t rank) { return heard_[static_cast<size_t>(rank)] > round; });
}

TimePoint LinkProbes::on_time(TimePoint now) {
  if (phase_ == Phase::Idle || phase_ == Phase::Told || is_declined_) return TimePoint::max();
  if (phase_ == Phase::Gathering) {
    if (std::find(heard_.begin(), heard_.end(), uint64_t{0}) != heard_.end())
      return TimePoint::max();  // until it is heard
    began_ = now;
    enter(0, now);
  }
  while (phase_ != Phase::Told && step(now)) {
  }
  if (phase_ == Phase::Told) return TimePoint::max();
  if (now > after(began_, kProbeSecondsMax)) {
    tell();
    return TimePoint::max();
  }
  return after(now, is_near_ ? kTickSeconds / 10 : kTickSeconds);
}

// To the round after the last one: it is over.
void LinkProbes::enter(size_t index, TimePoint now) {
  bursts_.clear();
  is_near_ = false;
  round_ = index;
  entered_ = now;
  phase_ = Phase::Waiting;
  if (index == rounds_.size()) {
    tell();
    return;
  }
  for (const int32_t from : rounds_[index].from) group_->tell_turn(from, rounds_[index].number + 1);
}

// What is due in this round; whether it is over.
bool LinkProbes::step(TimePoint now) {
  const ProbeRound& round = rounds_[round_];
  const uint64_t number = round.number + 1;
  const bool is_late = now > after(entered_, kWaitSecondsMax);
  if (phase_ == Phase::Waiting) {
    if (!is_late && !all_said(round.to.empty() ? round.from : round.to, number)) return false;
    phase_ = Phase::Sending;
    for (const int32_t to : round.to) {
      if (all_said({to}, number) && group_->reach(to)) start(to, now);
    }
  }
  for (Burst& burst : bursts_) look(burst, now);
  if (phase_ == Phase::Sending) {
    const bool are_full = std::all_of(bursts_.begin(), bursts_.end(),
                                      [](const Burst& burst) { return burst.is_full; });
    const bool is_enough = std::any_of(bursts_.begin(), bursts_.end(), [now](const Burst& burst) {
      return now > after(burst.began, kBurstSecondsMax);
    });
    if (!are_full && !is_enough) return false;
    note_bursts(round.is_shared);
    phase_ = Phase::Draining;
    entered_ = now;
  }
  const bool is_empty = std::all_of(bursts_.begin(), bursts_.end(), [](const Burst& burst) {
    return burst.delivered >= burst.sent;
  });
  if (!is_empty && now < after(entered_, kBurstSecondsMax)) return false;
  for (const int32_t to : round.to) group_->tell_turn(to, number);
  enter(round_ + 1, now);
  return true;
}

void LinkProbes::start(int32_t to, TimePoint now) {
  const LinkTraffic before = group_->counted(to);
  is_near_ |= is_near(before);
  bursts_.push_back({.to = to,
                     .delivered_before = before.delivered_bytes,
                     .began = now,
                     .last = {.at = now},
                     .seen_at = now});
}

void LinkProbes::look(Burst& burst, TimePoint now) {
  const LinkTraffic traffic = group_->counted(burst.to);
  // By sockets that are gone: nothing.
  burst.delivered =
      traffic.delivered_bytes - std::min(traffic.delivered_bytes, burst.delivered_before);
  if (phase_ != Phase::Sending) return;
  if (burst.delivered >= kBytesMin)
    burst.best = std::max(burst.best, traffic.delivery_bytes_per_second);
  // Without what waits in queues, which says nothing but that the link is full.
  const double shortest = std::max(traffic.round_trip_seconds_min, kTickSeconds);
  const uint64_t under_way = burst.sent - std::min(burst.sent, burst.delivered);
  burst.has_paused |= static_cast<double>(under_way) < burst.best * shortest;
  if (now >= after(burst.last.at, std::max(shortest, kLookSecondsMin))) take_look(burst, now);
  const bool is_lan = is_near(traffic);
  const uint64_t bytes_max = is_lan ? kNearBurstBytes : kBurstBytesMax;
  burst.is_full |= burst.sent >= bytes_max && under_way == 0;
  // A busy machine comes to it late: then more must be under way.
  burst.late_seconds = std::max(burst.late_seconds, in_seconds(now - burst.seen_at));
  burst.seen_at = now;
  const double wanted = burst.best * (kAheadRoundTrips * shortest + burst.late_seconds);
  const uint64_t ahead =
      is_lan ? kNearBurstBytes : std::max(kAheadBytesMin, static_cast<uint64_t>(wanted));
  while (burst.sent < bytes_max && burst.sent < burst.delivered + ahead)
    burst.sent += group_->send_probe(burst.to);
}

void LinkProbes::take_look(Burst& burst, TimePoint now) {
  const Look before = std::exchange(burst.before_last, burst.last);
  burst.last = {now, burst.delivered, burst.best};
  // A link that had nothing to carry for a while is not full.
  if (std::exchange(burst.has_paused, false)) burst.before_last = {};
  if (before.at == TimePoint{} || burst.before_last.at == TimePoint{}) return;
  burst.is_full |= before.best > 0 && burst.best < kGrowth * before.best;
  burst.lately =
      static_cast<double>(burst.delivered - before.delivered) / in_seconds(now - before.at);
}

// Of a slow link too few bytes have come for the kernel's figure.
void LinkProbes::note_bursts(bool is_shared) {
  RankFigures& own = is_shared ? own_together_ : own_alone_;
  for (const Burst& burst : bursts_) {
    const double since = in_seconds(burst.last.at - burst.began);
    const double mean = since > 0 ? static_cast<double>(burst.last.delivered) / since : 0;
    const double rate = is_shared && burst.lately > 0 ? burst.lately : burst.best;
    own[static_cast<size_t>(burst.to)] = figure(burst.to, rate > 0 ? rate : mean);
  }
}

void LinkProbes::tell() {
  phase_ = Phase::Told;
  bursts_.clear();
  const size_t half = topology::figures_bytes(world_size_);
  std::vector<std::byte> bytes(2 * half);
  topology::encode(own_alone_, std::span(bytes).first(half));
  topology::encode(own_together_, std::span(bytes).last(half));
  for (int32_t peer = 0; peer < world_size_; ++peer) {
    if (peer != rank_) group_->tell_figures(peer, bytes);
  }
  on_told(rank_, bytes);
}

void LinkProbes::on_told(int32_t rank, std::span<const std::byte> bytes) {
  std::vector<std::byte>& told = told_[static_cast<size_t>(rank)];
  // What a rank tells counts once: the others may have gone on by it.
  if (!told.empty() || bytes.size() != 2 * topology::figures_bytes(world_size_)) return;
  told.assign(bytes.begin(), bytes.end());
  told_count_ += 1;
}

bool LinkProbes::is_hopeless() const {
  for (int32_t peer = 0; peer < world_size_; ++peer) {
    if (peer != rank_ && group_->has_left(peer)) return true;
  }
  return false;
}

LinkFigure LinkProbes::figure(int32_t to, double rate) const {
  const auto round_trip_us =
      static_cast<uint32_t>(group_->counted(to).round_trip_seconds_min * 1e6);
  if (rate <= 0) return {.round_trip_us = round_trip_us};
  return {.bytes = static_cast<uint64_t>(rate * 1e-6 * kToldUs),
          .busy_us = kToldUs,
          .round_trip_us = round_trip_us};
}

std::vector<RankFigures> LinkProbes::figures(size_t half) const {
  const size_t bytes = topology::figures_bytes(world_size_);
  std::vector<RankFigures> result;
  result.reserve(told_.size());
  for (const std::vector<std::byte>& told : told_) {
    result.push_back(
        topology::decode_figures(std::span(told).subspan(half * bytes, bytes), world_size_));
  }
  return result;
}

}  // namespace pccl
