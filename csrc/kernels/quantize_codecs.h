// What each codec makes of a tile: the seam between the loops over tiles (quantize_target.cpp) and
// the loops within one (quantize_tiles.h, quantize_float8.h, quantize_hadamard.h).
//
// Included by quantize_target.cpp, once per instruction set; internal linkage, for the reason given
// in half.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/codec.h"
#include "kernels/quantize_float8.h"
#include "kernels/quantize_hadamard.h"
#include "kernels/quantize_memory.h"
#include "kernels/quantize_sums.h"
#include "kernels/quantize_tiles.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

// ---- Codecs: the tile's bytes from 256 floats (zeros past `count`), and back ----

size_t take_scales(const std::byte* wire, size_t blocks, float* scales) {
  for (size_t block = 0; block < blocks; ++block) {
    scales[block] = bfloat16_to_float(Plain<uint16_t>::load(wire, block));
  }
  return blocks * sizeof(uint16_t);
}

// What codecs of scales and codes have in common. Codec::take() says where the codes are: on wire,
// or in `room`; it requires that scales are zeros.
template <class Codec, class Format>
struct ScaledCodes {
  static constexpr size_t kBlocks = kTileCount / Format::kBlock;

  template <bool kAdds>
  static void decode(const std::byte* wire, size_t count, std::byte* out) {
    float scales[kBlocks] = {};
    int8_t room[kTileCount];
    const int8_t* codes = Codec::take(wire, count, scales, room);
    dequantize_tile<Format, kAdds>(codes, scales, out);
  }

  static void add(const std::byte* const* wires, size_t wire_count, size_t count, std::byte* sums) {
    add_codes<Codec, Format>(wires, wire_count, count, sums);
  }

  static bool is_valid(const std::byte* wire, size_t count) {
    return are_scales<Format>(wire, count);
  }
};

template <class Format>
struct WholeBytes : ScaledCodes<WholeBytes<Format>, Format> {  // int8: one code a byte
  static bool encode(const std::byte* values, size_t count, const Rounding& rounding,
                     std::byte* wire) {
    Scales<Format> scales;
    find_scales(values, scales);
    const size_t scale_bytes = blocks_of(count, Format::kBlock) * sizeof(uint16_t);
    std::memcpy(wire, scales.bits, scale_bytes);
    std::byte* to = wire + scale_bytes;
    if (count == kTileCount) {
      quantize_tile_by<Format>(rounding, values, scales, reinterpret_cast<int8_t*>(to));
      return scales.are_finite;
    }
    int8_t codes[kTileCount];
    quantize_tile_by<Format>(rounding, values, scales, codes);
    std::memcpy(to, codes, count);
    return scales.are_finite;
  }

  static const int8_t* take(const std::byte* wire, size_t count, float* scales, int8_t* room) {
    wire += take_scales(wire, blocks_of(count, Format::kBlock), scales);
    if (count == kTileCount) return reinterpret_cast<const int8_t*>(wire);
    std::memset(room, 0, kTileCount);
    std::memcpy(room, wire, count);
    return room;
  }
};

template <class Format, bool kClips>
struct PackedBits : ScaledCodes<PackedBits<Format, kClips>, Format> {  // int6, int4
  static bool encode(const std::byte* values, size_t count, const Rounding& rounding,
                     std::byte* wire) {
    Scales<Format> scales;
    find_scales(values, scales);
    if constexpr (kClips) clip_scales(values, scales);
    const size_t scale_bytes = blocks_of(count, Format::kBlock) * sizeof(uint16_t);
    std::memcpy(wire, scales.bits, scale_bytes);
    int8_t codes[kTileCount];
    quantize_tile_by<Format>(rounding, values, scales, codes);
    put_codes<Format>(codes, count, wire + scale_bytes);
    return scales.are_finite;
  }

  static const int8_t* take(const std::byte* wire, size_t count, float* scales, int8_t* room) {
    wire += take_scales(wire, blocks_of(count, Format::kBlock), scales);
    if (count != kTileCount) std::memset(room, 0, kTileCount);
    take_codes<Format>(wire, count, room);
    return room;
  }
};

template <bool kClips>
struct RotatedBits {  // int4 of rotated groups of 128; a shorter group is sent whole
  using Plain4 = PackedBits<Int4HadamardFormat, kClips>;

  static size_t whole_groups(size_t count) { return blocks_of(count, kRotated) * kRotated; }

  static bool encode(const std::byte* values, size_t count, const Rounding& rounding,
                     std::byte* wire) {
    uint32_t absmax[1];
    find_absmax<kTileCount>(values, absmax);
    alignas(64) std::byte rotated[kTileBytes];
    const std::byte* in = values;
    if (absmax[0] > bits_of(kRotatedMax)) {
      clamp_tile(values, kRotatedMax, rotated);
      in = rotated;
    }
    rotate(in, kFactorThere, rotated);
    rotate(in + kTileBytes / 2, kFactorThere, rotated + kTileBytes / 2);
    Plain4::encode(rotated, whole_groups(count), rounding, wire);
    if (absmax[0] < kFloatInfinity) return true;
    std::memcpy(wire, &kScaleInvalid, sizeof(kScaleInvalid));
    return false;
  }

  template <bool kAdds>
  static void decode(const std::byte* wire, size_t count, std::byte* out) {
    alignas(64) std::byte rotated[kTileBytes];
    Plain4::template decode<false>(wire, whole_groups(count), rotated);
    for (size_t group = 0; group < kTileBytes; group += kTileBytes / 2) {
      rotate(rotated + group, kFactorBack, kAdds ? rotated + group : out + group);
    }
    if constexpr (kAdds) add_tile(rotated, kTileCount, out);
  }

  static void add(const std::byte* const* wires, size_t wire_count, size_t count, std::byte* sums) {
    add_decoded<RotatedBits>(wires, wire_count, count, sums);
  }

  static bool is_valid(const std::byte* wire, size_t count) {
    return Plain4::is_valid(wire, whole_groups(count));
  }
};

template <class Format>
struct Float8Codes {
  static constexpr size_t kBlocks = kTileCount / Format::kBlock;

  static bool encode(const std::byte* values, size_t count, const Rounding&, std::byte* wire) {
    Scales<Format> scales;
    find_scales(values, scales);
    const size_t scale_bytes = blocks_of(count, Format::kBlock) * sizeof(uint16_t);
    std::memcpy(wire, scales.bits, scale_bytes);
    uint8_t codes[kTileCount];
    quantize_float8<Format>(values, scales.inverses, codes);
    std::memcpy(wire + scale_bytes, codes, count);
    return scales.are_finite;
  }

  template <bool kAdds>
  static void decode(const std::byte* wire, size_t count, std::byte* out) {
    float scales[kBlocks] = {};
    wire += take_scales(wire, blocks_of(count, Format::kBlock), scales);
    uint8_t codes[kTileCount];
    if (count != kTileCount) std::memset(codes, 0, sizeof(codes));
    std::memcpy(codes, wire, count);
    dequantize_float8<Format, kAdds>(codes, scales, out);
  }

  static void add(const std::byte* const* wires, size_t wire_count, size_t count, std::byte* sums) {
    add_decoded<Float8Codes>(wires, wire_count, count, sums);
  }

  static bool is_valid(const std::byte* wire, size_t count) {
    const size_t scale_bytes = blocks_of(count, Format::kBlock) * sizeof(uint16_t);
    return are_scales<Format>(wire, count) && are_float8<Format>(wire + scale_bytes, count);
  }
};

template <bool kBrain>
struct Float16Codes {
  static constexpr float kMax = kBrain ? kBFloat16Max : kFloat16Max;
  static constexpr int32_t kExponent = kBrain ? 0x7F80 : 0x7C00;

  static bool encode(const std::byte* values, size_t count, const Rounding&, std::byte* wire) {
    uint32_t absmax[1];
    find_absmax<kTileCount>(values, absmax);
    alignas(64) std::byte clamped[kTileBytes];
    clamp_tile(values, kMax, clamped);
    store_tile(kBrain ? DataType::BFloat16 : DataType::Float16, clamped, count, wire);
    if (absmax[0] < kFloatInfinity) return true;
    std::memcpy(wire, &kScaleInvalid, sizeof(kScaleInvalid));
    return false;
  }

  template <bool kAdds>
  static void decode(const std::byte* wire, size_t count, std::byte* out) {
    alignas(64) std::byte tile[kTileBytes];
    load_tile(kBrain ? DataType::BFloat16 : DataType::Float16, wire, count, kAdds ? tile : out);
    if constexpr (kAdds) add_tile(tile, count, out);
  }

  static void add(const std::byte* const* wires, size_t wire_count, size_t count, std::byte* sums) {
    add_decoded<Float16Codes>(wires, wire_count, count, sums);
  }

  [[gnu::noinline]] static bool is_valid(const std::byte* wire, size_t count) {
    int32_t wrong = 0;
    for (size_t i = 0; i < count; ++i) {
      wrong |= (Plain<uint16_t>::load(wire, i) & kExponent) == kExponent ? 1 : 0;
    }
    return wrong == 0;
  }
};

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
