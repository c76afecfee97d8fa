// Chooses the schedule of every call among one set of ranks, and remembers it.
//
// Where ranks are on several hosts, the links that it plans by are those that all ranks have come
// to know together (link_exchange.h).
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "call_cuts.h"
#include "collectives/plan_source.h"
#include "collectives/rank_plan.h"
#include "link_exchange.h"
#include "topology/cost_model.h"
#include "topology/graphs.h"
#include "topology/plan_trials.h"
#include "topology/planners.h"
#include "topology/schedule.h"
#include "transport/address.h"
#include "transport/frame.h"

namespace pccl {

// By rank: members with the same number can share memory.
std::vector<int32_t> host_numbers(std::span<const transport::MemberAddress> members);
bool is_one_machine(std::span<const transport::MemberAddress> members);
// What was counted of those connections, by rank; the own one is null.
std::vector<transport::LinkTraffic> traffic_of(std::span<transport::Connection* const> connections);

// The pairs of members that may talk, by their ranks; null: all. `graph` is this member's own.
// Throws std::invalid_argument that names a member with another graph, or what is wrong with it.
std::optional<topology::Graph> overlay_of(std::span<const transport::MemberAddress> members,
                                          const std::string& graph);

struct PlannerOptions {
  std::vector<int32_t> hosts;  // ranks with the same number share memory
  bool is_one_machine = true;  // with or without that
  int32_t rank = 0;
  std::string algorithm = "auto";
  // The same inputs give the same bytes every time: plans depend on nothing that is measured.
  bool deterministic = false;
  std::optional<topology::Graph> graph;  // no byte moves beside its edges; null: every pair
  topology::LinkTable table;  // what is known of the links to begin with, alike on all ranks
  bool probes = false;        // links that are missing there, before the first large call
};

class CollectivePlanner final : public PlanSource {
 public:
  // Throws std::invalid_argument on an unknown algorithm, and a graph that is not connected.
  explicit CollectivePlanner(PlannerOptions options, LinkExchange::TrafficSource traffic = {});
  ~CollectivePlanner() override;

  bool is_ready(const transport::Signature& signature) override;
  void prepare(CollectiveCall& call, std::span<const uint64_t> block_counts) override;
  void skip(const transport::Signature& signature) override;
  void serve(Group& group) override;
  TimePoint on_time(TimePoint now) override;
  void on_turn(int32_t rank, uint64_t round) override;
  void on_figures(int32_t rank, std::span<const std::byte> bytes) override;

  void require_links(const transport::Signature& signature) const override;
  void require_link(int32_t peer) const override;
  // "ring", "direct", ...: of a call of now. Any thread.
  std::string algorithm(const transport::Signature& signature,
                        std::span<const uint64_t> block_counts);
  // As they are thought to be before anything was measured.
  const topology::Links& links() const { return unknown_; }
  int32_t world_size() const { return unknown_.world_size; }
  // Whether plans depend on what is measured. If not, prepare() may be called from any thread.
  bool adapts() const { return exchange_.has_value(); }
  // What was measured of links, for whoever keeps it for later ones; null where nothing is. Driver
  // only.
  const LinkExchange* exchange() const { return exchange_ ? &*exchange_ : nullptr; }
  // Where all ranks share memory and `shares_memory`, else of TCP.
  uint32_t segment_bytes(bool shares_memory) const;

 private:
  struct Planned {
    std::shared_ptr<const RankPlan> plan;
    std::string algorithm;
    bool shares_lines = false;  // a rank sends to several others
  };
  // What calls are planned by.
  struct Known {
    KnownLinks links;
    std::shared_ptr<const topology::Routes> routes;  // null: nothing was measured
    CallCuts cuts;
    topology::PlanTrials trials;
    uint64_t trials_version = 0;
  };
  struct Search;  // for routes, on a thread of its own

  bool is_exchanged(const transport::Signature& signature) const {
    return exchange_ && LinkExchange::is_large(signature);
  }
  Planned planned(const transport::Signature& signature, std::span<const uint64_t> block_counts);
  Planned make(const transport::Signature& signature, std::span<const uint64_t> block_counts,
               const Known& known) const;

  const topology::Links unknown_;
  const bool is_one_host_;
  const bool is_sparse_;                   // there is a graph
  std::vector<topology::TreePair> trees_;  // by root, if there is one
  const int32_t rank_;
  const std::string algorithm_;
  std::optional<LinkExchange> exchange_;
  std::shared_ptr<Search> search_;
  std::mutex mutex_;
  // Guarded by mutex_.
  Known known_;
  // Bounded: emptied when it has kPlansMax entries, and when known_ changes.
  static constexpr size_t kPlansMax = 256;
  std::map<std::string, Planned> plans_;
};

}  // namespace pccl
