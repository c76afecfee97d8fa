// DLPack's ABI (dmlc/dlpack, version 1.x): the structures that other libraries hand over, and
// nothing else.
#pragma once

#include <cstdint>

namespace pccl::bindings {

struct DLDevice {
  int32_t device_type;
  int32_t device_id;
};
inline constexpr int32_t kDLCpu = 1;
inline constexpr int32_t kDLCudaHost = 3;

struct DLDataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct DLTensor {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;  // null: contiguous
  uint64_t byte_offset;
};

struct DLManagedTensor {
  DLTensor dl_tensor;
  void* manager_ctx;
  void (*deleter)(DLManagedTensor*);
};

struct DLPackVersion {
  uint32_t major;
  uint32_t minor;
};

struct DLManagedTensorVersioned {
  DLPackVersion version;
  void* manager_ctx;
  void (*deleter)(DLManagedTensorVersioned*);
  uint64_t flags;
  DLTensor dl_tensor;
};
inline constexpr uint64_t kDLFlagReadOnly = 1;

}  // namespace pccl::bindings
