#include "kernels/cuda_codecs.h"

#include <dlfcn.h>

namespace pccl::kernels {
namespace {

template <class Function>
bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

CudaCodecs load(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  CudaCodecs codecs;
  if (library == nullptr) return {};
  if (find(library, "pccl_cuda_devices", codecs.devices) &&
      find(library, "pccl_cuda_encode", codecs.encode) &&
      find(library, "pccl_cuda_decode", codecs.decode) && codecs.devices() > 0)
    return codecs;
  dlclose(library);
  return {};
}

}  // namespace

bool has_cuda_kernels(Codec codec, DataType dtype) {
  const bool is_block_codec = codec.id >= CodecId::Int8 && codec.id <= CodecId::Float8E5M2;
  const bool is_plain = !codec.has(kMseClip) && !codec.has(kHadamard);
  return is_block_codec && is_plain &&
         (dtype == DataType::Float32 || dtype == DataType::BFloat16 || dtype == DataType::Float16);
}

const CudaCodecs* load_cuda_codecs(const char* path) {
  // One library for the process, that of the first call.
  static const CudaCodecs loaded = load(path);
  return loaded.encode == nullptr ? nullptr : &loaded;
}

}  // namespace pccl::kernels
