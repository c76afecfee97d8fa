// What calls have really taken, by algorithm: the cost model proposes, and this holds it to
// account.
//
// The model knows rates of links, and not how flows of TCP get on with each other, nor what links
// that nobody has measured can do. So what it proposes in place of the algorithm in use is on trial
// for a few calls, and is left alone for a while if they took longer. Like greedy choice among arms
// with a model for a prior; a call is never spent only to find out. Pure: all ranks give it the
// same figures in the same order, and so take the same decisions.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string_view>

#include "topology/link_figures.h"

namespace pccl::topology {

class PlanTrials {
 public:
  // Calls on trial, and fewer where they take far longer.
  static constexpr int32_t kCalls = 3;
  static constexpr int32_t kBadCalls = 2;

  // Calls are compared with those of about their size, with a codec or without.
  struct Kind {
    uint64_t bytes = 0;
    bool is_coded = false;
  };
  // As CallFigure has it; 0: an algorithm that is not known here.
  static uint32_t label(const Kind& kind, std::string_view algorithm);

  // The algorithm to take where the model likes `wanted` best.
  std::string_view choose(const Kind& kind, std::string_view wanted) const;

  // One large call, as the ranks tell of it. Ranks that were late waited for less long, and one may
  // lie: the second shortest time counts. Nothing is learned where not all tell of the same.
  // Returns whether choices may be others now.
  bool learn(std::span<const RankFigures> figures);

 private:
  struct Trial {
    int32_t calls = 0;
    double seconds = 0;  // the best of them
    // Once it was worse:
    bool has_failed = false;
    double against = 0;       // seconds of the algorithm in use, then
    int32_t rests = 0;        // for so many calls it is not tried
    int32_t rests_next = 64;  // the next time
  };
  struct Record {
    uint32_t used = 0;                 // algorithm
    double seconds = 0;                // of a call, lately
    std::map<uint32_t, Trial> trials;  // by algorithm
  };
  static bool is_refused(const Record& record, const Trial& trial);
  static bool judge(Record& record, uint32_t algorithm, double seconds);

  std::map<uint32_t, Record> records_;  // by size and codec: fewer than 256
};

}  // namespace pccl::topology
