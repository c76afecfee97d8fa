#include "kernels/finite.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace pccl::kernels {
namespace {

// Of so many elements one loop without a branch says whether any is meant.
constexpr size_t kBlock = 4096;

// NaN and infinity have all bits of the exponent set.
template <class Bits>
std::optional<size_t> find(const std::byte* data, size_t count, Bits exponent) {
  const auto load = [data](size_t index) {
    Bits bits;
    std::memcpy(&bits, data + index * sizeof(Bits), sizeof(Bits));
    return bits;
  };
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t end = std::min(count, begin + kBlock);
    Bits found = 0;
    for (size_t i = begin; i < end; ++i)
      found |= static_cast<Bits>((load(i) & exponent) == exponent ? 1 : 0);
    if (found == 0) continue;
    for (size_t i = begin; i < end; ++i) {
      if ((load(i) & exponent) == exponent) return i;
    }
  }
  return std::nullopt;
}

}  // namespace

std::optional<size_t> find_nonfinite(const void* data, size_t count, DataType dtype) {
  const auto* bytes = static_cast<const std::byte*>(data);
  const auto half_of = [](std::optional<size_t> index) {
    return index ? std::optional<size_t>(*index / 2) : std::nullopt;
  };
  switch (dtype) {
    case DataType::Float64:
      return find<uint64_t>(bytes, count, 0x7FF0000000000000U);
    case DataType::Float32:
      return find<uint32_t>(bytes, count, 0x7F800000U);
    case DataType::Float16:
      return find<uint16_t>(bytes, count, 0x7C00U);
    case DataType::BFloat16:
      return find<uint16_t>(bytes, count, 0x7F80U);
    case DataType::Complex64:
      return half_of(find<uint32_t>(bytes, 2 * count, 0x7F800000U));
    case DataType::Complex128:
      return half_of(find<uint64_t>(bytes, 2 * count, 0x7FF0000000000000U));
    default:
      return std::nullopt;
  }
}

}  // namespace pccl::kernels
