#include "kernels/copy.h"

#include <cstdint>
#include <cstring>

#ifdef PCCL_KERNELS_X86
#include <emmintrin.h>
#endif

namespace pccl::kernels {

#ifdef PCCL_KERNELS_X86

void* copy_past_cache(void* target, const void* source, size_t bytes) {
  constexpr size_t kLine = 64;
  auto* to = static_cast<std::byte*>(target);
  const auto* from = static_cast<const std::byte*>(source);
  // Only whole lines can be written without being read.
  const size_t head = (kLine - reinterpret_cast<uintptr_t>(to) % kLine) % kLine;
  if (bytes < head + kLine) return std::memcpy(to, from, bytes);
  std::memcpy(to, from, head);
  size_t done = head;
  for (; done + kLine <= bytes; done += kLine) {
    const auto* line = reinterpret_cast<const __m128i*>(from + done);
    auto* out = reinterpret_cast<__m128i*>(to + done);
    const __m128i a = _mm_loadu_si128(line);
    const __m128i b = _mm_loadu_si128(line + 1);
    const __m128i c = _mm_loadu_si128(line + 2);
    const __m128i d = _mm_loadu_si128(line + 3);
    _mm_stream_si128(out, a);
    _mm_stream_si128(out + 1, b);
    _mm_stream_si128(out + 2, c);
    _mm_stream_si128(out + 3, d);
  }
  _mm_sfence();
  std::memcpy(to + done, from + done, bytes - done);
  return target;
}

#else

void* copy_past_cache(void* target, const void* source, size_t bytes) {
  return std::memcpy(target, source, bytes);
}

#endif

}  // namespace pccl::kernels
