// Who averages with whom, round by round, where an approximate mean is enough.
//
// A round is a matrix W, doubly stochastic: rows and columns sum to 1, so that the mean over all
// ranks stays what it is. Rank r's new value is the sum over s of W[r][s] times s's value.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace pccl::topology {

// [to * world_size + from]
using Mixing = std::vector<double>;

// One round of a graph that changes with `round`, or does not:
//   ring                 a third to itself and to either neighbour
//   exponential          r + 1, r + 2, r + 4, ...: alike, itself included. Ying et al., NeurIPS
//   2021 one_peer_exponential half from r + 2^k, k in turn: exact after log2 P rounds if P = 2^k
//   base_2 .. base_5     at most 1 .. 4 partners a round, exact after finitely many rounds for
//   every
//                        P. Takezawa et al., NeurIPS 2023 (Base-(k + 1) graphs)
//   random_pairs         half with a partner drawn at random; with odd P one rank pauses
//   equi_static          the mean of ceil(log2 P) + 1 shifts drawn by `seed`. Song et al., NeurIPS
//                        2022 (EquiTopo)
//   equi_dynamic         one such shift a round
// The same on every machine. Throws std::invalid_argument on an unknown name, with the list.
Mixing gossip_round(std::string_view graph, int32_t world_size, uint64_t round, uint64_t seed);

// After so many rounds the same ones come again; 0: never.
uint64_t gossip_period(std::string_view graph, int32_t world_size);

// All rounds of a Base-(partners + 1) graph: their product is the exact mean.
std::vector<Mixing> base_rounds(int32_t world_size, int32_t partners);

}  // namespace pccl::topology
