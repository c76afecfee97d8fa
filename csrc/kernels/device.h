// What a function needs to be compiled for a GPU as well, and arithmetic that is never fused.
//
// A compiler of device code fuses a * b + c unless each step is asked for by name; host code is
// compiled with -ffp-contract=off. So both round after every operation.
#pragma once

#ifdef __CUDACC__
#define PCCL_HOST_DEVICE __host__ __device__
#else
#define PCCL_HOST_DEVICE
#endif

namespace pccl::kernels {

PCCL_HOST_DEVICE static inline float multiply(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

PCCL_HOST_DEVICE static inline float add(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

PCCL_HOST_DEVICE static inline float divide(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}

}  // namespace pccl::kernels
