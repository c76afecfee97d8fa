// What one compiled instruction set offers to reduce.cpp: the seam between the two.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

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
};

// Defined by reduce_target.cpp, once per instruction set; only the first exists on every machine.
namespace baseline {
extern const KernelTable kKernels;
}
namespace v3 {
extern const KernelTable kKernels;
}
namespace v4 {
extern const KernelTable kKernels;
}

}  // namespace pccl::kernels
