// A collective, planned: plain data, no pointers, no I/O. The same on every rank.
//
// An operation works on a list of *blocks* (all_reduce, broadcast and reduce have one block;
// all_gather, reduce_scatter, gather and scatter have one a rank; all_to_all has
// world_size * world_size, block i * world_size + j going from i to j).
// A *chunk* is a range of one block that is made final in one place. It travels in three stages,
// each may be empty:
//
//   1. up:       contributions are combined along `up` edges, child to parent, towards the core;
//   2. exchange: if the core has more than one rank, core ranks exchange whole partial results. In
//                rounds (recursive doubling): in round k, core position p pairs with p XOR 2^k and
//                both combine. Or at once: each sends to all others, and each combines what they
//                all have in the order of the core;
//   3. down:     final values travel along `down` edges from the core to every rank that needs
//                them.
//
// Ring, trees, direct exchange, halving-doubling, doubling, gather, all-to-all: all of them are
// such lists. find_fault (topology/checker.h) says whether a list is a right one.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pccl::topology {

struct Edge {
  int32_t from = 0;
  int32_t to = 0;
  bool operator==(const Edge&) const = default;
};

struct Chunk {
  // A chunk that covers its whole block, whose length only the two ends know (all_to_all).
  static constexpr uint64_t kWholeBlock = UINT64_MAX;

  uint32_t block = 0;
  uint64_t offset = 0;  // elements from the block's start
  uint64_t count = 0;   // elements, never 0; or kWholeBlock (then offset is 0)

  // Whether ranks combine contributions (reduce) or the core's own value is simply moved
  // (broadcast, gather, ...).
  bool reduces = false;

  // Where the value is made final: one rank, or several that exchange; in rounds a power of two.
  std::vector<int32_t> core;
  bool exchanges_at_once = false;

  // Each rank sends at most once (tree edges towards the core), behind all edges into it. A parent
  // combines its own contribution first, then its children in the order in which their edges stand
  // here. In a reducing chunk every rank of the group contributes.
  std::vector<Edge> up;

  // Each rank receives at most once; edges stand in an order in which every sender already has the
  // value.
  std::vector<Edge> down;

  bool operator==(const Chunk&) const = default;
};

// Who sends to whom when the core of `chunk` exchanges: the edges of each round.
std::vector<std::vector<Edge>> exchange_rounds(const Chunk& chunk);

// Elements at the end of the first block that belong to no chunk when a call begins. While it runs,
// the cores of its chunks, of one rank each, ask the keeper for more, each as fast as it gets on.
struct Pool {
  // A claim, its answer, the word of it down a tree of depth two, and contributions up again, all
  // of it while links are full, take so many round trips over the longest link.
  static constexpr double kAheadRoundTrips = 8;

  uint64_t offset = 0;  // elements
  uint64_t count = 0;   // 0: there is none
  int32_t keeper = -1;
  // Of its work a core asks before it has done it. 0: by the round trips of its own links.
  double ahead_seconds = 0;

  bool operator==(const Pool&) const = default;
};

struct Schedule {
  // "ring", "doubling", "exchange", "halving_doubling", "halving", "double_binary_tree",
  // "binomial", "direct", "packed_trees" or "pairwise".
  std::string algorithm;
  int32_t world_size = 0;
  std::vector<Chunk> chunks;
  Pool pool;

  bool operator==(const Schedule&) const = default;
};

}  // namespace pccl::topology
