// Sparse codecs: of each chunk of 4096 elements the k largest, with their indices. For the exchange
// of pseudo-gradients with error feedback, where a sum is never encoded again.
//
// A chunk on the wire: indices of 12 bits, ascending, then the values: bfloat16 (TopK), or one bit
// of sign and one of size each, behind two bfloat16 sizes (TopK2Bit). A tensor's last chunk is
// shorter; it has min(k, its elements) values.
//
// Source: SparseLoCo, arXiv 2508.15706 (chunks of 4096, k = 64, 2 bits, 12-bit indices).
#pragma once

#include <cstddef>

#include "kernels/quantize.h"

namespace pccl::quantization {

inline constexpr size_t kChunkElements = 4096;
// log2 of k, which is the codec's options.
inline constexpr uint8_t kTopKShiftMax = 10;

constexpr bool is_sparse(Codec codec) {
  return codec.id == CodecId::TopK || codec.id == CodecId::TopK2Bit;
}

size_t sparse_payload_bytes(Codec codec, size_t count);

// Whether every value was finite as float32. About 0.5 GB/s.
bool encode_sparse(const kernels::EncodeCall& call);

// Elements without a value are zero.
void decode_sparse(const kernels::DecodeCall& call);

// Whether indices ascend and stay below the chunk's end, and values are finite.
bool is_sparse_payload_valid(Codec codec, const std::byte* payload, size_t count);

}  // namespace pccl::quantization
