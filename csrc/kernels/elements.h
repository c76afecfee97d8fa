// How an element lies in memory, and what an operator does to two of them.
//
// Included by the sources that are compiled once per instruction set: everything here has internal
// linkage, for the reason given in half.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/half.h"

// The iterations are independent even where the target is exactly one of the sources, which the
// compiler's own overlap check would send to the scalar loop.
#ifdef __clang__
#define PCCL_INDEPENDENT_ITERATIONS _Pragma("clang loop vectorize(assume_safety)")
#else
#define PCCL_INDEPENDENT_ITERATIONS _Pragma("GCC ivdep")
#endif

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

// Which of two NaNs an addition returns, and the sign of a new one, depend on the instruction and
// on the order the compiler gives its operands; so every NaN is stored as one fixed quiet NaN.
[[maybe_unused]] float settle(float value) { return value != value ? __builtin_nanf("") : value; }
[[maybe_unused]] double settle(double value) { return value != value ? __builtin_nan("") : value; }
template <class T>
T settle(T value) {
  return value;
}

// ---- Formats: how an element lies in memory and the type it is computed in ----

// Loads and stores go through memcpy: no pointer is assumed to be aligned.
template <class T>
struct Plain {
  using Value = T;
  static constexpr size_t kBytes = sizeof(T);
  static T load(const std::byte* data, size_t index) {
    T value;
    std::memcpy(&value, data + index * sizeof(T), sizeof(T));
    return value;
  }
  static void store(std::byte* data, size_t index, T value) {
    value = settle(value);
    std::memcpy(data + index * sizeof(T), &value, sizeof(T));
  }
};

struct BFloat16 {
  using Value = float;
  static constexpr size_t kBytes = sizeof(uint16_t);
  static float load(const std::byte* data, size_t index) {
    return bfloat16_to_float(Plain<uint16_t>::load(data, index));
  }
  static void store(std::byte* data, size_t index, float value) {
    Plain<uint16_t>::store(data, index, bfloat16_from_float(value));
  }
};

template <class T>
struct ComplexValue {
  T real;
  T imaginary;
};

template <class T>
struct Complex {
  using Value = ComplexValue<T>;
  static constexpr size_t kBytes = 2 * sizeof(T);
  static Value load(const std::byte* data, size_t index) {
    return {Plain<T>::load(data, 2 * index), Plain<T>::load(data, 2 * index + 1)};
  }
  static void store(std::byte* data, size_t index, Value value) {
    Plain<T>::store(data, 2 * index, value.real);
    Plain<T>::store(data, 2 * index + 1, value.imaginary);
  }
};

// ---- Operators ----

struct Sum {
  static float apply(float a, float b) { return a + b; }
  static double apply(double a, double b) { return a + b; }
  // Integers come as unsigned types: they wrap. Narrow ones widen to int, which cannot overflow.
  template <class T>
  static T apply(T a, T b) {
    return static_cast<T>(a + b);
  }
};

struct Product {
  static float apply(float a, float b) { return a * b; }
  static double apply(double a, double b) { return a * b; }
  // 65535 * 65535 overflows an int, so narrow types multiply as unsigned.
  static uint8_t apply(uint8_t a, uint8_t b) { return static_cast<uint8_t>(a * b); }
  static uint16_t apply(uint16_t a, uint16_t b) {
    return static_cast<uint16_t>(static_cast<uint32_t>(a) * b);
  }
  static uint32_t apply(uint32_t a, uint32_t b) { return a * b; }
  static uint64_t apply(uint64_t a, uint64_t b) { return a * b; }
  // Settling the partial products changes no result, but it stands between the multiplications and
  // the additions: without it g++ 12 fuses them (vfmaddsub) in spite of -ffp-contract=off.
  template <class T>
  static ComplexValue<T> apply(ComplexValue<T> a, ComplexValue<T> b) {
    return {settle(a.real * b.real) - settle(a.imaginary * b.imaginary),
            settle(a.real * b.imaginary) + settle(a.imaginary * b.real)};
  }
};

// The earlier source wins a tie (+0 and -0). `b != b` (NaN) and not a second `<`: either NaN stays.
struct Min {
  template <class T>
  static T apply(T a, T b) {
    return b < a ? b : (b != b ? b : a);
  }
};

struct Max {
  template <class T>
  static T apply(T a, T b) {
    return b > a ? b : (b != b ? b : a);
  }
};

struct And {
  static uint8_t apply(uint8_t a, uint8_t b) { return a & b; }
};

struct Or {
  static uint8_t apply(uint8_t a, uint8_t b) { return a | b; }
};

struct Xor {
  static uint8_t apply(uint8_t a, uint8_t b) { return a ^ b; }
};

// Any byte but 0 is true.
template <class Op>
struct Logical {
  static uint8_t apply(uint8_t a, uint8_t b) {
    return Op::apply(static_cast<uint8_t>(a != 0), static_cast<uint8_t>(b != 0));
  }
};

}  // namespace
}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
