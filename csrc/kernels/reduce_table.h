// What one compiled instruction set offers to reduce.cpp and quantize.cpp: the seam between them.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "kernels/quantize.h"

namespace pccl::kernels {

// The arguments of reduce(). Requires: count >= 1; divisor == 1 unless op is Avg.
struct ReduceCall {
  void* target;
  const void* const* sources;
  size_t source_count;
  size_t count;
  DataType dtype;
  ReduceOp op;
  int64_t divisor;
};

// The arguments of scale(). Requires: count >= 1.
struct ScaleCall {
  void* target;
  const void* source;
  size_t count;
  DataType dtype;
  double factor;
};

struct KernelTable {
  void (*reduce)(const ReduceCall& call);
  void (*scale)(const ScaleCall& call);
  // `tile_bytes`: of a tile of 256 elements.
  bool (*encode)(const EncodeCall& call, size_t tile_bytes);
  void (*decode)(const DecodeCall& call, size_t tile_bytes);
  Combined (*combine)(const CombineCall& call, size_t tile_bytes);
  bool (*is_payload_valid)(Codec codec, const std::byte* payload, size_t count, size_t tile_bytes);
  void (*widen)(DataType dtype, const void* values, size_t count, float* sums, bool adds);
  void (*narrow)(DataType dtype, const float* values, size_t count, void* out);
};

// The table of the instruction set in use (reduce.cpp).
const KernelTable& selected_kernels();

// Defined by reduce_target.cpp, once per instruction set; only the first exists on every machine.
namespace baseline {
extern const KernelTable kKernels;
}
namespace v2 {
extern const KernelTable kKernels;
}
namespace v3 {
extern const KernelTable kKernels;
}
namespace v4 {
extern const KernelTable kKernels;
}

#ifdef PCCL_KERNEL_TARGET
// Defined by quantize_target.cpp, for the table.
namespace PCCL_KERNEL_TARGET {
bool encode(const EncodeCall& call, size_t tile_bytes);
void decode(const DecodeCall& call, size_t tile_bytes);
Combined combine(const CombineCall& call, size_t tile_bytes);
bool is_payload_valid(Codec codec, const std::byte* payload, size_t count, size_t tile_bytes);
void widen(DataType dtype, const void* values, size_t count, float* sums, bool adds);
void narrow(DataType dtype, const float* values, size_t count, void* out);
}  // namespace PCCL_KERNEL_TARGET
#endif

}  // namespace pccl::kernels
