// What ranks have measured of their links, and what follows from it for planning.
//
// Pure. Every rank is given the same figures in the same order, and so ends with the same Links.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "topology/cost_model.h"

namespace pccl::topology {

// Of one rank's link to another, over a while.
struct LinkFigure {
  uint64_t bytes = 0;          // that arrived
  uint32_t busy_us = 0;        // for so long something was under way
  uint32_t round_trip_us = 0;  // without queues; 0: not measured
  // The other way: what arrived here, and for how long it did. A sender is busy for longer.
  uint64_t received_bytes = 0;
  uint32_t receiving_us = 0;
  bool is_starved = false;  // mostly it had nothing more to send: others held it up
  // Bytes a second in the last round trip that was full, whenever that was; 0: not known.
  uint64_t full_rate = 0;
  bool operator==(const LinkFigure&) const = default;
};

// The large call before the one that carries it, where it was the only one under way.
struct CallFigure {
  uint32_t label = 0;  // PlanTrials::label(); 0: nothing is told
  uint32_t us = 0;     // it took, here
};

// By rank. A rank's own entry has, in place of figures, its CallFigure and one bit: whether the
// call that carries them began there while an earlier large one was under way.
using RankFigures = std::vector<LinkFigure>;
inline bool overlaps(const RankFigures& figures, size_t own) { return figures[own].is_starved; }
inline void set_overlaps(RankFigures& figures, size_t own, bool does) {
  figures[own].is_starved = does;
}
inline CallFigure last_call(const RankFigures& figures, size_t own) {
  return {figures[own].receiving_us, figures[own].busy_us};
}
inline void set_last_call(RankFigures& figures, size_t own, const CallFigure& call) {
  figures[own].receiving_us = call.label;
  figures[own].busy_us = call.us;
}

// The same for every rank of a group, so that their places in a message are known.
size_t figures_bytes(int32_t world_size);
// Bytes are rounded down to whole KiB.
void encode(const RankFigures& figures, std::span<std::byte> bytes);
RankFigures decode_figures(std::span<const std::byte> bytes, int32_t world_size);

// Whether a figure is one: of a link that was busy for long enough, or is a near one.
bool measures(const LinkFigure& figure);

// Of its busy time a link had more to send for less than this: others held it up. `figures`: of all
// links of a rank. Where it sends to several, what each has while it is full is known, and counts.
double full_part(const RankFigures& figures);

// `links` after what all ranks tell: figures[from][to]. `unknown`: what links are thought to be
// that nobody has measured.
// - Within a host or a fast local network nothing counts: there the rates are those of CPUs.
// - Of another link that was busy long enough its rate counts; if it moved little, the mean with
//   the one before.
// - A link that others held up is thought to be a quarter faster than it was measured, if that is
//   more than before: it is given more to carry until it is full. So is a rank, most of whose links
//   were held up.
// - Where a rank sent on several links, one that others held up has the rate of its last round trip
//   that was full; and the rank, if most of them were held up, a quarter more than it was thought
//   to have, up to the sum of those.
// - A link whose sender or receiver had a full line until its last link was done, shared it: alone
//   it is at least as fast as it was measured.
// - Where a link falls to less than half, so may the way back: it is thought to be at most twice as
//   fast as that, unless it was measured at the same time.
// - A sender that tells of more than half as much again as arrived gets what arrived.
// - A link that carried little is thought to become faster with time, up to that, so that it is
//   tried again.
// - A rank sends, and receives, in all what it did at once, or the most that it did before, which
//   fades.
Links learned(const Links& unknown, const Links& links, std::span<const RankFigures> figures);

// After calls of all with all: where all links between hosts look alike, each is taken for as fast
// as its sender's and its receiver's lines are, as they may have shared these. A ring then shows
// whether they did. Where they differ a ring would wait for the slowest, and what was measured
// counts.
inline constexpr double kAlike = 2.2;  // the fastest of them and the slowest
void take_for_lines(const Links& unknown, Links& links);

// Whether plans made for `before` may be bad ones for `now`: a rate has changed by a fifth.
bool is_other(const Links& before, const Links& now);

}  // namespace pccl::topology
