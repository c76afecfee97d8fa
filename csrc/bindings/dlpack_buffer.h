// A CPU array of any library, taken by __dlpack__ without a copy.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "base/types.h"
#include "bindings/dlpack.h"

namespace pccl::bindings {

namespace py = pybind11;

class DLPackBuffer {
 public:
  explicit DLPackBuffer(const py::object& array) {
    if (!py::hasattr(array, "__dlpack__") || !py::hasattr(array, "__dlpack_device__")) {
      throw py::type_error("expected an array with __dlpack__ (numpy, torch, jax, ...), got " +
                           std::string(py::str(py::type::of(array).attr("__name__"))));
    }
    const auto device = array.attr("__dlpack_device__")().cast<std::pair<int, int>>();
    if (device.first != kDLCpu && device.first != kDLCudaHost) {
      throw py::type_error("expected an array in CPU memory, got DLPack device type " +
                           std::to_string(device.first));
    }
    take(ask(array));
  }
  DLPackBuffer(const DLPackBuffer&) = delete;
  DLPackBuffer& operator=(const DLPackBuffer&) = delete;
  ~DLPackBuffer() {
    if (release_) release_();
  }

  uintptr_t pointer() const {
    return reinterpret_cast<uintptr_t>(tensor_.data) + tensor_.byte_offset;
  }
  uint64_t count() const {
    uint64_t product = 1;
    for (int i = 0; i < tensor_.ndim; ++i) product *= static_cast<uint64_t>(tensor_.shape[i]);
    return product;
  }
  int dtype() const { return static_cast<int>(dtype_); }
  py::tuple shape() const {
    py::tuple result(tensor_.ndim);
    for (int i = 0; i < tensor_.ndim; ++i) result[i] = tensor_.shape[i];
    return result;
  }
  bool contiguous() const {
    if (tensor_.strides == nullptr || count() == 0) return true;
    int64_t expected = 1;
    for (int i = tensor_.ndim - 1; i >= 0; --i) {
      if (tensor_.shape[i] != 1 && tensor_.strides[i] != expected) return false;
      expected *= tensor_.shape[i];
    }
    return true;
  }
  bool readonly() const { return readonly_; }

 private:
  static py::object ask(const py::object& array) {
    try {
      return array.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
    } catch (py::error_already_set& error) {
      // Libraries of before DLPack 1.0 do not know the argument.
      if (!error.matches(PyExc_TypeError)) throw;
    }
    return array.attr("__dlpack__")();
  }

  void take(const py::object& capsule) {
    if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned") != 0) {
      auto* managed = static_cast<DLManagedTensorVersioned*>(
          PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
      if (managed->version.major != 1) throw py::value_error("unknown DLPack version");
      tensor_ = managed->dl_tensor;
      readonly_ = (managed->flags & kDLFlagReadOnly) != 0;
      dtype_ = convert(tensor_.dtype);
      PyCapsule_SetName(capsule.ptr(), "used_dltensor_versioned");
      release_ = [managed] {
        if (managed->deleter != nullptr) managed->deleter(managed);
      };
    } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor") != 0) {
      auto* managed =
          static_cast<DLManagedTensor*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
      tensor_ = managed->dl_tensor;
      dtype_ = convert(tensor_.dtype);
      PyCapsule_SetName(capsule.ptr(), "used_dltensor");
      release_ = [managed] {
        if (managed->deleter != nullptr) managed->deleter(managed);
      };
    } else {
      throw py::type_error("__dlpack__ returned no DLPack capsule");
    }
  }

  static DataType convert(DLDataType type) {
    // Codes: 0 int, 1 uint, 2 float, 4 bfloat, 5 complex, 6 bool, 7..14 the 8-bit floats.
    const int key = type.code * 1000 + type.bits;
    if (type.lanes == 1) {
      switch (key) {
        case 8:
          return DataType::Int8;
        case 16:
          return DataType::Int16;
        case 32:
          return DataType::Int32;
        case 64:
          return DataType::Int64;
        case 1008:
          return DataType::UInt8;
        case 1016:
          return DataType::UInt16;
        case 1032:
          return DataType::UInt32;
        case 1064:
          return DataType::UInt64;
        case 2016:
          return DataType::Float16;
        case 2032:
          return DataType::Float32;
        case 2064:
          return DataType::Float64;
        case 4016:
          return DataType::BFloat16;
        case 5064:
          return DataType::Complex64;
        case 5128:
          return DataType::Complex128;
        case 6008:
          return DataType::Bool;
        default:
          break;
      }
      if (type.code >= 7 && type.code <= 14 && type.bits == 8) return DataType::Float8;
    }
    throw py::value_error("unsupported dtype: DLPack code " + std::to_string(type.code) + ", " +
                          std::to_string(type.bits) + " bits, " + std::to_string(type.lanes) +
                          " lanes");
  }

  DLTensor tensor_{};
  DataType dtype_ = DataType::UInt8;
  bool readonly_ = false;
  std::function<void()> release_;
};

}  // namespace pccl::bindings
