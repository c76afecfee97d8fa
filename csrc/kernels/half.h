// float16 and bfloat16 to and from float, bit by bit.
//
// Plain C++ without branches, so that loops over it vectorise and every target (and a CUDA build)
// gives the same bytes: round to nearest even, infinities and subnormals exact. From float, every
// NaN becomes the one quiet NaN 0x7fc0 or 0x7e00; to float, a NaN keeps its bits.
//
// The functions are `static`: an inline function with external linkage would be merged across the
// objects compiled for different instruction sets, and an old machine could meet the wrong copy.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/device.h"

namespace pccl::kernels {

PCCL_HOST_DEVICE static inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

PCCL_HOST_DEVICE static inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// `yes` where the condition holds, else `no`. Masks, not `?:`: the compiler moves an addition that
// only one arm needs into a branch, because additions may trap, and then the loop stays scalar.
PCCL_HOST_DEVICE static inline uint32_t blend(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

PCCL_HOST_DEVICE static inline float bfloat16_to_float(uint16_t half) {
  return float_of(static_cast<uint32_t>(half) << 16);
}

PCCL_HOST_DEVICE static inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  // Half a unit of the last kept bit, less one where that bit is even: ties go to even. A carry
  // into the exponent is right, up to infinity.
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>(blend(value != value, 0x7fc00000u, rounded) >> 16);
}

PCCL_HOST_DEVICE static inline float float16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const int32_t magnitude = half & 0x7fff;
  const uint32_t shifted = static_cast<uint32_t>(magnitude) << 13;
  // The exponent bias is 15 here and 127 there; infinities and NaNs have 31 here and 255 there.
  const uint32_t normal = shifted + blend(magnitude >= 0x7c00, 224u << 23, 112u << 23);
  // A subnormal is mantissa * 2^-24: put the mantissa behind a leading one of weight 2^-14, then
  // subtract that one. No subnormal float appears, so flush-to-zero modes do not matter.
  const uint32_t leading_one = 113u << 23;
  const uint32_t subnormal = bits_of(float_of(shifted + leading_one) - float_of(leading_one));
  return float_of(blend(magnitude < 0x0400, subnormal, normal) | sign);
}

PCCL_HOST_DEVICE static inline uint16_t float16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t absolute = bits & 0x7fffffffu;
  const int32_t magnitude = static_cast<int32_t>(absolute);
  // All below is the result times 2^13. Ties go to even as in bfloat16_from_float; 65520 and above
  // carry into infinity.
  const uint32_t normal = absolute - (112u << 23) + 0x0fffu + ((absolute >> 13) & 1u);
  // Below 2^-14: one half has a unit in the last place of 2^-24, a subnormal float16's weight, so
  // the addition does the rounding.
  const uint32_t one_half = 126u << 23;
  const uint32_t subnormal = (bits_of(float_of(absolute) + float_of(one_half)) - one_half) << 13;
  const uint32_t finite = blend(magnitude < (113 << 23), subnormal, normal);
  const uint32_t number = blend(magnitude >= (143 << 23), 0x7c00u << 13, finite);
  const uint32_t sign = blend(value != value, 0, (bits >> 16) & 0x8000u);
  return static_cast<uint16_t>((blend(value != value, 0x7e00u << 13, number) >> 13) | sign);
}

}  // namespace pccl::kernels
