// Hadamard rotation of 128 floats, and the scale of least squared error: options of int4.
//
// Included by quantize_target.cpp; see quantize_tiles.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/elements.h"
#include "kernels/quantize_elements.h"
#include "kernels/quantize_tiles.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

constexpr size_t kRotated = 128;
// As many as the registers hold: a shuffle across registers is taken apart into single elements.
#if defined(__AVX512F__)
constexpr size_t kLanes = 16;
#elif defined(__AVX__)
constexpr size_t kLanes = 8;
#else
constexpr size_t kLanes = 4;
#endif
constexpr size_t kRows = kRotated / kLanes;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t LaneIndices __attribute__((vector_size(kLanes * sizeof(int32_t))));

// Values of lanes whose index has the bit become a - b, the others a + b.
// The sign of b is a multiplication by -1, so every step is one rounding.
template <size_t kBit>
void mix_within_rows(Lanes* rows) {
  LaneIndices partner;
  Lanes sign;
  for (size_t i = 0; i < kLanes; ++i) {
    partner[i] = static_cast<int32_t>(i ^ kBit);
    sign[i] = (i & kBit) != 0 ? -1.0F : 1.0F;
  }
  for (size_t row = 0; row < kRows; ++row) {
#ifdef __clang__
    Lanes swapped;
    for (size_t i = 0; i < kLanes; ++i) swapped[i] = rows[row][partner[i]];
#else
    const Lanes swapped = __builtin_shuffle(rows[row], partner);
#endif
    rows[row] = swapped + rows[row] * sign;
  }
}

template <size_t kStep>
void mix_rows(Lanes* rows) {
  for (size_t row = 0; row < kRows; ++row) {
    if ((row & kStep) != 0) continue;
    const Lanes a = rows[row];
    const Lanes b = rows[row + kStep];
    rows[row] = a + b;
    rows[row + kStep] = a - b;
  }
}

template <size_t kDistance>
void mix(Lanes* rows) {
  if constexpr (kDistance < kLanes) {
    mix_within_rows<kDistance>(rows);
  } else {
    mix_rows<kDistance / kLanes>(rows);
  }
}

// out = factor * H in, in the order of the natural (Sylvester) matrix. The factor is a power of
// two.
[[gnu::noinline]] void rotate(const std::byte* in, float factor, std::byte* out) {
  Lanes rows[kRows];
  std::memcpy(rows, in, sizeof(rows));
  for (size_t row = 0; row < kRows; ++row) rows[row] *= factor;
  mix<1>(rows);
  mix<2>(rows);
  mix<4>(rows);
  mix<8>(rows);
  mix<16>(rows);
  mix<32>(rows);
  mix<64>(rows);
  std::memcpy(out, rows, sizeof(rows));
}

// H * H = 128, split into these so that neither way overflows.
constexpr float kFactorThere = 1.0F / 8;
constexpr float kFactorBack = 1.0F / 16;
// 128 of them, times kFactorThere, are 2^127.
constexpr float kRotatedMax = 0x1p123F;

// ---- Clipping ----

constexpr int kClipCandidates = 8;  // 1, 15/16, ... 9/16 of the largest magnitude

constexpr size_t kClipBlock = Int4Format::kBlock;
constexpr size_t kClipBlocks = kTileCount / kClipBlock;

// errors[block] = the squared error of its values in units of the candidate scale, added up as a
// tree of fixed shape: the first half plus the second, five times. values[i * kClipBlocks + block],
// so that long loops run over all blocks.
[[gnu::noinline]] void square_errors(const float* __restrict values,
                                     const float* __restrict inverses, float* __restrict errors) {
  float sums[kTileCount];
  for (size_t i = 0; i < kTileCount; i += kClipBlocks) {
    std::memcpy(sums + i, inverses, kClipBlocks * sizeof(float));
  }
  for (size_t i = 0; i < kTileCount; ++i) {
    const float scaled = multiply(values[i], sums[i]);
    const float code = add(add(clamp(scaled, Int4Format::kLevels), 12582912.0F), -12582912.0F);
    const float error = add(scaled, -code);
    sums[i] = multiply(error, error);
  }
  for (size_t half = kTileCount / 2; half >= kClipBlocks; half /= 2) {
    for (size_t i = 0; i < half; ++i) sums[i] = add(sums[i], sums[i + half]);
  }
  std::memcpy(errors, sums, kClipBlocks * sizeof(float));
}

// Of each block the candidate whose error is least, the first of equals.
template <class Format>
void clip_scales(const std::byte* values, Scales<Format>& scales) {
  float by_element[kTileCount];
  for (size_t i = 0; i < kTileCount; ++i) {
    by_element[i % kClipBlock * kClipBlocks + i / kClipBlock] = Plain<float>::load(values, i);
  }
  uint16_t whole[kClipBlocks];
  float least[kClipBlocks];
  std::memcpy(whole, scales.bits, sizeof(whole));
  square_errors(by_element, scales.inverses, least);
  for (int k = 1; k < kClipCandidates; ++k) {
    const float share = 1.0F - static_cast<float>(k) / 16;
    uint16_t candidates[kClipBlocks];
    float inverses[kClipBlocks];
    float errors[kClipBlocks];
    for (size_t block = 0; block < kClipBlocks; ++block) {
      const float scale = multiply(bfloat16_to_float(whole[block]), share);
      candidates[block] = bound_scale(bfloat16_from_float(scale), Format::kScaleMax);
      inverses[block] = inverse_scale(candidates[block]);
    }
    square_errors(by_element, inverses, errors);
    for (size_t block = 0; block < kClipBlocks; ++block) {
      if (candidates[block] == 0 || whole[block] == kScaleInvalid) continue;
      const float ratio =
          divide(bfloat16_to_float(candidates[block]), bfloat16_to_float(whole[block]));
      const float error = multiply(errors[block], multiply(ratio, ratio));
      if (!(error < least[block])) continue;
      least[block] = error;
      scales.bits[block] = candidates[block];
      scales.inverses[block] = inverses[block];
    }
  }
  scales.clamp = true;
}

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
