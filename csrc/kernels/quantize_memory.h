// Tiles of floats out of and into memory of any float type.
//
// Included by quantize_target.cpp, once per instruction set; internal linkage, for the reason given
// in half.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "base/types.h"
#include "kernels/elements.h"
#include "kernels/half_blocks.h"
#include "kernels/quantize_elements.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

constexpr size_t kTileBytes = kTileCount * sizeof(float);

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

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
