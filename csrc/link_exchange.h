// How the ranks of a group come to know its links, together: along with every large all_reduce each
// tells all others what it has measured. Driver only.
//
// Plans must be the same on all ranks, so they depend on nothing but calls and what was exchanged.
// A large call is planned by what came with the one before it, which must have ended here; where
// the callers begin one before the last one has ended, with the one before that. Small calls are
// planned by what the last large one was planned by. No call waits for an agreement of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/clock.h"
#include "collectives/collective_operation.h"
#include "link_probes.h"
#include "topology/cost_model.h"
#include "topology/link_figures.h"
#include "topology/link_table.h"
#include "topology/packing.h"
#include "topology/plan_trials.h"
#include "transport/traffic.h"

namespace pccl {

// Links as they were known at one point in the order of calls.
struct KnownLinks {
  uint64_t version = 0;  // another one: plans for the last version may be bad
  std::shared_ptr<const topology::Links> links;
};

class LinkExchange {
 public:
  // Large calls under way at once; more wait. One, if all ranks have begun the last kAloneCalls
  // when those before had ended.
  static constexpr size_t kBehindMax = 2;
  static constexpr uint64_t kAloneCalls = 2;
  // A large call.
  static constexpr uint64_t kBytesMin = 4 << 20;
  // Beyond it too many messages would be needed.
  static constexpr int32_t kRanksMax = 64;
  // While nothing is known, so many ranks take a ring for large calls, and up to so many exchange
  // all with all (topology/pool.h): the slowest of many links is slower.
  static constexpr int32_t kBlindRingRanksMax = 4;
  static constexpr int32_t kBlindRanksMax = 8;

  // `traffic` gives what was counted of the connections so far, by rank.
  using TrafficSource = std::function<std::vector<transport::LinkTraffic>()>;
  struct Options {
    topology::LinkTable table;  // what is known of the links to begin with
    bool probes = false;        // those that are not in it
  };
  LinkExchange(topology::Links unknown, int32_t rank, const Options& options,
               TrafficSource traffic);

  // Links that are missing are probed at once if some are known, as then large calls are made;
  // otherwise at the first one. A large call waits for it.
  void serve(Group& group);
  TimePoint on_time(TimePoint now);
  void on_turn(int32_t rank, uint64_t round);
  void on_figures(int32_t rank, std::span<const std::byte> bytes) {
    if (probes_) probes_->on_told(rank, bytes);
  }

  // Whether large calls, while nothing is known, are of all with all: no two ranks share a host,
  // for whose line they would add up less before they send than a ring does.
  bool begins_with_all() const;
  static bool is_large(const transport::Signature& signature);
  // Whether the next large call may begin: from then on the links are those that it is planned by.
  bool open();
  const KnownLinks& now() const { return now_; }
  // What calls have taken, as far as it is known for the next large one.
  const topology::PlanTrials& trials() const { return trials_; }
  uint64_t trials_version() const { return trials_version_; }  // another one: choose again
  // Appends what each rank tells to a large call, and to its schedule: one block a rank, which
  // moves to all. `label`: what will be told of the call itself, by PlanTrials. Requires: open().
  void attach(CollectiveCall& call, uint32_t label);
  // `trees`: the ways of the blocks, by rank; none: straight to all.
  static void add_chunks(topology::Schedule& schedule, size_t element_bytes,
                         std::span<const topology::TreePair> trees = {});
  // Of the links to and from a rank, what was measured since this began, as plans use it.
  struct Measured {
    uint32_t sends = 0;  // KiB a second; 0: not measured
    uint32_t receives = 0;
    uint32_t seconds_ago = 0;
  };
  Measured measured(int32_t peer, TimePoint now) const;
  topology::CapEntry own_cap() const;
  // All links between hosts, as large calls are planned now; empty: by nothing that was measured.
  topology::LinkTable known() const;
  // In place of attach(), for a call that ends everywhere without having begun here.
  void skip();

 private:
  // What came along with one large call.
  struct Told final : Attachment {
    explicit Told(size_t bytes) : memory(bytes) {}
    void on_complete() override;
    std::vector<std::byte> memory;  // figures_bytes() a rank
    bool is_complete = false;
    TimePoint begun_at = Clock::now();
    std::shared_ptr<topology::CallFigure> call;  // null: others were under way
  };
  // With an operation that ended without a result nothing was told, to anybody.
  static bool has_ended(const std::shared_ptr<Told>& told) {
    return told->is_complete || told.use_count() == 1;
  }
  size_t behind() const { return alone_calls_ >= kAloneCalls ? 1 : kBehindMax; }
  void learn(const Told& told);
  void learn_probed();
  void take(topology::Links links, const std::vector<topology::RankFigures>& figures);
  topology::RankFigures measure();

  const topology::Links unknown_;
  const int32_t rank_;
  const TrafficSource traffic_;
  std::vector<transport::LinkTraffic> told_;         // what was counted when figures were last told
  std::deque<std::shared_ptr<Told>> pending_;        // of the last large calls, at most kBehindMax
  uint64_t alone_calls_ = kAloneCalls;               // the last ones in a row, of those not pending
  std::optional<bool> overlaps_;                     // the call that open() is asked for
  std::shared_ptr<topology::CallFigure> last_call_;  // the last one, once it is complete
  topology::PlanTrials trials_;
  uint64_t trials_version_ = 0;
  topology::Links links_;               // after all that is not pending
  std::vector<TimePoint> measured_at_;  // [from * world_size + to]; epoch: never
  const bool probes_nothing_;           // the configuration says so
  Group* group_ = nullptr;              // that it plans for
  std::optional<LinkProbes> probes_;    // until they are done
  KnownLinks now_;
};

}  // namespace pccl
