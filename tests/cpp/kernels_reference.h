// What reduce() and half.h must give, computed slowly: one element at a time, halves by value.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#include "base/types.h"

namespace pccl::reference {

using Bytes = std::vector<std::byte>;

template <class To, class From>
To as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- Reference for the half types: by value, where half.h works on bits ----

struct HalfShape {
  int exponent_bits;
  int mantissa_bits;
  int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  uint32_t exponent_all_ones() const { return (1u << exponent_bits) - 1; }
};
inline constexpr HalfShape kFloat16Shape{5, 10};
inline constexpr HalfShape kBFloat16Shape{8, 7};

inline double reference_decode(HalfShape shape, uint16_t half) {
  const uint32_t mantissa = half & ((1u << shape.mantissa_bits) - 1);
  const uint32_t exponent = (half >> shape.mantissa_bits) & shape.exponent_all_ones();
  const double sign = (half & 0x8000) != 0 ? -1.0 : 1.0;
  if (exponent == shape.exponent_all_ones()) {
    return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  }
  const double leading = exponent == 0 ? 0.0 : std::ldexp(1.0, shape.mantissa_bits);
  const int power = std::max<int>(static_cast<int>(exponent), 1) - shape.bias();
  return sign * std::ldexp(leading + mantissa, power - shape.mantissa_bits);
}

inline uint16_t reference_encode(HalfShape shape, double value) {
  const uint32_t infinity = shape.exponent_all_ones() << shape.mantissa_bits;
  if (std::isnan(value)) {
    return static_cast<uint16_t>(infinity | (1u << (shape.mantissa_bits - 1)));
  }
  const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
  const double magnitude = std::fabs(value);
  if (magnitude == 0) return static_cast<uint16_t>(sign);
  if (std::isinf(magnitude)) return static_cast<uint16_t>(sign | infinity);
  const int power = std::max(std::ilogb(magnitude), 1 - shape.bias());
  // Units of the last place above the power of two; nearbyint rounds ties to even.
  const double units = std::nearbyint(std::ldexp(magnitude, shape.mantissa_bits - power));
  // A subnormal has no leading one to take off and exponent field 0, which comes to the same
  // number: fields are consecutive.
  const int64_t steps = static_cast<int64_t>(power + shape.bias() - 1) << shape.mantissa_bits;
  const int64_t half = std::min<int64_t>(steps + static_cast<int64_t>(units), infinity);
  return static_cast<uint16_t>(sign | static_cast<uint32_t>(half));
}

// ---- Reference for reduce(): one element at a time, from left to right ----

template <class T>
T settled(T value) {
  return std::isnan(value) ? std::numeric_limits<T>::quiet_NaN() : value;
}

// Codec of a type that lies in memory as it is computed.
template <class T>
struct Same {
  using Value = T;
  static constexpr size_t kBytes = sizeof(T);
  static T load(const std::byte* data) {
    T value;
    std::memcpy(&value, data, sizeof(T));
    return value;
  }
  static void store(std::byte* data, T value) {
    if constexpr (std::is_floating_point_v<T>) value = settled(value);
    std::memcpy(data, &value, sizeof(T));
  }
};

template <class T>
struct Same<std::complex<T>> {
  using Value = std::complex<T>;
  static constexpr size_t kBytes = 2 * sizeof(T);
  static Value load(const std::byte* data) {
    return {Same<T>::load(data), Same<T>::load(data + sizeof(T))};
  }
  static void store(std::byte* data, Value value) {
    Same<T>::store(data, value.real());
    Same<T>::store(data + sizeof(T), value.imag());
  }
};

template <>
struct Same<bool> {
  using Value = bool;
  static constexpr size_t kBytes = 1;
  static bool load(const std::byte* data) { return *data != std::byte{0}; }
  static void store(std::byte* data, bool value) { *data = std::byte{value}; }
};

template <bool is_float16>
struct Half {
  using Value = float;
  static constexpr size_t kBytes = 2;
  static constexpr HalfShape kShape = is_float16 ? kFloat16Shape : kBFloat16Shape;
  static float load(const std::byte* data) {
    return static_cast<float>(reference_decode(kShape, Same<uint16_t>::load(data)));
  }
  static void store(std::byte* data, float value) {
    Same<uint16_t>::store(data, reference_encode(kShape, value));
  }
};

template <class T>
T combine(ReduceOp op, T a, T b) {
  if constexpr (std::is_floating_point_v<T>) {
    if (std::isnan(a) || std::isnan(b)) return std::numeric_limits<T>::quiet_NaN();
  }
  // Integers: in 128 bits nothing overflows, and the narrowing at the end wraps.
  using Wide = std::conditional_t<std::is_integral_v<T>, unsigned __int128, T>;
  switch (op) {
    case ReduceOp::Min:
      return b < a ? b : a;
    case ReduceOp::Max:
      return a < b ? b : a;
    case ReduceOp::Product:
      return static_cast<T>(static_cast<Wide>(a) * static_cast<Wide>(b));
    case ReduceOp::Sum:
    case ReduceOp::Avg:
    case ReduceOp::PremulSum:
    case ReduceOp::WeightedAvg:
      return static_cast<T>(static_cast<Wide>(a) + static_cast<Wide>(b));
    default:
      break;
  }
  if constexpr (std::is_integral_v<T>) {
    if (op == ReduceOp::Band) return static_cast<T>(a & b);
    if (op == ReduceOp::Bor) return static_cast<T>(a | b);
    if (op == ReduceOp::Bxor) return static_cast<T>(a ^ b);
  }
  FAIL("no reference for this operator");
  return a;
}

inline bool combine(ReduceOp op, bool a, bool b) {
  if (op == ReduceOp::Product || op == ReduceOp::Min || op == ReduceOp::Band) return a && b;
  if (op == ReduceOp::Bxor) return a != b;
  return a || b;
}

template <class T>
std::complex<T> combine(ReduceOp op, std::complex<T> a, std::complex<T> b) {
  if (op != ReduceOp::Product) return {a.real() + b.real(), a.imag() + b.imag()};
  // Volatile: no compiler may fuse the multiplications with the additions.
  const volatile T real_real = a.real() * b.real(), imag_imag = a.imag() * b.imag();
  const volatile T real_imag = a.real() * b.imag(), imag_real = a.imag() * b.real();
  return {real_real - imag_imag, real_imag + imag_real};
}

template <class T>
T divided(T value, int64_t divisor) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(static_cast<__int128>(value) / divisor);
  } else {
    return value / static_cast<T>(divisor);
  }
}
template <class T>
std::complex<T> divided(std::complex<T> value, int64_t divisor) {
  return {divided(value.real(), divisor), divided(value.imag(), divisor)};
}

template <class Codec>
Bytes reference_reduce_as(const std::vector<Bytes>& sources, size_t count, ReduceOp op,
                          int64_t divisor) {
  if (sources.size() == 1 && divisor == 1 && !std::is_same_v<Codec, Same<bool>>) return sources[0];
  Bytes out(count * Codec::kBytes);
  for (size_t i = 0; i < count; ++i) {
    const size_t offset = i * Codec::kBytes;
    typename Codec::Value value = Codec::load(sources[0].data() + offset);
    for (size_t k = 1; k < sources.size(); ++k) {
      value = combine(op, value, Codec::load(sources[k].data() + offset));
    }
    if (divisor > 1) value = divided(value, divisor);
    Codec::store(out.data() + offset, value);
  }
  return out;
}

// Calls visit(Codec{}) with the codec of `dtype`.
template <class Visit>
auto with_codec(DataType dtype, Visit visit) {
  switch (dtype) {
    case DataType::Float64:
      return visit(Same<double>{});
    case DataType::Float32:
      return visit(Same<float>{});
    case DataType::Float16:
      return visit(Half<true>{});
    case DataType::BFloat16:
      return visit(Half<false>{});
    case DataType::Int8:
      return visit(Same<int8_t>{});
    case DataType::Int16:
      return visit(Same<int16_t>{});
    case DataType::Int32:
      return visit(Same<int32_t>{});
    case DataType::Int64:
      return visit(Same<int64_t>{});
    case DataType::UInt16:
      return visit(Same<uint16_t>{});
    case DataType::UInt32:
      return visit(Same<uint32_t>{});
    case DataType::UInt64:
      return visit(Same<uint64_t>{});
    case DataType::Bool:
      return visit(Same<bool>{});
    case DataType::Complex64:
      return visit(Same<std::complex<float>>{});
    case DataType::Complex128:
      return visit(Same<std::complex<double>>{});
    default:
      return visit(Same<uint8_t>{});
  }
}

inline Bytes reference_reduce(const std::vector<Bytes>& sources, size_t count, DataType dtype,
                              ReduceOp op, int64_t divisor) {
  return with_codec(dtype, [&](auto codec) {
    return reference_reduce_as<decltype(codec)>(sources, count, op, divisor);
  });
}

}  // namespace pccl::reference
