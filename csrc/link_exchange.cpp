#include "link_exchange.h"

#include <algorithm>
#include <span>
#include <utility>

#include "topology/plan_parts.h"

namespace pccl {

using transport::Collective;
using transport::LinkTraffic;
using transport::Signature;

LinkExchange::LinkExchange(topology::Links unknown, int32_t rank, const topology::LinkTable& table,
                           TrafficSource traffic)
    : unknown_(std::move(unknown)),
      rank_(rank),
      traffic_(std::move(traffic)),
      told_(static_cast<size_t>(unknown_.world_size)),
      links_(topology::with_table(unknown_, table)),
      measured_at_(links_.cost.size()),
      now_{links_.is_measured ? 1U : 0U, std::make_shared<const topology::Links>(links_)} {}

bool LinkExchange::is_large(const Signature& signature) {
  return signature.collective == Collective::AllReduce &&
         signature.count >= kBytesMin / element_bytes(signature.dtype);
}

bool LinkExchange::open() {
  if (pending_.size() == kBehind && has_ended(pending_.front())) {
    if (pending_.front()->is_complete) learn(*pending_.front());
    pending_.pop_front();
  }
  return pending_.size() < kBehind;
}

void LinkExchange::learn(const Told& told) {
  const int32_t n = unknown_.world_size;
  const size_t bytes = topology::figures_bytes(n);
  std::vector<topology::RankFigures> figures;
  for (size_t rank = 0; rank < told_.size(); ++rank) {
    figures.push_back(
        topology::decode_figures(std::span(told.memory).subspan(rank * bytes, bytes), n));
  }
  links_ = topology::learned(unknown_, links_, figures);
  const TimePoint now = Clock::now();
  for (size_t link = 0; link < measured_at_.size(); ++link) {
    const auto ranks = static_cast<size_t>(n);
    if (topology::measures(figures[link / ranks][link % ranks])) measured_at_[link] = now;
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

void LinkExchange::attach(CollectiveCall& call) {
  const size_t bytes = topology::figures_bytes(unknown_.world_size);
  auto told = std::make_shared<Told>(bytes * told_.size());
  for (size_t rank = 0; rank < told_.size(); ++rank) {
    const std::span<std::byte> own = std::span(told->memory).subspan(rank * bytes, bytes);
    const bool is_own = static_cast<int32_t>(rank) == rank_;
    if (is_own) topology::encode(measure(), own);
    call.blocks.push_back(
        {is_own ? own.data() : nullptr, own.data(), bytes / element_bytes(call.signature.dtype)});
  }
  pending_.push_back(told);
  call.attachment = std::move(told);
}

void LinkExchange::skip() { pending_.push_back(std::make_shared<Told>(0)); }

topology::RankFigures LinkExchange::measure() {
  std::vector<LinkTraffic> now = traffic_();
  topology::RankFigures figures(now.size());
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
    };
  }
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
