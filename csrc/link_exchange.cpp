#include "link_exchange.h"

#include <algorithm>
#include <chrono>
#include <span>
#include <utility>

#include "topology/plan_parts.h"

namespace pccl {

using transport::Collective;
using transport::LinkTraffic;
using transport::Signature;

LinkExchange::LinkExchange(topology::Links unknown, int32_t rank, const Options& options,
                           TrafficSource traffic)
    : unknown_(std::move(unknown)),
      rank_(rank),
      traffic_(std::move(traffic)),
      told_(static_cast<size_t>(unknown_.world_size)),
      links_(topology::with_table(unknown_, options.table)),
      measured_at_(links_.cost.size()),
      probes_nothing_(!options.probes),
      now_{links_.is_measured ? 1U : 0U, std::make_shared<const topology::Links>(links_)} {
  if (!options.probes) return;
  std::vector<bool> missing = topology::missing(unknown_, options.table);
  if (std::find(missing.begin(), missing.end(), true) == missing.end()) return;
  probes_.emplace(std::move(missing), unknown_.world_size, rank_);
}

void LinkExchange::Told::on_complete() {
  is_complete = true;
  if (!call) return;
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - begun_at);
  call->us = static_cast<uint32_t>(std::clamp<int64_t>(us.count(), 1, UINT32_MAX));
}

void LinkExchange::serve(Group& group) {
  group_ = &group;
  if (!probes_) return;
  probes_->serve(group);
  group.wake_at(Clock::now());
}

void LinkExchange::on_turn(int32_t rank, uint64_t round) {
  if (probes_) probes_->on_turn(rank, round);
  if (probes_nothing_ && round == 0 && group_ != nullptr) group_->tell_turn(rank, kNoProbes);
}

TimePoint LinkExchange::on_time(TimePoint now) {
  if (!probes_ || !probes_->is_served()) return TimePoint::max();
  if (links_.is_measured) probes_->begin(now);
  return probes_->on_time(now);
}

bool LinkExchange::is_large(const Signature& signature) {
  return signature.collective == Collective::AllReduce &&
         signature.count >= kBytesMin / element_bytes(signature.dtype);
}

bool LinkExchange::begins_with_all() const {
  const int32_t n = unknown_.world_size;
  if (n <= kBlindRingRanksMax || n > kBlindRanksMax) return false;
  for (int32_t from = 0; from < n; ++from) {
    for (int32_t to = 0; to < n; ++to) {
      const double usual = unknown_.at(0, 1).seconds_per_byte;
      if (from != to && unknown_.at(from, to).seconds_per_byte != usual) return false;
    }
  }
  return true;
}

bool LinkExchange::open() {
  if (!overlaps_) overlaps_ = !std::all_of(pending_.begin(), pending_.end(), has_ended);
  if (probes_ && probes_->is_served()) {
    probes_->begin(Clock::now());
    const bool is_declined = probes_->is_declined();
    if (!is_declined && !probes_->is_done()) return probes_->is_hopeless();
    if (is_declined) probes_.reset();
    if (!is_declined) learn_probed();
  }
  while (pending_.size() >= behind()) {
    if (!has_ended(pending_.front())) return false;
    if (pending_.front()->is_complete) learn(*pending_.front());
    pending_.pop_front();
  }
  return true;
}

void LinkExchange::learn(const Told& told) {
  const int32_t n = unknown_.world_size;
  const size_t bytes = topology::figures_bytes(n);
  std::vector<topology::RankFigures> figures;
  figures.reserve(told_.size());
  for (size_t rank = 0; rank < told_.size(); ++rank) {
    figures.push_back(
        topology::decode_figures(std::span(told.memory).subspan(rank * bytes, bytes), n));
  }
  bool overlaps = false;
  for (size_t rank = 0; rank < told_.size(); ++rank)
    overlaps = overlaps || topology::overlaps(figures[rank], rank);
  alone_calls_ = overlaps ? 0 : alone_calls_ + 1;
  trials_version_ += trials_.learn(figures) ? 1 : 0;
  topology::Links links = topology::learned(unknown_, links_, figures);
  const bool was_blind = !links_.is_measured && begins_with_all();
  if (was_blind && links.is_measured) topology::take_for_lines(unknown_, links);
  take(std::move(links), figures);
}

void LinkExchange::learn_probed() {
  const std::vector<topology::RankFigures> alone = probes_->alone();
  const topology::Links shared = topology::learned(unknown_, links_, probes_->together());
  topology::Links links = topology::learned(unknown_, links_, alone);
  if (links.is_measured) {
    topology::LinkTable table = topology::to_table(unknown_, links);
    std::erase_if(table.links, [&](const topology::LinkEntry& link) {
      return probes_->is_missing(link.from, link.to) && alone[link.from][link.to].bytes == 0;
    });
    links = topology::with_table(unknown_, table);
  }
  links.out_seconds_per_byte = shared.out_seconds_per_byte;
  links.in_seconds_per_byte = shared.in_seconds_per_byte;
  // In all a rank sends, and receives, no less than over its fastest link.
  for (size_t link = 0; link < links.cost.size() && !links.out_seconds_per_byte.empty(); ++link) {
    const size_t from = link / told_.size();
    const size_t to = link % told_.size();
    if (from == to || alone[from][to].bytes == 0) continue;
    double& out = links.out_seconds_per_byte[from];
    double& in = links.in_seconds_per_byte[to];
    out = std::min(out, links.cost[link].seconds_per_byte);
    in = std::min(in, links.cost[link].seconds_per_byte);
  }
  probes_.reset();
  // What the probes have sent says nothing of the calls to come.
  told_ = traffic_();
  take(std::move(links), alone);
}

void LinkExchange::take(topology::Links links, const std::vector<topology::RankFigures>& figures) {
  links_ = std::move(links);
  const TimePoint now = Clock::now();
  for (size_t link = 0; link < measured_at_.size(); ++link) {
    const topology::LinkFigure& figure = figures[link / figures.size()][link % figures.size()];
    // What others held up is told to nobody: they would take the least for what it can do. Of near
    // links no rate counts.
    const bool is_near = links_.cost[link].seconds_per_byte == unknown_.cost[link].seconds_per_byte;
    if (topology::measures(figure) && (is_near || !figure.is_starved)) measured_at_[link] = now;
  }
  if (!topology::is_other(*now_.links, links_)) return;
  now_ = {now_.version + 1, std::make_shared<const topology::Links>(links_)};
}

void LinkExchange::add_chunks(topology::Schedule& schedule, size_t element_bytes,
                              std::span<const topology::TreePair> trees) {
  const int32_t n = schedule.world_size;
  const uint64_t count = topology::figures_bytes(n) / element_bytes;
  for (int32_t rank = 0; rank < n; ++rank) {
    const auto block = static_cast<uint32_t>(1 + rank);
    schedule.chunks.push_back(topology::whole_block(block, count, false, {rank}));
    schedule.chunks.back().down =
        trees.empty() ? topology::star_down(n, rank) : trees[static_cast<size_t>(rank)].down;
  }
}

void LinkExchange::attach(CollectiveCall& call, uint32_t label) {
  const size_t bytes = topology::figures_bytes(unknown_.world_size);
  auto told = std::make_shared<Told>(bytes * told_.size());
  for (size_t rank = 0; rank < told_.size(); ++rank) {
    const std::span<std::byte> own = std::span(told->memory).subspan(rank * bytes, bytes);
    const bool is_own = static_cast<int32_t>(rank) == rank_;
    if (is_own) topology::encode(measure(), own);
    call.blocks.push_back(
        {is_own ? own.data() : nullptr, own.data(), bytes / element_bytes(call.signature.dtype)});
  }
  last_call_.reset();
  if (!overlaps_.value_or(false)) {
    told->call = std::make_shared<topology::CallFigure>(topology::CallFigure{.label = label});
    last_call_ = told->call;
  }
  pending_.push_back(told);
  overlaps_.reset();
  call.attachment = std::move(told);
}

void LinkExchange::skip() {
  pending_.push_back(std::make_shared<Told>(0));
  overlaps_.reset();
  last_call_.reset();
}

topology::RankFigures LinkExchange::measure() {
  std::vector<LinkTraffic> now = traffic_();
  topology::RankFigures figures(now.size());
  std::vector<uint64_t> full_us(now.size());
  for (size_t rank = 0; rank < now.size(); ++rank) {
    // A connection that is another one now counts anew.
    const bool is_same = now[rank].busy_us >= told_[rank].busy_us &&
                         now[rank].delivered_bytes >= told_[rank].delivered_bytes &&
                         now[rank].received_bytes >= told_[rank].received_bytes;
    const LinkTraffic before = is_same ? told_[rank] : LinkTraffic{};
    figures[rank] = {
        .bytes = now[rank].delivered_bytes - before.delivered_bytes,
        .busy_us = static_cast<uint32_t>(
            std::min<uint64_t>(now[rank].busy_us - before.busy_us, UINT32_MAX)),
        .round_trip_us = static_cast<uint32_t>(now[rank].round_trip_seconds_min * 1e6),
        .received_bytes = now[rank].received_bytes - before.received_bytes,
        .receiving_us = static_cast<uint32_t>(
            std::min<uint64_t>(now[rank].receiving_us - before.receiving_us, UINT32_MAX)),
        .full_rate = static_cast<uint64_t>(now[rank].delivery_bytes_per_second),
    };
    full_us[rank] = now[rank].full_us - before.full_us;
  }
  const auto full_part = topology::full_part(figures);
  for (size_t rank = 0; rank < now.size(); ++rank)
    figures[rank].is_starved =
        static_cast<double>(full_us[rank]) < full_part * figures[rank].busy_us;
  topology::set_overlaps(figures, static_cast<size_t>(rank_), overlaps_.value_or(false));
  if (last_call_ && last_call_->us > 0)
    topology::set_last_call(figures, static_cast<size_t>(rank_), *last_call_);
  told_ = std::move(now);
  return figures;
}

LinkExchange::Measured LinkExchange::measured(int32_t peer, TimePoint now) const {
  Measured result;
  const auto look = [&](int32_t from, int32_t to) -> uint32_t {
    const auto link = static_cast<size_t>(from) * told_.size() + static_cast<size_t>(to);
    const TimePoint at = measured_at_[link];
    if (at == TimePoint{}) return 0;
    const auto ago = std::chrono::duration_cast<std::chrono::seconds>(now - at).count();
    result.seconds_ago = std::max(result.seconds_ago, static_cast<uint32_t>(ago));
    return topology::to_kib_per_second(links_.at(from, to).seconds_per_byte);
  };
  result.sends = look(rank_, peer);
  result.receives = look(peer, rank_);
  return result;
}

topology::LinkTable LinkExchange::known() const {
  const topology::Links& links = *now_.links;
  return links.is_measured ? topology::to_table(unknown_, links) : topology::LinkTable{};
}

topology::CapEntry LinkExchange::own_cap() const {
  if (links_.out_seconds_per_byte.empty()) return {};
  const auto rank = static_cast<size_t>(rank_);
  return {topology::to_kib_per_second(links_.out_seconds_per_byte[rank]),
          topology::to_kib_per_second(links_.in_seconds_per_byte[rank])};
}

}  // namespace pccl
