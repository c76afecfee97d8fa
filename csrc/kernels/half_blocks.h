// Float16 to and from float, a block at a time: too slow to do inside another loop.
//
// Included by the sources that are compiled once per instruction set; internal linkage, for the
// reason given in half.h.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __F16C__
#include <immintrin.h>
#endif

#include "kernels/elements.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

// The instructions where they exist: five times as fast, same bytes. Return how many are done.
#ifdef __F16C__
size_t widen_by_instruction(std::byte* out, const std::byte* in, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(in + 2 * i));
    const __m256i floats = _mm256_castps_si256(_mm256_cvtph_ps(halves));
    _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(out + 4 * i), floats);
  }
  return i;
}
size_t narrow_by_instruction(std::byte* out, const std::byte* in, size_t count) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i floats = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(in + 4 * i));
    const __m128i halves = _mm256_cvtps_ph(_mm256_castsi256_ps(floats), _MM_FROUND_TO_NEAREST_INT);
    _mm_storeu_si128(reinterpret_cast<__m128i_u*>(out + 2 * i), halves);
  }
  return i;
}
#else
size_t widen_by_instruction(std::byte*, const std::byte*, size_t) { return 0; }
size_t narrow_by_instruction(std::byte*, const std::byte*, size_t) { return 0; }
#endif

[[maybe_unused, gnu::noinline]] void widen(std::byte* out, const std::byte* in, size_t count) {
  const size_t done = widen_by_instruction(out, in, count);
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = done; i < count; ++i) {
    Plain<uint32_t>::store(out, i, bits_of(float16_to_float(Plain<uint16_t>::load(in, i))));
  }
}

// Requires: NaNs are settled, which the instruction does not do.
[[maybe_unused, gnu::noinline]] void narrow(std::byte* out, const std::byte* in, size_t count) {
  const size_t done = narrow_by_instruction(out, in, count);
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = done; i < count; ++i) {
    Plain<uint16_t>::store(out, i, float16_from_float(Plain<float>::load(in, i)));
  }
}

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
