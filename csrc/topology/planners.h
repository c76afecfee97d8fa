// Planners: pure functions from (world size, counts) to a Schedule. The choice among them is the
// cost model's.
//
// Chunks without elements are left out, so a count of 0 gives a schedule without chunks. With one
// rank there is one chunk a block, without edges: input is copied to output. Planners throw
// std::invalid_argument on a world size, root or order that is none.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "topology/cost_model.h"
#include "topology/packing.h"
#include "topology/schedule.h"

namespace pccl::topology {

// --- all_reduce of one block of `count` elements -------------------------------------------------
// P ranks, S bytes. `steps` is the number of messages on the longest path, `bytes` what one rank
// sends at most. The formulas are exact where chunks are equal: S a multiple of 64 P elements.

// steps log2 P (+ 2 where P is no power of two); bytes S log2 P. Recursive doubling: small
// messages.
Schedule plan_all_reduce_doubling(int32_t world_size, uint64_t count);
// steps 1; bytes S (P-1). Everybody tells everybody: smallest messages over long links.
Schedule plan_all_reduce_exchange(int32_t world_size, uint64_t count);
// steps 2 ceil(log2 P); bytes 2 S (P-1)/P where P is a power of two, else up to 3 S: 2^k ranks
// work, the surplus ones send them everything first and get everything last.
Schedule plan_all_reduce_halving_doubling(int32_t world_size, uint64_t count);
// steps 2 (P-1); bytes 2 S (P-1)/P. Only neighbour links of `order` (a permutation of the ranks)
// carry traffic. Source: Patarasuk and Yuan, JPDC 2009.
Schedule plan_all_reduce_ring(std::span<const int32_t> order, uint64_t count);
// steps at most 2 floor(log2 P), pipelined; bytes up to 2 S. Two trees, each rank inner in at most
// one of them (topology/double_tree.h).
Schedule plan_all_reduce_double_binary_tree(int32_t world_size, uint64_t count);
// steps 2; bytes 2 S (P-1)/P; each rank owns 1/P of the block, hears everyone and tells everyone.
Schedule plan_all_reduce_direct(int32_t world_size, uint64_t count);

// --- all_reduce over links that differ -----------------------------------------------------------

// What can be said of links before a call: slow to find, the same for every count.
struct Routes {
  // Of ranks that are connected to all others; weak ones own little or nothing. May be empty.
  std::vector<TreePair> stars;
  std::vector<TreePair> trees;     // depth two where that is enough, else any depth
  std::vector<TreePair> sites;     // see pack_sites; empty where there is nothing to gain
  std::vector<int32_t> ring;       // see bottleneck_ring; empty if there is none
  std::vector<TreePair> rings;     // that ring in both directions, and others
  std::vector<TreePair> quickest;  // one tree, of least latency
};

// 2 ms for 8 ranks, up to seconds for 32 whose links all differ. Throws std::invalid_argument if
// some rank can't reach another one.
Routes find_routes(const Links& links);

// Puts `ring`, that there was so far, in the place of the one that was found, unless that is faster
// by more than a fifth: connections that carried nothing take seconds to get going. Rings that do
// not fit the links are left out.
void keep_ring(const Links& links, std::span<const int32_t> ring, Routes& routes);

// Only the stars and the quickest tree: under a millisecond for 8 ranks, a few for 32. For calls
// that can't wait, as when members were lost. Throws like find_routes.
Routes quick_routes(const Links& links);

// The block shared out by the rates of `trees`, a chunk each: in multiples of 256 elements where
// every tree gets many, so that no codec's group is cut. steps twice the depth.
Schedule plan_all_reduce_trees(std::string_view algorithm, int32_t world_size,
                               std::span<const TreePair> trees, uint64_t count);

// --- one root ------------------------------------------------------------------------------------

// steps at most ceil(log2 P), bytes S ceil(log2 P) (broadcast: at the root) or S (reduce).
Schedule plan_broadcast_binomial(int32_t world_size, int32_t root, uint64_t count);
Schedule plan_reduce_binomial(int32_t world_size, int32_t root, uint64_t count);
// steps at most 1 + floor(log2 (P-1)), pipelined; bytes S (broadcast, reduce). Trees over the other
// ranks, whose roots the root feeds or is fed by.
Schedule plan_broadcast_double_binary_tree(int32_t world_size, int32_t root, uint64_t count);
Schedule plan_reduce_double_binary_tree(int32_t world_size, int32_t root, uint64_t count);
// One block a rank, steps 1.
Schedule plan_gather_direct(int32_t root, std::span<const uint64_t> block_counts);
Schedule plan_scatter_direct(int32_t root, std::span<const uint64_t> block_counts);

// --- one block a rank ----------------------------------------------------------------------------
// With equal blocks of S / P bytes every rank sends S (P-1)/P.

// steps P-1. Only neighbour links of `order` carry traffic.
Schedule plan_all_gather_ring(std::span<const int32_t> order,
                              std::span<const uint64_t> block_counts);
Schedule plan_reduce_scatter_ring(std::span<const int32_t> order,
                                  std::span<const uint64_t> block_counts);
// steps 1.
Schedule plan_all_gather_direct(std::span<const uint64_t> block_counts);
Schedule plan_reduce_scatter_direct(std::span<const uint64_t> block_counts);
// Recursive doubling and halving for any P, as one binomial tree a block: steps at most
// ceil(log2 P).
Schedule plan_all_gather_doubling(std::span<const uint64_t> block_counts);
Schedule plan_reduce_scatter_halving(std::span<const uint64_t> block_counts);

// --- over links that may be missing --------------------------------------------------------------
// Along the paths of least latency, relays included. steps: the longest path's. Throw
// std::invalid_argument if some rank can't reach another one.

Schedule plan_broadcast_quickest(const Links& links, int32_t root, uint64_t count);
Schedule plan_reduce_quickest(const Links& links, int32_t root, uint64_t count);
Schedule plan_all_gather_quickest(const Links& links, std::span<const uint64_t> block_counts);
Schedule plan_reduce_scatter_quickest(const Links& links, std::span<const uint64_t> block_counts);

// --- all_to_all ----------------------------------------------------------------------------------

// Block i * P + j goes from i to j. Pairwise: in step s rank r sends to r + s.
Schedule plan_all_to_all_pairwise(int32_t world_size);

// --- choice --------------------------------------------------------------------------------------
// The cheapest by the cost model; `algorithm` names one of the above or is "auto". Of equally cheap
// ones the first in the list of names wins, so the same arguments give the same schedule on every
// rank. Throws std::invalid_argument on an unknown algorithm, with the list of names.

// Above it doubling and exchange, whose ranks send the whole block every time, are not chosen.
inline constexpr uint64_t kExchangeBytesMax = 256 << 10;
// The segment length that the choice reckons with, on every road alike: it lies between those that
// the communicator takes through memory and over TCP.
inline constexpr uint64_t kSegmentBytesAssumed = 256 << 10;

// direct, ring, halving_doubling, doubling, exchange, double_binary_tree; and where links are
// measured packed_trees, rings, hierarchical, quickest_tree, and direct has weights. Above
// kExchangeBytesMax "doubling" means halving_doubling, and "exchange" direct. `routes`:
// find_routes(links), if there are any; else they are found here where links are measured. Throws
// std::invalid_argument too if links that the algorithm needs do not exist.
Schedule choose_all_reduce(const Links& links, uint64_t count, uint64_t element_bytes,
                           std::string_view algorithm = "auto", const Routes* routes = nullptr);
// Where values travel in a codec: those of the above in which they are encoded again a few times at
// most, so "doubling" means halving_doubling, "exchange" direct; a ring, where they are
// at every rank, only by name.
Schedule choose_coded_all_reduce(const Links& links, uint64_t count,
                                 std::string_view algorithm = "auto",
                                 const Routes* routes = nullptr);
// binomial, double_binary_tree, quickest_tree (by auto where links are measured; likewise below).
Schedule choose_broadcast(const Links& links, int32_t root, uint64_t count, uint64_t element_bytes,
                          std::string_view algorithm = "auto");
Schedule choose_reduce(const Links& links, int32_t root, uint64_t count, uint64_t element_bytes,
                       std::string_view algorithm = "auto");
// direct, ring, doubling, quickest_tree.
Schedule choose_all_gather(const Links& links, std::span<const uint64_t> block_counts,
                           uint64_t element_bytes, std::string_view algorithm = "auto");
// direct, ring, halving, quickest_tree.
Schedule choose_reduce_scatter(const Links& links, std::span<const uint64_t> block_counts,
                               uint64_t element_bytes, std::string_view algorithm = "auto");

// The order of the ring that choose_* plans: from rank 0 always on to the rank with the cheapest
// link (most bytes a second, then latency, then rank number), so ranks of a host are neighbours.
std::vector<int32_t> ring_order(const Links& links);

}  // namespace pccl::topology
