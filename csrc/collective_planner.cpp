#include "collective_planner.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>

#include "topology/planners.h"

namespace pccl {

using transport::Collective;
using transport::Signature;

namespace {

// Segments: through memory both copies of one stay in a core's first caches; over TCP fewer system
// calls count for more.
constexpr uint32_t kMemorySegmentBytes = 32 << 10;
constexpr uint32_t kTcpSegmentBytes = 512 << 10;

// Only the two ends of each block know its length.
topology::Schedule with_whole_blocks(topology::Schedule schedule) {
  for (topology::Chunk& chunk : schedule.chunks) {
    chunk.offset = 0;
    chunk.count = topology::Chunk::kWholeBlock;
  }
  return schedule;
}

}  // namespace

std::vector<int32_t> host_numbers(std::span<const transport::MemberAddress> members) {
  std::map<std::string, int32_t> numbers;
  std::vector<int32_t> hosts;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    const transport::MemberAddress& member = members[rank];
    const std::string host =
        member.memory_name.empty() ? "alone:" + std::to_string(rank) : member.host_key;
    const auto number = static_cast<int32_t>(numbers.size());
    hosts.push_back(numbers.emplace(host, number).first->second);
  }
  return hosts;
}

CollectivePlanner::CollectivePlanner(const std::vector<int32_t>& hosts, int32_t rank,
                                     std::string algorithm)
    : links_(topology::host_links(hosts)),
      is_one_host_(std::set<int32_t>(hosts.begin(), hosts.end()).size() == 1),
      rank_(rank),
      algorithm_(std::move(algorithm)) {
  // An unknown algorithm is refused now, not by the first call.
  topology::choose_all_reduce(links_, 1, 1, algorithm_);
}

uint32_t CollectivePlanner::segment_bytes(bool shares_memory) const {
  return is_one_host_ && shares_memory ? kMemorySegmentBytes : kTcpSegmentBytes;
}

topology::Schedule CollectivePlanner::schedule(const Signature& signature,
                                               std::span<const uint64_t> counts) const {
  const uint64_t bytes = element_bytes(signature.dtype);
  const int32_t n = links_.world_size;
  const std::vector<uint64_t> ones(static_cast<size_t>(n), 1);
  // An algorithm chosen by name is meant for all_reduce; others take it where they have one of that
  // name.
  const auto named = [this](std::initializer_list<std::string_view> known) {
    return std::find(known.begin(), known.end(), algorithm_) != known.end()
               ? std::string_view(algorithm_)
               : "auto";
  };
  switch (signature.collective) {
    case Collective::AllReduce:
      return topology::choose_all_reduce(links_, signature.count, bytes, algorithm_);
    case Collective::Barrier:
      return topology::plan_all_reduce_doubling(n, 1);
    case Collective::Broadcast:
      return topology::choose_broadcast(links_, signature.root, signature.count, bytes,
                                        named({"binomial", "double_binary_tree"}));
    case Collective::Reduce:
      return topology::choose_reduce(links_, signature.root, signature.count, bytes,
                                     named({"binomial", "double_binary_tree"}));
    case Collective::AllGather:
      return topology::choose_all_gather(links_, counts, bytes, named({"ring", "direct"}));
    case Collective::ReduceScatter:
      return topology::choose_reduce_scatter(links_, counts, bytes, named({"ring", "direct"}));
    case Collective::Gather:
      return with_whole_blocks(topology::plan_gather_direct(signature.root, ones));
    case Collective::Scatter:
      return with_whole_blocks(topology::plan_scatter_direct(signature.root, ones));
    case Collective::AllToAll:
      return topology::plan_all_to_all_pairwise(n);
    case Collective::None:
    case Collective::SendRecv:
      break;
  }
  throw std::invalid_argument("no schedule for this collective");
}

CollectivePlanner::Planned CollectivePlanner::planned(const Signature& signature,
                                                      std::span<const uint64_t> counts) {
  std::string key(reinterpret_cast<const char*>(&signature.count), sizeof(signature.count));
  key += static_cast<char>(signature.collective);
  key += static_cast<char>(element_bytes(signature.dtype));
  key.append(reinterpret_cast<const char*>(&signature.root), sizeof(signature.root));
  key.append(reinterpret_cast<const char*>(counts.data()), counts.size_bytes());
  std::lock_guard lock(mutex_);
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second;
  if (plans_.size() >= kPlansMax) plans_.clear();
  const topology::Schedule made = schedule(signature, counts);
  Planned result{std::make_shared<const RankPlan>(compile(made, rank_)), made.algorithm};
  plans_[key] = result;
  return result;
}

}  // namespace pccl
