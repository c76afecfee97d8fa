#include "collectives/rank_plan.h"

#include <algorithm>
#include <set>

namespace pccl {
namespace {

// Of the rank at `position` of the core.
std::vector<ChunkPlan::Round> rounds_of(const topology::Chunk& chunk, size_t position) {
  std::vector<ChunkPlan::Round> rounds;
  if (chunk.exchanges_at_once) {
    for (size_t other = 0; other < chunk.core.size(); ++other) {
      if (other == position) continue;
      rounds.push_back({chunk.core[other], other < position, static_cast<uint16_t>(position),
                        static_cast<uint16_t>(other)});
    }
    return rounds;
  }
  uint16_t round = 0;
  for (size_t bit = 1; bit < chunk.core.size(); bit <<= 1, ++round) {
    rounds.push_back({chunk.core[position ^ bit], (position & bit) != 0, round, round});
  }
  return rounds;
}

ChunkPlan plan_chunk(const topology::Chunk& chunk, uint32_t index, int32_t rank) {
  ChunkPlan plan;
  plan.chunk = index;
  plan.block = chunk.block;
  plan.offset = chunk.offset;
  plan.count = chunk.count;
  plan.reduces = chunk.reduces;
  for (const topology::Edge& edge : chunk.up) {
    if (edge.to == rank) plan.up_children.push_back(edge.from);
    if (edge.from == rank) plan.up_parent = edge.to;
  }
  for (const topology::Edge& edge : chunk.down) {
    if (edge.from == rank) plan.down_children.push_back(edge.to);
    if (edge.to == rank) plan.down_parent = edge.from;
  }
  plan.root = chunk.core.front();
  plan.is_exchanged = chunk.core.size() > 1;
  const auto found = std::find(chunk.core.begin(), chunk.core.end(), rank);
  plan.is_core = found != chunk.core.end();
  if (plan.is_core) plan.rounds = rounds_of(chunk, static_cast<size_t>(found - chunk.core.begin()));
  plan.exchanges_at_once = chunk.exchanges_at_once;
  return plan;
}

}  // namespace

RankPlan compile(const topology::Schedule& schedule, int32_t rank) {
  RankPlan result;
  result.pool = schedule.pool;
  result.index_of_chunk.assign(schedule.chunks.size(), -1);
  std::set<int32_t> senders;
  std::set<int32_t> receivers;
  for (uint32_t index = 0; index < schedule.chunks.size(); ++index) {
    ChunkPlan plan = plan_chunk(schedule.chunks[index], index, rank);
    const bool has_edges = !plan.up_children.empty() || plan.up_parent >= 0 ||
                           plan.down_parent >= 0 || !plan.down_children.empty();
    if (!plan.is_core && !has_edges) continue;
    senders.insert(plan.up_children.begin(), plan.up_children.end());
    receivers.insert(plan.down_children.begin(), plan.down_children.end());
    if (plan.up_parent >= 0) receivers.insert(plan.up_parent);
    if (plan.down_parent >= 0) senders.insert(plan.down_parent);
    for (const auto& round : plan.rounds) {
      senders.insert(round.partner);
      receivers.insert(round.partner);
    }
    result.index_of_chunk[index] = static_cast<int32_t>(result.chunks.size());
    result.chunks.push_back(std::move(plan));
  }
  std::set_union(senders.begin(), senders.end(), receivers.begin(), receivers.end(),
                 std::back_inserter(result.peers));
  std::set_difference(senders.begin(), senders.end(), receivers.begin(), receivers.end(),
                      std::back_inserter(result.receives_only));
  std::set_difference(receivers.begin(), receivers.end(), senders.begin(), senders.end(),
                      std::back_inserter(result.sends_only));
  return result;
}

}  // namespace pccl
