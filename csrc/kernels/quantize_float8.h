// 8-bit floats of a tile, one code a byte.
//
// Included by quantize_target.cpp; see quantize_tiles.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/elements.h"
#include "kernels/quantize_elements.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

template <class Format>
[[gnu::noinline]] void quantize_float8(const std::byte* __restrict values,
                                       const float* __restrict inverses,
                                       uint8_t* __restrict codes) {
  for (size_t block = 0; block < kTileCount / Format::kBlock; ++block) {
    const float inverse = inverses[block];
    const size_t begin = block * Format::kBlock;
    for (size_t i = begin; i < begin + Format::kBlock; ++i) {
      const float scaled = multiply(Plain<float>::load(values, i), inverse);
      codes[i] = to_float8<Format>(clamp(scaled, Format::kLevels));
    }
  }
}

template <class Format, bool kAdds>
[[gnu::noinline]] void dequantize_float8(const uint8_t* __restrict codes,
                                         const float* __restrict scales,
                                         std::byte* __restrict out) {
  for (size_t block = 0; block < kTileCount / Format::kBlock; ++block) {
    const float scale = scales[block];
    const size_t begin = block * Format::kBlock;
    for (size_t i = begin; i < begin + Format::kBlock; ++i) {
      const float value = multiply(from_float8<Format>(codes[i]), scale);
      const uint32_t bits =
          kAdds ? bits_of(add(Plain<float>::load(out, i), value)) : bits_of(value);
      std::memcpy(out + i * sizeof(bits), &bits, sizeof(bits));
    }
  }
}

template <class Format>
[[gnu::noinline]] bool are_float8(const std::byte* codes, size_t count) {
  uint32_t wrong = 0;
  for (size_t i = 0; i < count; ++i) {
    wrong |= static_cast<uint32_t>((static_cast<uint8_t>(codes[i]) & 0x7F) > Format::kMagnitudeMax);
  }
  return wrong == 0;
}

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
