# The CUDA kernels compile for every architecture, without a GPU, and contain no fused multiply-add.
#
#   cmake -DNVCC=/usr/local/cuda/bin/nvcc -DSOURCE=quantize_cuda.cu -DINCLUDE=csrc -P cuda_codecs.cmake
set(options -std=c++20 -O3 -I${INCLUDE})
execute_process(
  COMMAND ${NVCC} ${options} -arch=compute_80 -ptx ${SOURCE} -o cuda_codecs.ptx
  COMMAND_ERROR_IS_FATAL ANY)
file(READ cuda_codecs.ptx text)
# A kernel multiplies, so a text without any multiplication is not that of a kernel.
if(NOT text MATCHES "mul\\.rn\\.f32" OR NOT text MATCHES "add\\.rn\\.f32")
  message(FATAL_ERROR "${SOURCE}: no multiplication or addition found, so this proves nothing")
endif()
if(text MATCHES "(fma\\.r[nzmp][^\n]*|mad\\.r[nzmp][^\n]*)")
  message(FATAL_ERROR "${SOURCE}: a fused multiply-add: ${CMAKE_MATCH_1}")
endif()
execute_process(
  COMMAND ${NVCC} ${options} -Xcompiler -fPIC -cudart static -shared --threads 2
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90
    -gencode arch=compute_100,code=sm_100 ${SOURCE} -o libpccl_cuda.so
  COMMAND_ERROR_IS_FATAL ANY)
