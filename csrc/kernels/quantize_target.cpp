// The codecs behind encode() and decode(), compiled once per instruction set (see CMakeLists.txt).
//
// A segment is worked off tile by tile: its values, as floats, its codes and its scales stay in L1.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/elements.h"
#include "kernels/half_blocks.h"
#include "kernels/quantize_float8.h"
#include "kernels/quantize_hadamard.h"
#include "kernels/quantize_tiles.h"
#include "kernels/reduce_table.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

constexpr size_t kTileBytes = kTileCount * sizeof(float);

// ---- Tiles of floats out of and into memory of any float type ----

// Not element_bytes(): it has external linkage.
size_t bytes_of(DataType dtype) {
  return dtype == DataType::Float64 ? 8 : dtype == DataType::Float32 ? 4 : 2;
}

// In place. A power of two is a multiplication with the same result, which is faster.
[[gnu::noinline]] void divide_tile(std::byte* values, size_t count, float by) {
  if ((bits_of(by) & 0x7FFFFFu) == 0 && by >= 1 && by <= 0x1p100F) {
    const float factor = 1 / by;
    PCCL_INDEPENDENT_ITERATIONS
    for (size_t i = 0; i < count; ++i) {
      const float product = multiply(Plain<float>::load(values, i), factor);
      std::memcpy(values + i * sizeof(product), &product, sizeof(product));
    }
    return;
  }
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = 0; i < count; ++i) {
    const float quotient = divide(Plain<float>::load(values, i), by);
    std::memcpy(values + i * sizeof(quotient), &quotient, sizeof(quotient));
  }
}

// What is infinite as a float counts as not finite.
[[gnu::noinline]] void load_tile(DataType dtype, const std::byte* in, size_t count,
                                 std::byte* out) {
  switch (dtype) {
    case DataType::Float64:
      for (size_t i = 0; i < count; ++i) {
        const auto value = static_cast<float>(Plain<double>::load(in, i));
        std::memcpy(out + i * sizeof(value), &value, sizeof(value));
      }
      return;
    case DataType::Float16:
      return widen(out, in, count);
    case DataType::BFloat16:
      for (size_t i = 0; i < count; ++i) {
        const float value = bfloat16_to_float(Plain<uint16_t>::load(in, i));
        std::memcpy(out + i * sizeof(value), &value, sizeof(value));
      }
      return;
    default:
      std::memcpy(out, in, count * sizeof(float));
  }
}

[[gnu::noinline]] void store_tile(DataType dtype, const std::byte* in, size_t count,
                                  std::byte* out) {
  switch (dtype) {
    case DataType::Float64:
      for (size_t i = 0; i < count; ++i) {
        const auto value = static_cast<double>(Plain<float>::load(in, i));
        std::memcpy(out + i * sizeof(value), &value, sizeof(value));
      }
      return;
    case DataType::Float16:
      return narrow(out, in, count);
    case DataType::BFloat16:
      for (size_t i = 0; i < count; ++i) BFloat16::store(out, i, Plain<float>::load(in, i));
      return;
    default:
      std::memcpy(out, in, count * sizeof(float));
  }
}

[[gnu::noinline]] void add_tile(const std::byte* in, size_t count, std::byte* out) {
  for (size_t i = 0; i < count; ++i) {
    const float sum = add(Plain<float>::load(out, i), Plain<float>::load(in, i));
    std::memcpy(out + i * sizeof(sum), &sum, sizeof(sum));
  }
}

[[gnu::noinline]] void clamp_tile(const std::byte* __restrict in, float limit,
                                  std::byte* __restrict out) {
  for (size_t i = 0; i < kTileCount; ++i) {
    const float value = clamp(Plain<float>::load(in, i), limit);
    std::memcpy(out + i * sizeof(value), &value, sizeof(value));
  }
}

// ---- Codecs: the tile's bytes from 256 floats (zeros past `count`), and back ----

size_t take_scales(const std::byte* wire, size_t blocks, float* scales) {
  for (size_t block = 0; block < blocks; ++block) {
    scales[block] = bfloat16_to_float(Plain<uint16_t>::load(wire, block));
  }
  return blocks * sizeof(uint16_t);
}

template <class Format>
struct WholeBytes {  // int8: one code a byte
  static constexpr size_t kBlocks = kTileCount / Format::kBlock;

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

  template <bool kAdds>
  static void decode(const std::byte* wire, size_t count, std::byte* out) {
    float scales[kBlocks] = {};
    wire += take_scales(wire, blocks_of(count, Format::kBlock), scales);
    if (count == kTileCount) {
      const auto* codes = reinterpret_cast<const int8_t*>(wire);
      return dequantize_tile<Format, kAdds>(codes, scales, out);
    }
    int8_t codes[kTileCount] = {};
    std::memcpy(codes, wire, count);
    dequantize_tile<Format, kAdds>(codes, scales, out);
  }

  static bool is_valid(const std::byte* wire, size_t count) {
    return are_scales<Format>(wire, count);
  }
};

template <class Format, bool kClips>
struct PackedBits {  // int6, int4
  static constexpr size_t kBlocks = kTileCount / Format::kBlock;

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

  template <bool kAdds>
  static void decode(const std::byte* wire, size_t count, std::byte* out) {
    float scales[kBlocks] = {};
    wire += take_scales(wire, blocks_of(count, Format::kBlock), scales);
    int8_t codes[kTileCount];
    if (count != kTileCount) std::memset(codes, 0, sizeof(codes));
    take_codes<Format>(wire, count, codes);
    dequantize_tile<Format, kAdds>(codes, scales, out);
  }

  static bool is_valid(const std::byte* wire, size_t count) {
    return are_scales<Format>(wire, count);
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

  [[gnu::noinline]] static bool is_valid(const std::byte* wire, size_t count) {
    int32_t wrong = 0;
    for (size_t i = 0; i < count; ++i) {
      wrong |= (Plain<uint16_t>::load(wire, i) & kExponent) == kExponent ? 1 : 0;
    }
    return wrong == 0;
  }
};

// ---- From a segment to its tiles ----

template <class TileCodec>
bool encode_tiles(const EncodeCall& call, size_t tile_bytes) {
  alignas(64) std::byte scratch[kTileBytes];
  const size_t element_bytes = bytes_of(call.dtype);
  const auto* in = static_cast<const std::byte*>(call.values);
  Rounding rounding{(call.codec.options & kStochastic) != 0, call.stream, call.first_element, {}};
  if (rounding.is_stochastic) rounding.key = random_key(call.stream, call.first_element);
  bool is_finite = true;
  std::byte* wire = call.payload;
  for (size_t begin = 0; begin < call.count; begin += kTileCount) {
    const size_t left = call.count - begin;
    const size_t count = left < kTileCount ? left : kTileCount;
    const std::byte* tile = in + begin * element_bytes;
    if (call.dtype != DataType::Float32 || call.divisor != 1 || count != kTileCount) {
      if (count != kTileCount) std::memset(scratch, 0, sizeof(scratch));
      load_tile(call.dtype, tile, count, scratch);
      if (call.divisor != 1) divide_tile(scratch, count, call.divisor);
      tile = scratch;
    }
    is_finite = TileCodec::encode(tile, count, rounding, wire) && is_finite;
    wire += tile_bytes;
    const uint64_t next = rounding.element + kTileCount;
    if (rounding.is_stochastic && next >> 32 != rounding.element >> 32) {
      rounding.key = random_key(call.stream, next);
    }
    rounding.element = next;
  }
  return is_finite;
}

template <class TileCodec>
void decode_tiles(const DecodeCall& call, size_t tile_bytes) {
  alignas(64) std::byte scratch[kTileBytes];
  const size_t element_bytes = bytes_of(call.dtype);
  auto* out = static_cast<std::byte*>(call.values);
  const std::byte* wire = call.payload;
  for (size_t begin = 0; begin < call.count; begin += kTileCount) {
    const size_t left = call.count - begin;
    const size_t count = left < kTileCount ? left : kTileCount;
    std::byte* to = out + begin * element_bytes;
    if (call.dtype == DataType::Float32 && count == kTileCount) {
      if (call.adds) {
        TileCodec::template decode<true>(wire, count, to);
      } else {
        TileCodec::template decode<false>(wire, count, to);
      }
    } else {
      TileCodec::template decode<false>(wire, count, scratch);
      if (call.adds) {
        add_tile(scratch, count, to);
      } else {
        store_tile(call.dtype, scratch, count, to);
      }
    }
    wire += tile_bytes;
  }
}

template <class TileCodec>
bool are_tiles_valid(const std::byte* wire, size_t all, size_t tile_bytes) {
  for (size_t begin = 0; begin < all; begin += kTileCount) {
    const size_t count = all - begin < kTileCount ? all - begin : kTileCount;
    if (!TileCodec::is_valid(wire, count)) return false;
    wire += tile_bytes;
  }
  return true;
}

// Calls `body` with the codec's type as its template argument.
template <class Body>
auto with_codec(Codec codec, const Body& body) {
  const bool clips = (codec.options & kMseClip) != 0;
  switch (codec.id) {
    case CodecId::BFloat16:
      return body.template operator()<Float16Codes<true>>();
    case CodecId::Float16:
      return body.template operator()<Float16Codes<false>>();
    case CodecId::Int6:
      return body.template operator()<PackedBits<Int6Format, false>>();
    case CodecId::Int4:
      if ((codec.options & kHadamard) != 0) {
        if (clips) return body.template operator()<RotatedBits<true>>();
        return body.template operator()<RotatedBits<false>>();
      }
      if (clips) return body.template operator()<PackedBits<Int4Format, true>>();
      return body.template operator()<PackedBits<Int4Format, false>>();
    case CodecId::Float8E4M3:
      return body.template operator()<Float8Codes<E4M3Format>>();
    case CodecId::Float8E5M2:
      return body.template operator()<Float8Codes<E5M2Format>>();
    default:
      return body.template operator()<WholeBytes<Int8Format>>();
  }
}

}  // namespace

bool encode(const EncodeCall& call, size_t tile_bytes) {
  return with_codec(call.codec,
                    [&]<class TileCodec>() { return encode_tiles<TileCodec>(call, tile_bytes); });
}

void decode(const DecodeCall& call, size_t tile_bytes) {
  with_codec(call.codec, [&]<class TileCodec>() { decode_tiles<TileCodec>(call, tile_bytes); });
}

bool is_payload_valid(Codec codec, const std::byte* payload, size_t count, size_t tile_bytes) {
  return with_codec(codec, [&]<class TileCodec>() {
    return are_tiles_valid<TileCodec>(payload, count, tile_bytes);
  });
}

void widen(DataType dtype, const void* values, size_t count, float* sums, bool adds) {
  alignas(64) std::byte scratch[kTileBytes];
  const size_t element_bytes = bytes_of(dtype);
  const auto* in = static_cast<const std::byte*>(values);
  auto* out = reinterpret_cast<std::byte*>(sums);
  for (size_t begin = 0; begin < count; begin += kTileCount) {
    const size_t part = count - begin < kTileCount ? count - begin : kTileCount;
    std::byte* to = out + begin * sizeof(float);
    load_tile(dtype, in + begin * element_bytes, part, adds ? scratch : to);
    if (adds) add_tile(scratch, part, to);
  }
}

void narrow(DataType dtype, const float* values, size_t count, void* out) {
  store_tile(dtype, reinterpret_cast<const std::byte*>(values), count,
             static_cast<std::byte*>(out));
}

}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
