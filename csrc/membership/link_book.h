// What is known of the links of a run, from what their two ends tell: for the plans of the next
// quorum.
//
// Pure; the coordinator keeps it in memory. After a restart it is told again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <vector>

#include "base/clock.h"
#include "membership/messages.h"
#include "topology/link_table.h"

namespace pccl::membership {

// Figures that were measured longer ago count no more: whoever needs them measures anew.
inline constexpr double kFigureSeconds = 600;
// Members whose figures are kept, those that are out included: they may come back.
inline constexpr size_t kBookMembersMax = 4 * topology::kTableRanksMax;
// Two ends that differ by more do not tell of the same link.
inline constexpr double kDispute = 1.5;

class LinkBook {
 public:
  // Of a member of the quorum.
  void on_report(const MemberId& member, const Figures& figures, TimePoint now);
  // Of the links between those seats. Where both ends have measured one, the lower figure. Where
  // they contradict each other, that of the end which is contradicted on fewer links: a member that
  // does not tell the truth gets what is measured at the other end.
  topology::LinkTable table(const std::vector<Seat>& seats, TimePoint now) const;

 private:
  struct Figure {
    uint32_t kib_per_second = 0;
    uint32_t round_trip_us = 0;
    TimePoint measured_at;
  };
  struct Told {
    std::map<MemberId, Figure> sends;     // to whom; at most kTableRanksMax
    std::map<MemberId, Figure> receives;  // from whom
    topology::CapEntry cap;
    TimePoint at;
  };
  const Told* told_by(const MemberId& member) const;
  void forget_old(TimePoint now);

  std::map<MemberId, Told> told_;
};

}  // namespace pccl::membership
