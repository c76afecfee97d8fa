// Error feedback: what a codec loses is kept, and sent later.
//
// The memory is the caller's, one float for each element: saved and restored with its state, zero
// for a newcomer. A source keeps one residual; an owner, who encodes sums, keeps another.
//
// Where a value is not finite nothing but `wire` is changed, and a receiver refuses that.
#pragma once

#include <cstddef>
#include <optional>

#include "quantization/codec.h"

namespace pccl::quantization {

// wire = Q(values / divisor + residual); residual = what Q lost of it. Otherwise as encode(), or
// encode_sums() where the divisor is not 1. Requires: not None.
std::optional<size_t> encode_with_feedback(Codec codec, DataType dtype, const void* values,
                                           size_t elements, double divisor, const EncodeKey& key,
                                           float* residual, std::byte* wire);

// lost = sums - divisor times what `wire` decodes to: what encode_sums() has lost of them.
// Requires: `wire` is what it wrote of these.
void find_lost(Codec codec, const float* sums, size_t elements, double divisor,
               const std::byte* wire, float* lost);

// EF21: wire = Q(values - estimate); estimate += the decoded difference, as at every receiver that
// adds the wire to its own copy of the estimate. Requires: not None.
// Source: Richtarik, Sokolov, Fatkhullin, EF21, NeurIPS 2021, arXiv 2106.05203.
std::optional<size_t> encode_difference(Codec codec, DataType dtype, const void* values,
                                        size_t elements, const EncodeKey& key, float* estimate,
                                        std::byte* wire);

}  // namespace pccl::quantization
