// Hadamard rotation of 128 floats, and the scale of least squared error: options of int4.
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

constexpr size_t kRotated = 128;
constexpr size_t kLanes = 16;
constexpr size_t kRows = kRotated / kLanes;

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t LaneIndices __attribute__((vector_size(kLanes * sizeof(int32_t))));

// values[i] of lanes whose index has the bit become a - b, the others a + b.
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

// out = factor * H in, in the order of the natural (Sylvester) matrix. The factor is a power of
// two.
[[gnu::noinline]] void rotate(const std::byte* in, float factor, std::byte* out) {
  Lanes rows[kRows];
  std::memcpy(rows, in, sizeof(rows));
  for (size_t row = 0; row < kRows; ++row) rows[row] *= factor;
  mix_within_rows<1>(rows);
  mix_within_rows<2>(rows);
  mix_within_rows<4>(rows);
  mix_within_rows<8>(rows);
  mix_rows<1>(rows);
  mix_rows<2>(rows);
  mix_rows<4>(rows);
  std::memcpy(out, rows, sizeof(rows));
}

// H * H = 128, split into these so that neither way overflows.
constexpr float kFactorThere = 1.0F / 8;
constexpr float kFactorBack = 1.0F / 16;
// 128 of them, times kFactorThere, are 2^127.
constexpr float kRotatedMax = 0x1p123F;

// ---- Clipping ----

constexpr int kClipCandidates = 8;  // 1, 15/16, ... 9/16 of the largest magnitude

// The squared error of 32 values in units of their own scale, added up as a tree of fixed shape.
[[gnu::noinline]] float squared_error(const std::byte* values, float inverse) {
  constexpr size_t kHalf = Int4Format::kBlock / 2;
  float sums[kHalf];
  const auto square = [values, inverse](size_t i) {
    const float scaled = Plain<float>::load(values, i) * inverse;
    const float code = (clamp(scaled, Int4Format::kLevels) + 12582912.0F) - 12582912.0F;
    const float error = scaled - code;
    return error * error;
  };
  for (size_t i = 0; i < kHalf; ++i) sums[i] = square(i) + square(i + kHalf);
  for (size_t step = kHalf / 2; step > 0; step /= 2) {
    for (size_t i = 0; i < step; ++i) sums[i] = sums[i] + sums[i + step];
  }
  return sums[0];
}

// The scale among the candidates whose error is least, the first of equals.
uint16_t clipped_scale(const std::byte* values, uint16_t scale) {
  if (scale == 0 || scale == kScaleInvalid) return scale;
  const float whole = bfloat16_to_float(scale);
  uint16_t best = scale;
  float least = squared_error(values, inverse_scale(scale));
  for (int k = 1; k < kClipCandidates; ++k) {
    const float share = 1.0F - static_cast<float>(k) / 16;
    const uint16_t candidate =
        bound_scale(bfloat16_from_float(multiply(whole, share)), Int4Format::kScaleMax);
    if (candidate == 0) break;
    const float ratio = divide(bfloat16_to_float(candidate), whole);
    const float error = squared_error(values, inverse_scale(candidate)) * (ratio * ratio);
    if (error < least) {
      least = error;
      best = candidate;
    }
  }
  return best;
}

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
