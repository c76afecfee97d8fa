// Codecs on host memory: the tiles of a segment, without its header (quantization/codec.h).
//
// Pure functions; any thread; the same bytes on every target (see reduce.h). They take the dense
// codecs except None: 8- and 16-bit floats, 8-, 6- and 4-bit integers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/codec.h"
#include "base/types.h"

namespace pccl::kernels {

struct EncodeCall {
  Codec codec;
  DataType dtype;  // float64, float32, float16 or bfloat16
  const void* values;
  size_t count;
  float divisor;           // 1: no division
  uint64_t stream;         // of random numbers, for stochastic rounding
  uint64_t first_element;  // index of values[0] in the stream
  std::byte* payload;
};

struct DecodeCall {
  Codec codec;
  const std::byte* payload;
  size_t count;
  DataType dtype;
  void* values;
  bool adds;  // values[i] += instead of =; float32 only
};

// A sum of contributions that travel in a codec, encoded in it again.
struct CombineCall {
  EncodeCall sum;                   // its values are the first contribution, its divisor the sum's
  const std::byte* const* sources;  // payloads, added in their order
  size_t source_count;
  float* sums;  // what was encoded, before the division; may be sum.values; null: not wanted
};
struct Combined {
  bool is_finite = true;  // as encode()'s
  size_t valid = 0;       // sources up to the first that is not a valid payload, which ended it
};

// Bytes of `count` elements.
size_t payload_bytes(Codec codec, size_t count);

// Whether every value was finite as float32. Where one was not, the payload is not valid.
bool encode(const EncodeCall& call);

// Requires: is_payload_valid().
void decode(const DecodeCall& call);

// Reads every source once: a tile of the sum stays in L1 from its first contribution to its code.
Combined combine(const CombineCall& call);

// Whether every code stands for a finite number.
bool is_payload_valid(Codec codec, const std::byte* payload, size_t count);

// sums[i] = values[i], or += where `adds`.
void widen(DataType dtype, const void* values, size_t count, float* sums, bool adds);

// out[i] = values[i], rounded once.
void narrow(DataType dtype, const float* values, size_t count, void* out);

}  // namespace pccl::kernels
