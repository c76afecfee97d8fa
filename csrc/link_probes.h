// Measures links that nobody has measured yet, before the first large call. In rounds in which a
// rank sends or receives and never both (topology/probe_rounds.h), it sends a burst over each such
// link, then over several at once, and tells all what it saw. When all have told, all hold the same
// figures.
//
// In each round a receiver says that it is there, the sender bursts, and says that it is done when
// all of it has arrived: no clock is shared. Nobody begins before all have said that they do.
//
// Bounded: kBurstBytesMax and kBurstSecondsMax for a burst, kProbeSecondsMax in all, from when all
// have begun. Driver only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "base/clock.h"
#include "collectives/group.h"
#include "topology/link_figures.h"
#include "topology/probe_rounds.h"

namespace pccl {

// A window of 100 Mbit/s and 100 ms is 1.2 MiB, and TCP has sent twice that when it has come to it.
inline constexpr uint64_t kBurstBytesMax = 4 << 20;
inline constexpr double kBurstSecondsMax = 1;
// In place of a round: its sender's configuration has no probes, so nobody makes any.
inline constexpr uint64_t kNoProbes = UINT32_MAX;
// From then on a rank tells what it has, and the other links count as middling.
inline constexpr double kProbeSecondsMax = 20;

class LinkProbes {
 public:
  // `missing`: [from * world_size + to], the same on all ranks; there is one at least.
  LinkProbes(std::vector<bool> missing, int32_t world_size, int32_t rank);

  void serve(Group& group) { group_ = &group; }
  bool is_served() const { return group_ != nullptr; }
  // Requires: serve(). More calls do nothing.
  void begin(TimePoint now);
  // What is due; returns when it wants to be called next.
  TimePoint on_time(TimePoint now);
  // A rank is there for a round, or done with it; 0: it begins.
  void on_turn(int32_t rank, uint64_t round);
  void on_told(int32_t rank, std::span<const std::byte> bytes);
  // A rank makes no probes: there will be no figures, for anybody.
  bool is_declined() const { return is_declined_; }
  // Every rank has told: the figures are the same everywhere.
  bool is_done() const { return told_count_ == told_.size(); }
  // A rank has left a fixed group: it will not tell, and every call of all ranks fails.
  bool is_hopeless() const;
  // [from][to]: of each link by itself, and of several links at once. Without bytes: not measured.
  std::vector<topology::RankFigures> alone() const { return figures(0); }
  std::vector<topology::RankFigures> together() const { return figures(1); }
  bool is_missing(size_t from, size_t to) const { return missing_[from * told_.size() + to]; }

 private:
  struct Look {
    TimePoint at;
    uint64_t delivered = 0;
    double best = 0;
  };
  struct Burst {
    int32_t to = 0;
    uint64_t sent = 0;
    uint64_t delivered = 0;
    uint64_t delivered_before = 0;
    TimePoint began;
    Look before_last{};
    Look last{};
    double lately = 0;  // bytes a second since the look before the last one
    double best = 0;
    TimePoint seen_at;
    double late_seconds = 0;  // the longest time between two calls of look()
    bool has_paused = false;  // since the last look: too little was under way to fill the link
    bool is_full = false;     // its rate grows no more
  };
  enum class Phase : uint8_t { Idle, Gathering, Waiting, Sending, Draining, Told };

  bool all_said(const std::vector<int32_t>& ranks, uint64_t round) const;
  void start(int32_t to, TimePoint now);
  void look(Burst& burst, TimePoint now);
  static void take_look(Burst& burst, TimePoint now);
  bool step(TimePoint now);
  void note_bursts(bool is_shared);
  void enter(size_t index, TimePoint now);
  void tell();
  topology::LinkFigure figure(int32_t to, double rate) const;
  std::vector<topology::RankFigures> figures(size_t half) const;

  const std::vector<bool> missing_;
  const int32_t world_size_;
  const int32_t rank_;
  const std::vector<topology::ProbeRound> rounds_;
  Group* group_ = nullptr;
  Phase phase_ = Phase::Idle;
  TimePoint began_;
  size_t round_ = 0;  // index in rounds_
  TimePoint entered_;
  bool is_near_ = false;  // of the bursts under way
  std::vector<Burst> bursts_;
  // By rank: one more than the last round that it spoke of, 0 of nothing.
  std::vector<uint64_t> heard_;
  topology::RankFigures own_alone_;
  topology::RankFigures own_together_;
  std::vector<std::vector<std::byte>> told_;  // by rank; empty: not yet
  size_t told_count_ = 0;
  bool is_declined_ = false;
};

}  // namespace pccl
