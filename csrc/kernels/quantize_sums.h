// Sums of tiles that lie in a codec: several are added at a time, so that the sum is read and
// written less often.
//
// Included by quantize_target.cpp, once per instruction set; internal linkage, for the reason given
// in half.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "kernels/elements.h"
#include "kernels/quantize_elements.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

// Codes as floats, so many at a time. The compiler widens bytes in two steps, with a shuffle more
// for each; the instruction that does it in one makes the sum below 1.5 times as fast.
#if defined(__AVX512F__)
struct CodeLanes {
  static constexpr size_t kCount = 16;
  using Floats = __m512;
  static Floats of_codes(const int8_t* codes) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(codes));
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
  }
};
#elif defined(__AVX2__)
struct CodeLanes {
  static constexpr size_t kCount = 8;
  using Floats = __m256;
  static Floats of_codes(const int8_t* codes) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i_u*>(codes));
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
  }
};
#else
struct CodeLanes {
  static constexpr size_t kCount = 1;
  using Floats = float;
  static Floats of_codes(const int8_t* codes) { return static_cast<float>(*codes); }
};
#endif

// out[i] = ((out[i] + codes[0][i] * scales[0]) + codes[1][i] * scales[1]) + ...: the sums are read
// and written once for all kWires.
template <class Format, size_t kWires, size_t kBlocks>
[[gnu::noinline]] void dequantize_sum(const int8_t* const* __restrict codes,
                                      const float (*__restrict scales)[kBlocks],
                                      std::byte* __restrict out) {
  const int8_t* __restrict in[kWires];
  for (size_t wire = 0; wire < kWires; ++wire) in[wire] = codes[wire];
  for (size_t block = 0; block < kBlocks; ++block) {
    float scale[kWires];
    for (size_t wire = 0; wire < kWires; ++wire) scale[wire] = scales[wire][block];
    const size_t begin = block * Format::kBlock;
    PCCL_INDEPENDENT_ITERATIONS
    for (size_t i = begin; i < begin + Format::kBlock; i += CodeLanes::kCount) {
      CodeLanes::Floats sum;
      std::memcpy(&sum, out + i * sizeof(float), sizeof(sum));
      for (size_t wire = 0; wire < kWires; ++wire) {
        sum = sum + CodeLanes::of_codes(in[wire] + i) * scale[wire];
      }
      std::memcpy(out + i * sizeof(float), &sum, sizeof(sum));
    }
  }
}

// sums[i] += element i of each of kWires tiles, in their order.
template <class TileCodec, class Format, size_t kWires>
void add_codes_of(const std::byte* const* wires, size_t count, std::byte* sums) {
  float scales[kWires][TileCodec::kBlocks] = {};
  int8_t room[kWires][kTileCount];
  const int8_t* codes[kWires];
  for (size_t i = 0; i < kWires; ++i) {
    codes[i] = TileCodec::take(wires[i], count, scales[i], room[i]);
  }
  dequantize_sum<Format, kWires>(codes, scales, sums);
}

// Eight at a time, and what is left as a four, a two and a one.
template <class TileCodec, class Format, size_t kWires = 8>
void add_codes(const std::byte* const* wires, size_t wire_count, size_t count, std::byte* sums) {
  for (; wire_count >= kWires; wire_count -= kWires, wires += kWires)
    add_codes_of<TileCodec, Format, kWires>(wires, count, sums);
  if constexpr (kWires > 1)
    add_codes<TileCodec, Format, kWires / 2>(wires, wire_count, count, sums);
}

// The same for codecs whose tiles are decoded one by one.
template <class TileCodec>
void add_decoded(const std::byte* const* wires, size_t wire_count, size_t count, std::byte* sums) {
  for (size_t i = 0; i < wire_count; ++i) TileCodec::template decode<true>(wires[i], count, sums);
}

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
