#include "base/types.h"

namespace pccl {

std::string_view data_type_name(DataType dtype) {
  switch (dtype) {
    case DataType::Float64:
      return "float64";
    case DataType::Float32:
      return "float32";
    case DataType::Float16:
      return "float16";
    case DataType::BFloat16:
      return "bfloat16";
    case DataType::Float8:
      return "float8";
    case DataType::Int8:
      return "int8";
    case DataType::Int16:
      return "int16";
    case DataType::Int32:
      return "int32";
    case DataType::Int64:
      return "int64";
    case DataType::UInt8:
      return "uint8";
    case DataType::UInt16:
      return "uint16";
    case DataType::UInt32:
      return "uint32";
    case DataType::UInt64:
      return "uint64";
    case DataType::Bool:
      return "bool";
    case DataType::Complex64:
      return "complex64";
    case DataType::Complex128:
      return "complex128";
  }
  return "unknown dtype";
}

std::string_view reduce_op_name(ReduceOp op) {
  switch (op) {
    case ReduceOp::Sum:
      return "sum";
    case ReduceOp::Avg:
      return "avg";
    case ReduceOp::Min:
      return "min";
    case ReduceOp::Max:
      return "max";
    case ReduceOp::Product:
      return "product";
    case ReduceOp::Band:
      return "band";
    case ReduceOp::Bor:
      return "bor";
    case ReduceOp::Bxor:
      return "bxor";
    case ReduceOp::PremulSum:
      return "premul_sum";
    case ReduceOp::WeightedAvg:
      return "weighted_avg";
  }
  return "unknown op";
}

bool is_reducible(DataType dtype, ReduceOp op) {
  const bool is_complex = dtype == DataType::Complex64 || dtype == DataType::Complex128;
  const bool is_float = dtype == DataType::Float64 || dtype == DataType::Float32 ||
                        dtype == DataType::Float16 || dtype == DataType::BFloat16;
  if (dtype == DataType::Float8) return false;
  switch (op) {
    case ReduceOp::Sum:
    case ReduceOp::Product:
      return true;
    case ReduceOp::Avg:
      return dtype != DataType::Bool;
    case ReduceOp::PremulSum:
    case ReduceOp::WeightedAvg:
      return is_float || is_complex;
    case ReduceOp::Min:
    case ReduceOp::Max:
      return !is_complex;
    case ReduceOp::Band:
    case ReduceOp::Bor:
    case ReduceOp::Bxor:
      return !is_float && !is_complex;
  }
  return false;
}

}  // namespace pccl
