// Element types and reduction operators: the words that every floor shares.
//
// The numeric values travel on the wire (docs/wire_format.md); never renumber.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace pccl {

enum class DataType : uint8_t {
  Float64 = 0,
  Float32 = 1,
  Float16 = 2,
  BFloat16 = 3,
  Float8 = 4,  // any 8-bit float: moved as bytes, never reduced
  Int8 = 5,
  Int16 = 6,
  Int32 = 7,
  Int64 = 8,
  UInt8 = 9,
  UInt16 = 10,
  UInt32 = 11,
  UInt64 = 12,
  Bool = 13,
  Complex64 = 14,
  Complex128 = 15,
};
inline constexpr int kDataTypeCount = 16;

enum class ReduceOp : uint8_t {
  Sum = 0,
  Avg = 1,  // sum, then one division by the number of contributions
  Min = 2,
  Max = 3,
  Product = 4,
  Band = 5,
  Bor = 6,
  Bxor = 7,
  PremulSum = 8,  // each rank's contribution is multiplied by its own factor first
  // Sum of weight * contribution over sum of weights; every rank brings its own weight.
  WeightedAvg = 9,
};
inline constexpr int kReduceOpCount = 10;

// Bytes of one element.
constexpr size_t element_bytes(DataType dtype) {
  switch (dtype) {
    case DataType::Float8:
    case DataType::Int8:
    case DataType::UInt8:
    case DataType::Bool:
      return 1;
    case DataType::Float16:
    case DataType::BFloat16:
    case DataType::Int16:
    case DataType::UInt16:
      return 2;
    case DataType::Float32:
    case DataType::Int32:
    case DataType::UInt32:
      return 4;
    case DataType::Float64:
    case DataType::Int64:
    case DataType::UInt64:
    case DataType::Complex64:
      return 8;
    case DataType::Complex128:
      return 16;
  }
  return 1;
}

std::string_view data_type_name(DataType dtype);  // "float32"
std::string_view reduce_op_name(ReduceOp op);     // "sum"

// Whether `op` is defined for `dtype`: no bitwise operators on floats, no order on complex numbers,
// no arithmetic on Float8, no average of booleans.
bool is_reducible(DataType dtype, ReduceOp op);

}  // namespace pccl
