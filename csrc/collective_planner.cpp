#include "collective_planner.h"

#include <algorithm>
#include <atomic>
#include <set>
#include <stdexcept>
#include <string_view>
#include <thread>
#include <utility>

#include "topology/capacities.h"
#include "topology/overlay.h"
#include "topology/planners.h"
#include "topology/pool.h"

namespace pccl {

using transport::Collective;
using transport::LinkTraffic;
using transport::Signature;

namespace {

// Segments: through memory both copies of one stay in a core's first caches; over TCP fewer system
// calls count for more.
constexpr uint32_t kMemorySegmentBytes = 32 << 10;
constexpr uint32_t kTcpSegmentBytes = 512 << 10;

// Flows of TCP share the line of a host unevenly, and the slowest one ends an operation: between
// hosts, schedules in which a rank sends to several at once reach so much less of the bound than a
// ring, which the cost model does not know.
constexpr double kSharingCost = 1.25;

// What is measured of flows that share lines is noise, too: equal parts for all are taken unless
// others are so much better.
constexpr double kUnequalGain = 1.2;

// Only the two ends of each block know its length.
topology::Schedule with_whole_blocks(topology::Schedule schedule) {
  for (topology::Chunk& chunk : schedule.chunks) {
    chunk.offset = 0;
    chunk.count = topology::Chunk::kWholeBlock;
  }
  return schedule;
}

// Whether a rank sends to several others.
bool shares_lines(const topology::Schedule& schedule) {
  std::vector<int32_t> target(static_cast<size_t>(schedule.world_size), -1);
  for (const topology::Chunk& chunk : schedule.chunks) {
    for (const auto* edges : {&chunk.up, &chunk.down}) {
      for (const topology::Edge& edge : *edges) {
        int32_t& known = target[static_cast<size_t>(edge.from)];
        if (known >= 0 && known != edge.to) return true;
        known = edge.to;
      }
    }
  }
  return false;
}

topology::PlanTrials::Kind kind_of(const Signature& signature) {
  return {.bytes = signature.count * element_bytes(signature.dtype),
          .is_coded = signature.codec != Codec{}};
}

topology::Schedule all_reduce_of(const Signature& signature, const topology::Links& links,
                                 const topology::Routes* routes, std::string_view algorithm) {
  const uint64_t bytes = element_bytes(signature.dtype);
  const auto choose = [&](std::string_view name) {
    return topology::choose_all_reduce(links, signature.count, bytes, name, routes);
  };
  topology::Schedule best = choose(algorithm);
  if (!links.is_measured || algorithm != "auto" || !shares_lines(best)) return best;
  const auto seconds = [&](const topology::Schedule& schedule) {
    return topology::estimate(schedule, links, bytes, topology::kSegmentBytesAssumed).seconds;
  };
  const double least = seconds(best);
  if (routes == nullptr || !routes->ring.empty()) {
    topology::Schedule ring = choose("ring");
    if (seconds(ring) <= kSharingCost * least) return ring;
  }
  if (topology::has_gaps(links)) return best;
  topology::Schedule equal = topology::plan_all_reduce_direct(links.world_size, signature.count);
  return seconds(equal) <= kUnequalGain * least ? equal : best;
}

topology::Schedule schedule_of(const Signature& signature, std::span<const uint64_t> counts,
                               const topology::Links& links, const topology::Routes* routes,
                               std::string_view algorithm) {
  const uint64_t bytes = element_bytes(signature.dtype);
  const int32_t n = links.world_size;
  const std::vector<uint64_t> ones(static_cast<size_t>(n), 1);
  // An algorithm chosen by name is meant for all_reduce; others take it where they have one of that
  // name.
  const auto named = [algorithm](std::initializer_list<std::string_view> known) {
    return std::find(known.begin(), known.end(), algorithm) != known.end() ? algorithm : "auto";
  };
  switch (signature.collective) {
    case Collective::AllReduce:
      if (signature.codec != Codec{})
        return topology::choose_coded_all_reduce(links, signature.count, algorithm, routes);
      return all_reduce_of(signature, links, routes, algorithm);
    case Collective::Barrier: {
      topology::Schedule quickest = topology::choose_all_reduce(links, 1, 1, "auto", routes);
      const bool is_good = topology::has_gaps(links) || quickest.algorithm == "exchange";
      return is_good ? quickest : topology::plan_all_reduce_doubling(n, 1);
    }
    case Collective::Broadcast:
      return topology::choose_broadcast(links, signature.root, signature.count, bytes,
                                        named({"binomial", "double_binary_tree"}));
    case Collective::Reduce:
      return topology::choose_reduce(links, signature.root, signature.count, bytes,
                                     named({"binomial", "double_binary_tree"}));
    case Collective::AllGather:
      return topology::choose_all_gather(links, counts, bytes, named({"ring", "direct"}));
    case Collective::ReduceScatter:
      return topology::choose_reduce_scatter(links, counts, bytes, named({"ring", "direct"}));
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

}  // namespace

std::vector<LinkTraffic> traffic_of(std::span<transport::Connection* const> connections) {
  std::vector<LinkTraffic> traffic;
  for (const transport::Connection* connection : connections)
    traffic.push_back(connection == nullptr ? LinkTraffic{} : connection->counted());
  return traffic;
}

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

std::optional<topology::Graph> overlay_of(std::span<const transport::MemberAddress> members,
                                          const std::string& graph) {
  const auto named = [](const std::string& text) {
    return text.empty() ? std::string("no graph") : "graph \"" + text + "\"";
  };
  const std::string own = topology::shown_graph(graph);
  std::vector<bool> accepts;
  for (size_t rank = 0; rank < members.size(); ++rank) {
    accepts.push_back(members[rank].accepts_calls());
    if (members[rank].graph == own) continue;
    throw std::invalid_argument("graph: rank " + std::to_string(rank) + " (" +
                                members[rank].describe() + ") has " + named(members[rank].graph) +
                                ", this member has " + named(own) +
                                "; all members must name the same one");
  }
  return topology::overlay_graph(graph, accepts);
}

namespace {

topology::Links known_at_first(const PlannerOptions& options) {
  topology::Links links = topology::host_links(options.hosts, options.is_one_machine);
  if (!options.graph) return links;
  links = topology::links_of_graph(links, *options.graph);
  links.is_measured = true;  // plans that fit any links do not fit these
  return links;
}

// Finding the best routes takes up to a second here, and several above.
constexpr int32_t kRoutesAtOnceMax = 32;

}  // namespace

struct CollectivePlanner::Search {
  KnownLinks links;
  std::vector<int32_t> ring;  // so far
  std::shared_ptr<const topology::Routes> found;
  std::atomic<bool> is_done{false};
};

bool is_one_machine(std::span<const transport::MemberAddress> members) {
  return std::all_of(members.begin(), members.end(), [&members](const auto& member) {
    return !member.host_key.empty() && member.host_key == members.front().host_key;
  });
}

CollectivePlanner::CollectivePlanner(PlannerOptions options, LinkExchange::TrafficSource traffic)
    : unknown_(known_at_first(options)),
      is_one_host_(std::set<int32_t>(options.hosts.begin(), options.hosts.end()).size() == 1),
      is_sparse_(options.graph && topology::has_gaps(unknown_)),
      rank_(options.rank),
      algorithm_(std::move(options.algorithm)),
      known_{{0, std::make_shared<const topology::Links>(unknown_)}, nullptr} {
  const int32_t n = unknown_.world_size;
  if (options.graph) {
    topology::require_connected(unknown_, "graph");
    known_.routes = std::make_shared<const topology::Routes>(
        n <= kRoutesAtOnceMax ? topology::find_routes(unknown_) : topology::quick_routes(unknown_));
    trees_ = topology::quickest_trees(unknown_);
  }
  // An unknown algorithm is refused now, not by the first call.
  topology::choose_all_reduce(unknown_, 1, 1, algorithm_, known_.routes.get());
  // Two ranks have no choice, and within a machine the links are known.
  if (traffic && !options.deterministic && !options.is_one_machine && n > 2 &&
      n <= LinkExchange::kRanksMax)
    exchange_.emplace(
        unknown_, rank_,
        LinkExchange::Options{std::move(options.table), options.probes && !is_sparse_},
        std::move(traffic));
}

CollectivePlanner::~CollectivePlanner() = default;

uint32_t CollectivePlanner::segment_bytes(bool shares_memory) const {
  return is_one_host_ && shares_memory ? kMemorySegmentBytes : kTcpSegmentBytes;
}

// --- one plan ------------------------------------------------------------------------------------

CollectivePlanner::Planned CollectivePlanner::make(const Signature& signature,
                                                   std::span<const uint64_t> block_counts,
                                                   const Known& known) const {
  // Between hosts that are not known yet, most is given out while the call runs; a few take a ring,
  // whose flows share their lines the most evenly.
  const int32_t n = unknown_.world_size;
  const bool is_blind = is_exchanged(signature) && known.routes == nullptr &&
                        n <= LinkExchange::kBlindRanksMax && algorithm_ == "auto" &&
                        signature.codec == Codec{};
  const bool is_given_out = is_blind && exchange_->begins_with_all();
  const auto plan = [&](std::string_view algorithm) {
    return schedule_of(signature, block_counts, *known.links.links,
                       is_blind ? nullptr : known.routes.get(), algorithm);
  };
  topology::Schedule made = plan(is_given_out ? "direct" : is_blind ? "ring" : algorithm_);
  if (!is_blind && is_exchanged(signature) && algorithm_ == "auto") {
    const std::string_view proven = known.trials.choose(kind_of(signature), made.algorithm);
    try {
      if (proven != made.algorithm) made = plan(proven);
    } catch (const std::invalid_argument&) {
      // By the links of now there are no such trees any more.
    }
  }
  const bool shares = shares_lines(made);
  if (is_given_out) {
    topology::leave_most(made);
  } else if (is_exchanged(signature) && shares && signature.codec == Codec{}) {
    topology::leave_pool(made, *known.links.links, element_bytes(signature.dtype));
  }
  if (is_exchanged(signature))
    LinkExchange::add_chunks(made, element_bytes(signature.dtype), trees_);
  return {std::make_shared<const RankPlan>(compile(made, rank_)), made.algorithm, shares};
}

void CollectivePlanner::require_link(int32_t peer) const {
  if (!is_sparse_ || peer < 0 || peer == rank_ || unknown_.connects(rank_, peer)) return;
  throw std::invalid_argument("graph: there is no edge between rank " + std::to_string(rank_) +
                              " and rank " + std::to_string(peer) +
                              ", so they exchange no messages");
}

void CollectivePlanner::require_links(const Signature& signature) const {
  if (!is_sparse_) return;
  const Collective collective = signature.collective;
  const bool is_rooted = collective == Collective::Gather || collective == Collective::Scatter;
  if (!is_rooted && collective != Collective::AllToAll) return;
  for (int32_t from = 0; from < unknown_.world_size; ++from) {
    if (is_rooted && from != signature.root) continue;
    for (int32_t to = 0; to < unknown_.world_size; ++to) {
      if (from == to || unknown_.connects(from, to)) continue;
      throw std::invalid_argument(std::string(transport::collective_name(collective)) +
                                  ": it needs an edge between rank " + std::to_string(from) +
                                  " and rank " + std::to_string(to) +
                                  ", which the graph has not; all_reduce, broadcast, reduce, "
                                  "all_gather, reduce_scatter and barrier need none");
    }
  }
}

CollectivePlanner::Planned CollectivePlanner::planned(const Signature& signature,
                                                      std::span<const uint64_t> counts) {
  std::string key(reinterpret_cast<const char*>(&signature.count), sizeof(signature.count));
  key += static_cast<char>(signature.collective);
  key += static_cast<char>(signature.codec == Codec{});
  key += static_cast<char>(element_bytes(signature.dtype));
  key.append(reinterpret_cast<const char*>(&signature.root), sizeof(signature.root));
  key.append(reinterpret_cast<const char*>(counts.data()), counts.size_bytes());
  std::lock_guard lock(mutex_);
  const auto found = plans_.find(key);
  if (found != plans_.end()) return found->second;
  if (plans_.size() >= kPlansMax) plans_.clear();
  return plans_[key] = make(signature, counts, known_);
}

std::string CollectivePlanner::algorithm(const Signature& signature,
                                         std::span<const uint64_t> block_counts) {
  return planned(signature, block_counts).algorithm;
}

// --- in the order of calls -----------------------------------------------------------------------

bool CollectivePlanner::is_ready(const Signature& signature) {
  if (!is_exchanged(signature)) return true;
  if (!exchange_->open()) return false;
  if (exchange_->trials_version() != known_.trials_version) {
    std::lock_guard lock(mutex_);
    known_.trials = exchange_->trials();
    known_.trials_version = exchange_->trials_version();
    plans_.clear();
  }
  const KnownLinks& wanted = exchange_->now();
  if (wanted.version == known_.links.version) return true;
  if (search_ && search_->links.version == wanted.version) {
    if (!search_->is_done.load()) return false;
    std::lock_guard lock(mutex_);
    const std::shared_ptr<const topology::Routes> found = std::exchange(search_, nullptr)->found;
    // Without routes, on every rank, the plans stay as they are.
    if (found == nullptr) {
      known_.links.version = wanted.version;
      return true;
    }
    known_.links = wanted;
    known_.routes = found;
    known_.cuts = CallCuts(wanted.links, rank_);
    plans_.clear();
    return true;
  }
  search_ = std::make_shared<Search>();
  search_->links = wanted;
  search_->ring = known_.routes == nullptr ? topology::ring_order(unknown_) : known_.routes->ring;
  // It may end after its planner: nobody waits for it then.
  std::thread([search = search_] {
    try {
      topology::Routes routes = topology::find_routes(*search->links.links);
      topology::keep_ring(*search->links.links, search->ring, routes);
      search->found = std::make_shared<const topology::Routes>(std::move(routes));
    } catch (const std::exception&) {
      // A rank told figures that nothing can be planned by.
    }
    search->is_done.store(true);
  }).detach();
  return false;
}

void CollectivePlanner::prepare(CollectiveCall& call, std::span<const uint64_t> block_counts) {
  const Planned planned_call = planned(call.signature, block_counts);
  call.plan = planned_call.plan;
  if (!is_one_host_) {
    std::lock_guard lock(mutex_);
    known_.cuts.cut(call, planned_call.shares_lines);
  }
  if (is_exchanged(call.signature)) {
    const uint32_t label =
        topology::PlanTrials::label(kind_of(call.signature), planned_call.algorithm);
    exchange_->attach(call, label);
  }
}

void CollectivePlanner::serve(Group& group) {
  if (exchange_) exchange_->serve(group);
}

TimePoint CollectivePlanner::on_time(TimePoint now) {
  return exchange_ ? exchange_->on_time(now) : TimePoint::max();
}

void CollectivePlanner::on_turn(int32_t rank, uint64_t round) {
  if (exchange_) exchange_->on_turn(rank, round);
}

void CollectivePlanner::on_figures(int32_t rank, std::span<const std::byte> bytes) {
  if (exchange_) exchange_->on_figures(rank, bytes);
}

void CollectivePlanner::skip(const Signature& signature) {
  if (is_exchanged(signature)) exchange_->skip();
}

}  // namespace pccl
