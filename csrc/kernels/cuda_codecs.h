// The codecs on a GPU, where there is one: libpccl_cuda.so, loaded when it is first asked for.
//
// Never needed. A build without CUDA has no such library, a machine without a driver no device;
// both look the same here. Thread safety: any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/codec.h"
#include "base/types.h"

namespace pccl::kernels {

// As EncodeCall (quantize.h), of device memory, put into a CUDA stream; does not wait.
struct CudaEncodeCall {
  Codec codec;                         // int8, int6, int4, fp8; without mse_clip and hadamard
  DataType dtype = DataType::Float32;  // or bfloat16, float16
  const void* values = nullptr;
  size_t count = 0;
  float divisor = 1;
  uint64_t stream = 0;  // of random numbers
  uint64_t first_element = 0;
  size_t tile_bytes = 0;  // payload_bytes(codec, 256)
  void* payload = nullptr;
  unsigned* nonfinite = nullptr;  // becomes 1 where a value is not finite; the caller zeroes it
  void* cuda_stream = nullptr;
};

struct CudaDecodeCall {
  Codec codec;
  const void* payload = nullptr;  // that is_payload_valid() took on the host
  size_t count = 0;
  size_t tile_bytes = 0;
  bool adds = false;                   // float32 only
  DataType dtype = DataType::Float32;  // or bfloat16, float16: each value is rounded once
  void* values = nullptr;
  void* cuda_stream = nullptr;
};

// Whether there are kernels for it.
bool has_cuda_kernels(Codec codec, DataType dtype);

// Its functions return 0, a CUDA error number, or -1 where there is no kernel for the codec.
struct CudaCodecs {
  int (*devices)() = nullptr;
  int (*encode)(const CudaEncodeCall* call) = nullptr;
  int (*decode)(const CudaDecodeCall* call) = nullptr;
};

// nullptr: no library at `path` (the name alone: where the loader looks), or no device.
const CudaCodecs* load_cuda_codecs(const char* path = "libpccl_cuda.so");

}  // namespace pccl::kernels
