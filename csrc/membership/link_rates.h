// How fast the links between members are, and which member is slow: from the figures in reports.
//
// Pure; the coordinator's server keeps one for each run. Nothing is decided by it: it is for
// people.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "membership/messages.h"

namespace pccl::membership {

// Over so long, by the member's own clock, bytes and time are counted for a rate.
inline constexpr double kRateSeconds = 2;
// Links that are kept of one member: those of the quorum that it told of first.
inline constexpr size_t kLinksKeptMax = 64;

// A member is slow when one of both is true in kSlowWindows windows one after the other:
// - at least two of its links have carried something - all of them, all that it sends over, or all
//   that it receives over - and each is slower, while it is busy, than this share of the median
//   of the links that the member has no part in;
inline constexpr double kSlowShare = 0.5;
// - the others (their median) have an operation under way for so much more of the time than it
//   has, and for more than twice as much: they wait until it makes the call.
inline constexpr double kWaitedShare = 0.25;
inline constexpr int kSlowWindows = 3;
// It is slow no more after as many windows in which it is better than both of these.
inline constexpr double kFineShare = 0.7;
inline constexpr double kFineWaitedShare = 0.15;

struct LinkRate {
  MemberId from{};
  MemberId to{};
  uint64_t bytes_sent = 0;
  double bytes_per_second = 0;
  // While something was under way: what the link can do, where that was enough to tell. 0: unknown.
  double busy_bytes_per_second = 0;
  double round_trip_seconds = 0;  // 0: unknown
  uint32_t replaced_sockets = 0;
};

// What is known of one member's pace.
struct Pace {
  bool is_slow = false;
  std::string reason;                // why it is, or was last
  double link_bytes_per_second = 0;  // median of its links while they are busy; 0: unknown
  double waited_for = 0;             // seconds of each second that the others wait for it
};

class LinkRates {
 public:
  // Of a member in the quorum. An older report than the last one changes nothing.
  void on_report(const MemberId& member, const Report& report);
  // Only those are in the quorum.
  void keep_only(const Quorum& quorum);
  // Once in kRateSeconds: who has become slow, or is not slow any more.
  struct Change {
    MemberId member{};
    bool is_slow = false;
    std::string reason;
  };
  std::vector<Change> judge(TimePoint now);

  std::vector<LinkRate> links() const;
  Pace pace(const MemberId& member) const;

 private:
  struct Link {
    LinkFigures begin;  // of the window
    LinkFigures last;
    uint64_t begin_clock = 0;
    double bytes_per_second = 0;
    double busy_bytes_per_second = 0;
  };
  struct Known {
    uint64_t clock = 0;  // of the last report
    uint64_t begin_clock = 0;
    uint64_t begin_operations_us = 0;
    std::optional<double> operations_share;
    std::map<MemberId, Link> links;
    // Since the last judgement: a window has closed; one of its links was busy enough to tell.
    bool has_window = false;
    bool has_busy_link = false;
    int slow_windows = 0;
    int fine_windows = 0;
    Pace pace;
  };
  struct Busy {
    MemberId from{};
    MemberId to{};
    double rate = 0;
  };
  enum class Verdict : uint8_t { Unknown, Fine, Between, Slow };

  static void take(Known& known, uint64_t clock, const LinkFigures& figures);
  std::vector<Busy> busy_links() const;
  Verdict judge_links(const MemberId& member, Known& known, const std::vector<Busy>& busy) const;
  Verdict judge_waiting(const MemberId& member, Known& known) const;

  std::map<MemberId, Known> members_;
  TimePoint judged_at_;
};

}  // namespace pccl::membership
