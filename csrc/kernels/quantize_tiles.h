// The codecs a tile of 256 elements at a time, in loops that compilers vectorise.
//
// Included by quantize_target.cpp, once per instruction set; internal linkage, and no call of an
// inline function with external linkage, for the reason given in half.h.
//
// A tile is its scales, one for each block, then its codes. Of 4-bit codes the first half of the
// tile lies in the low halves of the bytes and the second in the high ones; 6-bit codes have their
// low four bits so, then their high two bits, a quarter of the tile beside the other.
// A tensor's last tile of `count` elements is shorter: a half is then (count + 1) / 2, a quarter
// (count + 3) / 4, and what is past the end counts as zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/elements.h"
#include "kernels/half_blocks.h"
#include "kernels/quantize_elements.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

struct Rounding {
  bool is_stochastic;
  uint64_t stream;
  uint64_t element;  // of the tile's first element
  RandomKey key;     // of `element`
};

constexpr size_t blocks_of(size_t count, size_t block) { return (count + block - 1) / block; }

// ---- Scales ----

template <size_t kBlock>
[[gnu::noinline]] void find_absmax(const std::byte* values, uint32_t* absmax) {
  for (size_t block = 0; block < kTileCount / kBlock; ++block) {
    int32_t most = 0;
    for (size_t i = 0; i < kBlock; ++i) {
      const int32_t magnitude = Plain<int32_t>::load(values, block * kBlock + i) & 0x7FFFFFFF;
      most = most > magnitude ? most : magnitude;
    }
    absmax[block] = static_cast<uint32_t>(most);
  }
}

// The scales of a tile.
template <class Format>
struct Scales {
  uint16_t bits[kTileCount / Format::kBlock];
  float inverses[kTileCount / Format::kBlock];
  bool are_finite = true;
  // Whether a value may exceed the levels by more than rounding takes back: the scale of the
  // largest magnitude is at most 2^-9 of itself too small, unless the format bounds it.
  bool clamp = false;
};

template <class Format>
void find_scales(const std::byte* values, Scales<Format>& scales) {
  constexpr size_t kBlocks = kTileCount / Format::kBlock;
  uint32_t absmax[kBlocks];
  find_absmax<Format::kBlock>(values, absmax);
  for (size_t block = 0; block < kBlocks; ++block) {
    const uint16_t scale = scale_of<Format>(absmax[block]);
    scales.bits[block] = scale;
    scales.inverses[block] = inverse_scale(scale);
    scales.are_finite = scales.are_finite && scale != kScaleInvalid;
    scales.clamp = scales.clamp || scale >= Format::kScaleMax;
  }
}

template <class Format>
bool are_scales(const std::byte* wire, size_t count) {
  bool are = true;
  for (size_t block = 0; block < blocks_of(count, Format::kBlock); ++block) {
    are = are && is_scale<Format>(Plain<uint16_t>::load(wire, block));
  }
  return are;
}

// ---- Integers: one code a byte ----

template <class Format, bool kClamps>
[[gnu::noinline]] void quantize_tile(const std::byte* __restrict values,
                                     const float* __restrict inverses, int8_t* __restrict codes) {
  for (size_t block = 0; block < kTileCount / Format::kBlock; ++block) {
    const float inverse = inverses[block];
    const std::byte* in = values + block * Format::kBlock * sizeof(float);
    int8_t* out = codes + block * Format::kBlock;
    for (size_t i = 0; i < Format::kBlock; ++i) {
      const float scaled = multiply(Plain<float>::load(in, i), inverse);
      out[i] =
          static_cast<int8_t>(round_to_integer(kClamps ? clamp(scaled, Format::kLevels) : scaled));
    }
  }
}

template <class Format>
[[gnu::noinline]] void quantize_tile_randomly(const std::byte* __restrict values,
                                              const float* __restrict inverses,
                                              int8_t* __restrict codes, RandomKey key,
                                              uint32_t element) {
  for (size_t block = 0; block < kTileCount / Format::kBlock; ++block) {
    const float inverse = inverses[block];
    const size_t begin = block * Format::kBlock;
    for (size_t i = begin; i < begin + Format::kBlock; ++i) {
      const float offset = random_offset(key, element + static_cast<uint32_t>(i));
      codes[i] = static_cast<int8_t>(
          quantize_randomly(Plain<float>::load(values, i), inverse, Format::kLevels, offset));
    }
  }
}

template <class Format>
void quantize_tile_by(const Rounding& rounding, const std::byte* values,
                      const Scales<Format>& scales, int8_t* codes) {
  const float* inverses = scales.inverses;
  if (!rounding.is_stochastic) {
    if (scales.clamp) return quantize_tile<Format, true>(values, inverses, codes);
    return quantize_tile<Format, false>(values, inverses, codes);
  }
  const auto low = static_cast<uint32_t>(rounding.element);
  if (low <= UINT32_MAX - kTileCount) {
    return quantize_tile_randomly<Format>(values, inverses, codes, rounding.key, low);
  }
  // The tile that ends one stretch of 2^32 elements and begins another.
  for (size_t i = 0; i < kTileCount; ++i) {
    const uint64_t element = rounding.element + i;
    const float offset =
        random_offset(random_key(rounding.stream, element), static_cast<uint32_t>(element));
    codes[i] = static_cast<int8_t>(quantize_randomly(
        Plain<float>::load(values, i), inverses[i / Format::kBlock], Format::kLevels, offset));
  }
}

// out[i] = codes[i] * scale, or += where kAdds.
template <class Format, bool kAdds>
[[gnu::noinline]] void dequantize_tile(const int8_t* __restrict codes,
                                       const float* __restrict scales, std::byte* __restrict out) {
  for (size_t block = 0; block < kTileCount / Format::kBlock; ++block) {
    const float scale = scales[block];
    const int8_t* in = codes + block * Format::kBlock;
    std::byte* to = out + block * Format::kBlock * sizeof(float);
    for (size_t i = 0; i < Format::kBlock; ++i) {
      const float value = dequantize(in[i], scale);
      const uint32_t bits = kAdds ? bits_of(add(Plain<float>::load(to, i), value)) : bits_of(value);
      std::memcpy(to + i * sizeof(bits), &bits, sizeof(bits));
    }
  }
}

// ---- Codes of fewer than 8 bits ----

[[gnu::noinline]] void pack_low_bits(const int8_t* __restrict codes, size_t half,
                                     std::byte* __restrict out) {
  for (size_t i = 0; i < half; ++i) {
    out[i] = static_cast<std::byte>((codes[i] & 15) | ((codes[half + i] & 15) << 4));
  }
}

[[gnu::noinline]] void pack_high_bits(const int8_t* __restrict codes, size_t quarter,
                                      std::byte* __restrict out) {
  const auto high = [codes](size_t i) { return (codes[i] >> 4) & 3; };
  for (size_t i = 0; i < quarter; ++i) {
    out[i] = static_cast<std::byte>(high(i) | (high(quarter + i) << 2) |
                                    (high(2 * quarter + i) << 4) | (high(3 * quarter + i) << 6));
  }
}

// kSign: the weight of a code's sign bit, 0 where there are bits above these.
template <int kSign>
[[gnu::noinline]] void unpack_low_bits(const std::byte* __restrict in, size_t half,
                                       int8_t* __restrict codes) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(in);
  for (size_t i = 0; i < half; ++i) {
    codes[i] = static_cast<int8_t>(((bytes[i] & 15) ^ kSign) - kSign);
    codes[half + i] = static_cast<int8_t>(((bytes[i] >> 4) ^ kSign) - kSign);
  }
}

[[gnu::noinline]] void unpack_high_bits(const std::byte* __restrict in, size_t quarter,
                                        int8_t* __restrict codes) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(in);
  for (size_t i = 0; i < quarter; ++i) {
    for (size_t part = 0; part < 4; ++part) {
      const int bits = codes[part * quarter + i] | (((bytes[i] >> (2 * part)) & 3) << 4);
      codes[part * quarter + i] = static_cast<int8_t>((bits ^ 32) - 32);
    }
  }
}

template <class Format>
std::byte* put_codes(const int8_t* codes, size_t count, std::byte* out) {
  const size_t half = (count + 1) / 2;
  pack_low_bits(codes, half, out);
  if constexpr (Format::kCodeBits == 4) return out + half;
  const size_t quarter = (count + 3) / 4;
  pack_high_bits(codes, quarter, out + half);
  return out + half + quarter;
}

// Requires: room for kTileCount codes.
template <class Format>
void take_codes(const std::byte* in, size_t count, int8_t* codes) {
  const size_t half = (count + 1) / 2;
  unpack_low_bits<Format::kCodeBits == 4 ? 8 : 0>(in, half, codes);
  if constexpr (Format::kCodeBits == 6) unpack_high_bits(in + half, (count + 3) / 4, codes);
}

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
