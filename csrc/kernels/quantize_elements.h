// The arithmetic of the codecs, one element or one scale at a time: the same on CPU and GPU.
//
// No branch, no library function, every rounding to nearest even and by itself, so that loops over
// it vectorise and every target gives the same bytes. No subnormal number reaches a result: a block
// whose scale is below 2^-100 is a block of zeros, so flush-to-zero modes do not matter.
//
// `static`, for the reason given in half.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/device.h"
#include "kernels/half.h"

namespace pccl::kernels {

// ---- The formats ----

inline constexpr size_t kTileCount = 256;  // elements; a multiple of every block

// kBlock elements share a scale, and are integers or 8-bit floats of at most kLevels in magnitude.
// kScaleMax: bits of the largest bfloat16 scale with which every code is a finite float, forged
// ones included. kCodeBits: of one element on the wire.
struct Int8Format {
  static constexpr size_t kBlock = 256;
  static constexpr float kLevels = 127;
  static constexpr uint16_t kScaleMax = 0x7BFF;  // 1.99 * 2^120; -128 * scale is above -2^128
  static constexpr int kCodeBits = 8;
};
struct Int6Format {
  static constexpr size_t kBlock = 64;
  static constexpr float kLevels = 31;
  static constexpr uint16_t kScaleMax = 0x7CFF;  // 1.99 * 2^122
  static constexpr int kCodeBits = 6;
};
struct Int4Format {
  static constexpr size_t kBlock = 32;
  static constexpr float kLevels = 7;
  static constexpr uint16_t kScaleMax = 0x7DFF;  // 1.99 * 2^124
  static constexpr int kCodeBits = 4;
};
// As Int4; decoding adds 128 values of at most 8 * scale / 16.
struct Int4HadamardFormat : Int4Format {
  static constexpr uint16_t kScaleMax = 0x7C7F;  // 1.99 * 2^121
};
struct E4M3Format {
  static constexpr size_t kBlock = 128;
  static constexpr float kLevels = 448;
  static constexpr uint16_t kScaleMax = 0x7B12;  // 2^128 / 448, rounded down
  static constexpr int kCodeBits = 8;
  static constexpr int kMantissaBits = 3;
  static constexpr int kBias = 7;
  static constexpr uint8_t kMagnitudeMax = 0x7E;  // above it is NaN
};
struct E5M2Format {
  static constexpr size_t kBlock = 128;
  static constexpr float kLevels = 57344;
  static constexpr uint16_t kScaleMax = 0x7792;  // 2^128 / 57344, rounded down
  static constexpr int kCodeBits = 8;
  static constexpr int kMantissaBits = 2;
  static constexpr int kBias = 15;
  static constexpr uint8_t kMagnitudeMax = 0x7B;  // above it are infinity and NaN
};

// ---- Scales: bfloat16, not negative ----

inline constexpr uint32_t kFloatInfinity = 0x7F800000u;
inline constexpr uint16_t kScaleMin = 0x0D80;      // 2^-100
inline constexpr uint16_t kScaleInvalid = 0xFFFF;  // of a block with a value that is not finite

PCCL_HOST_DEVICE static inline uint16_t bound_scale(uint16_t scale, uint16_t scale_max) {
  const uint16_t bounded = scale > scale_max ? scale_max : scale;
  return bounded < kScaleMin ? uint16_t{0} : bounded;
}

// `absmax`: bits of the block's largest magnitude, which are those of the largest integer.
template <class Format>
PCCL_HOST_DEVICE static inline uint16_t scale_of(uint32_t absmax) {
  if (absmax >= kFloatInfinity) return kScaleInvalid;
  const float scale = multiply(float_of(absmax), 1 / Format::kLevels);
  return bound_scale(bfloat16_from_float(scale), Format::kScaleMax);
}

PCCL_HOST_DEVICE static inline float inverse_scale(uint16_t scale) {
  return scale == 0 || scale == kScaleInvalid ? 0.0F : divide(1.0F, bfloat16_to_float(scale));
}

template <class Format>
PCCL_HOST_DEVICE static inline bool is_scale(uint16_t scale) {
  return scale == 0 || (scale >= kScaleMin && scale <= Format::kScaleMax);
}

// ---- Integers ----

// A comparison of magnitudes as integers: those of floats leave the loop scalar.
PCCL_HOST_DEVICE static inline float clamp(float value, float limit) {
  const uint32_t bits = bits_of(value);
  const auto magnitude = static_cast<int32_t>(bits & 0x7FFFFFFFu);
  const auto most = static_cast<int32_t>(bits_of(limit));
  const int32_t clamped = magnitude < most ? magnitude : most;
  return float_of(static_cast<uint32_t>(clamped) | (bits & 0x80000000u));
}

// To nearest even. Requires: |value| < 2^22. Beyond 2^23 a float's last bit counts one, so adding
// 1.5 * 2^23 does the rounding.
PCCL_HOST_DEVICE static inline int32_t round_to_integer(float value) {
  return static_cast<int32_t>(bits_of(add(value, 12582912.0F)) - 0x4B400000u);
}

PCCL_HOST_DEVICE static inline float dequantize(int32_t code, float scale) {
  return multiply(static_cast<float>(code), scale);
}

// ---- Stochastic rounding ----

// Two words for each 2^32 elements of one operation, of one seed.
struct RandomKey {
  uint32_t first;
  uint32_t second;
};

// Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
PCCL_HOST_DEVICE static inline uint64_t mix(uint64_t value) {
  value += 0x9E3779B97F4A7C15u;
  value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
  value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
  return value ^ (value >> 31);
}

PCCL_HOST_DEVICE static inline RandomKey random_key(uint64_t stream, uint64_t element) {
  const uint64_t key = mix(stream ^ mix(element >> 32));
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

// An odd multiple of 2^-17 in (-1/2, 1/2), equally likely: what is added before rounding to
// nearest. So an integer below 128 stays itself, and no tie occurs there.
// The mixer is Chris Wellons' lowbias32 with a second key in its middle.
PCCL_HOST_DEVICE static inline float random_offset(RandomKey key, uint32_t element) {
  uint32_t bits = element + key.first;
  bits = (bits ^ (bits >> 16)) * 0x7FEB352Du;
  bits ^= key.second;
  bits = (bits ^ (bits >> 15)) * 0x846CA68Bu;
  bits ^= bits >> 16;
  const auto odd = static_cast<float>(static_cast<int32_t>((bits >> 15) | 1u));
  return add(multiply(odd, 1.0F / 131072), -0.5F);
}

PCCL_HOST_DEVICE static inline int32_t quantize_randomly(float value, float inverse, float levels,
                                                         float offset) {
  return round_to_integer(add(clamp(multiply(value, inverse), levels), offset));
}

// ---- 8-bit floats ----

template <class Format>
PCCL_HOST_DEVICE static inline uint8_t to_float8(float value) {
  constexpr int kShift = 23 - Format::kMantissaBits;
  constexpr uint32_t kBiasStep = static_cast<uint32_t>(127 - Format::kBias) << 23;
  // Of 2^kHalfExponent the last bit of a float weighs as much as that of a subnormal float8, so
  // the addition does the rounding.
  constexpr uint32_t kHalf =
      static_cast<uint32_t>(127 + 1 - Format::kBias - Format::kMantissaBits + 23) << 23;
  const uint32_t bits = bits_of(value);
  const uint32_t absolute = bits & 0x7FFFFFFFu;
  const uint32_t normal =
      (absolute - kBiasStep + (1u << (kShift - 1)) - 1 + ((absolute >> kShift) & 1u)) >> kShift;
  const uint32_t subnormal = bits_of(add(float_of(absolute), float_of(kHalf))) - kHalf;
  const auto magnitude = static_cast<int32_t>(absolute);
  const uint32_t code =
      blend(magnitude < static_cast<int32_t>(kBiasStep + (1u << 23)), subnormal, normal);
  return static_cast<uint8_t>(code | ((bits >> 24) & 0x80u));
}

template <class Format>
PCCL_HOST_DEVICE static inline float from_float8(uint8_t code) {
  constexpr int kShift = 23 - Format::kMantissaBits;
  constexpr uint32_t kBiasStep = static_cast<uint32_t>(127 - Format::kBias) << 23;
  constexpr uint32_t kLeadingOne = kBiasStep + (1u << 23);
  const int32_t magnitude = code & 0x7F;
  const uint32_t shifted = static_cast<uint32_t>(magnitude) << kShift;
  // As in float16_to_float: the mantissa behind a leading one, less that one.
  const uint32_t subnormal = bits_of(add(float_of(shifted + kLeadingOne), -float_of(kLeadingOne)));
  const uint32_t absolute =
      blend(magnitude < (1 << Format::kMantissaBits), subnormal, shifted + kBiasStep);
  return float_of(absolute | (static_cast<uint32_t>(code & 0x80u) << 24));
}

// ---- 16-bit floats: what is finite stays finite ----

inline constexpr float kBFloat16Max = 0x1.FEp127F;
inline constexpr float kFloat16Max = 65504;

}  // namespace pccl::kernels
