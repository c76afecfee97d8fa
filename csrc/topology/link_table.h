// Links as they are told to members that have not measured them: what a quorum begins with.
//
// Pure.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "topology/cost_model.h"

namespace pccl::topology {

// Ranks beyond it plan without measured links.
inline constexpr size_t kTableRanksMax = 64;

struct LinkEntry {
  uint16_t from = 0;  // ranks
  uint16_t to = 0;
  uint32_t kib_per_second = 0;
  uint32_t round_trip_us = 0;  // 0: not measured
  bool operator==(const LinkEntry&) const = default;
};

// What a rank sends and receives at most on all its links at once, in KiB a second; 0: not
// measured.
struct CapEntry {
  uint32_t out = 0;
  uint32_t in = 0;
  bool operator==(const CapEntry&) const = default;
};

struct LinkTable {
  std::vector<LinkEntry> links;  // those that are known, in no order
  std::vector<CapEntry> caps;    // by rank, or empty
  bool operator==(const LinkTable&) const = default;
};

uint32_t to_kib_per_second(double seconds_per_byte);  // 0: unknown, or no link

// Links between hosts by the table. One that is not in it is thought to be as fast as the fastest
// one, unless an end has shown on several links that it is slower; its latency, as the middling
// one. `unknown`, as it is, where the table has nothing on any of them. Entries of other ranks, and
// of links that `unknown` has not, are left out.
Links with_table(const Links& unknown, const LinkTable& table);

// The other way; rates and round trips of links between hosts alone.
LinkTable to_table(const Links& unknown, const Links& links);

// The links between hosts that the table has nothing on, [from * world_size + to].
std::vector<bool> missing(const Links& unknown, const LinkTable& table);

}  // namespace pccl::topology
