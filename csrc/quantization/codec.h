// Codecs: what a segment of a tensor looks like on the wire, and the way there and back.
//
// Pure functions; any thread. A codec, a length and the values fix every byte, on any machine and
// whatever instruction set is in use.
//
// The dense codecs fit any collective. The sparse ones (TopK, TopK2Bit) are for exchanges where
// every member decodes what each sent: a sum that is encoded again loses all but its largest.
//
// Wire format, docs/codecs.md: a header of 8 bytes, then tiles of 256 elements (sparse:
// chunks of 4096), each with its own scales. A tensor that is cut at multiples of block_elements()
// thus has the same tiles as one that is not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "base/codec.h"
#include "base/types.h"

namespace pccl::quantization {

inline constexpr uint8_t kWireVersion = 1;
inline constexpr size_t kHeaderBytes = 8;
// Of one segment; the header counts in 32 bits.
inline constexpr size_t kElementsMax = size_t{1} << 31;

// "int8", "int4:mse_clip", "int4:hadamard:stochastic", "topk:64" (of each 4096), ... Throws
// std::invalid_argument, which lists what there is.
Codec parse_codec(std::string_view text);

// Whether the two bytes of a codec from the network mean anything.
bool is_known(Codec codec);

// Throws std::invalid_argument unless the codec takes elements of `dtype`: all but None take
// float64, float32, float16 and bfloat16 only.
void check_dtype(Codec codec, DataType dtype);

// A segment that begins at a multiple of it is encoded as it is within the whole.
size_t block_elements(Codec codec);

// Exact bytes of a segment with its header, known beforehand. `dtype` matters to None only.
// Requires: elements <= kElementsMax.
size_t encoded_bytes(Codec codec, DataType dtype, size_t elements);

// What a segment says of itself. `dtype`: of None, the elements'.
struct SegmentHeader {
  Codec codec;
  std::optional<DataType> dtype;
  size_t elements = 0;
};
// nullopt: no header of this version and of a known codec.
std::optional<SegmentHeader> read_header(std::span<const std::byte> wire);

// Keys the randomness of stochastic rounding, the same whatever the segments; else without effect.
struct EncodeKey {
  uint64_t seed = 0;
  uint64_t step = 0;           // differs from operation to operation
  uint64_t first_element = 0;  // index in the whole tensor of the segment's first element
};

// Writes encoded_bytes() to `wire`. Returns the first value that is not finite as float32, if there
// is one (None does not look); then a receiver refuses the bytes. Finite values that exceed a
// format are clamped to its largest. Requires: a dtype that check_dtype() accepts; no pointer
// needs alignment.
std::optional<size_t> encode(Codec codec, DataType dtype, const void* values, size_t elements,
                             const EncodeKey& key, std::byte* wire);

// The same of `sums[i] / divisor`: what an owner does with accumulated contributions.
// Requires: not None, whose sums stay in their own dtype; divisor > 0.
std::optional<size_t> encode_sums(Codec codec, const float* sums, size_t elements, double divisor,
                                  const EncodeKey& key, std::byte* wire);

// A contribution that is still in its own dtype, and those that came as segments.
struct Contributions {
  DataType dtype = DataType::Float32;
  const void* values = nullptr;
  size_t elements = 0;
  std::span<const std::span<const std::byte>> wires;
};

// What keeps combine() from a result; `wire` then holds nothing that a receiver takes.
struct CombineFault {
  std::optional<size_t> element;  // of the sum, that is not finite
  size_t wire = 0;                // else the first one that is no such segment
  std::string fault;
};

// What an owner does: encodes the sum of `values` and what each of the wires decodes to, in float32
// and in their order, divided by `divisor`. The same bytes as by decode_add() and encode_sums(), in
// one pass over all of them. `sums`: becomes the sum, undivided; may be `values`; null: not wanted.
// Requires: not None; divisor > 0.
std::optional<CombineFault> combine(Codec codec, const Contributions& contributions, double divisor,
                                    const EncodeKey& key, std::byte* wire, float* sums = nullptr);

// Whether `wire` is one segment of `elements` elements in this codec whose values are all finite:
// else the fault, as a sentence. Never reads beyond it.
std::optional<std::string> find_fault(Codec codec, DataType dtype, std::span<const std::byte> wire,
                                      size_t elements);

// values[i] = the decoded element, rounded once to `dtype`. Returns the fault, and has then written
// nothing.
std::optional<std::string> decode(Codec codec, DataType dtype, std::span<const std::byte> wire,
                                  size_t elements, void* values);

// sums[i] += the decoded element: one multiplication, one addition, never fused. `dtype` as in
// find_fault(). Returns the fault, and has then written nothing.
std::optional<std::string> decode_add(Codec codec, DataType dtype, std::span<const std::byte> wire,
                                      size_t elements, float* sums);

// sums[i] = values[i], and sums[i] += values[i], for a contribution that never was on a wire.
// Requires: a float dtype.
void widen(DataType dtype, const void* values, size_t elements, float* sums);
void widen_add(DataType dtype, const void* values, size_t elements, float* sums);

}  // namespace pccl::quantization
