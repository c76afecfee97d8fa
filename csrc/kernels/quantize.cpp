#include "kernels/quantize.h"

#include "kernels/quantize_elements.h"
#include "kernels/reduce_table.h"

namespace pccl::kernels {
namespace {

template <class Format>
size_t tile_bytes_of(size_t count) {
  const size_t blocks = (count + Format::kBlock - 1) / Format::kBlock;
  const size_t whole = Format::kCodeBits == 8 ? count : (count + 1) / 2;
  const size_t high_bits = Format::kCodeBits == 6 ? (count + 3) / 4 : 0;
  return blocks * sizeof(uint16_t) + whole + high_bits;
}

// Of a tile of `count` <= kTileCount elements.
size_t tile_bytes(Codec codec, size_t count) {
  switch (codec.id) {
    case CodecId::Int8:
      return tile_bytes_of<Int8Format>(count);
    case CodecId::Int6:
      return tile_bytes_of<Int6Format>(count);
    case CodecId::Int4:
      return tile_bytes_of<Int4Format>(codec.has(kHadamard) ? (count + 127) / 128 * 128 : count);
    case CodecId::Float8E4M3:
      return tile_bytes_of<E4M3Format>(count);
    case CodecId::Float8E5M2:
      return tile_bytes_of<E5M2Format>(count);
    default:
      return 2 * count;
  }
}

}  // namespace

size_t payload_bytes(Codec codec, size_t count) {
  return count / kTileCount * tile_bytes(codec, kTileCount) + tile_bytes(codec, count % kTileCount);
}

bool encode(const EncodeCall& call) {
  return selected_kernels().encode(call, tile_bytes(call.codec, kTileCount));
}

void decode(const DecodeCall& call) {
  selected_kernels().decode(call, tile_bytes(call.codec, kTileCount));
}

Combined combine(const CombineCall& call) {
  return selected_kernels().combine(call, tile_bytes(call.sum.codec, kTileCount));
}

bool is_payload_valid(Codec codec, const std::byte* payload, size_t count) {
  return selected_kernels().is_payload_valid(codec, payload, count, tile_bytes(codec, kTileCount));
}

void widen(DataType dtype, const void* values, size_t count, float* sums, bool adds) {
  selected_kernels().widen(dtype, values, count, sums, adds);
}

void narrow(DataType dtype, const float* values, size_t count, void* out) {
  selected_kernels().narrow(dtype, values, count, out);
}

}  // namespace pccl::kernels
