// The codecs on a GPU: thin kernels around quantize_team.h, one warp a tile.
//
// Built into a library of its own, libpccl_cuda.so, which nothing needs: cuda_codecs.h loads it
// where it is there. Values and payload are device memory; the payload's bytes are those of the
// CPU, so encoding before the copy to the host sends the thin bytes over PCIe.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "kernels/cuda_codecs.h"
#include "kernels/quantize_team.h"

namespace {

using namespace pccl;
using namespace pccl::kernels;

constexpr unsigned kWarp = 32;
constexpr unsigned kWarpsPerBlock = 4;
constexpr unsigned kAllLanes = 0xFFFFFFFFu;

struct WarpTeam {
  unsigned lane;

  template <class F>
  __device__ unsigned max(const F& f) {
    return reduce_max(f(lane, kWarp));
  }
  template <class F>
  __device__ void each(const F& f) {
    f(lane, kWarp);
    __syncwarp();
  }

 private:
  __device__ unsigned reduce_max(unsigned value) { return __reduce_max_sync(kAllLanes, value); }
};

template <class T>
__device__ float to_float(T value) {
  return static_cast<float>(value);
}
__device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ float to_float(__half value) { return __half2float(value); }

__device__ void put_float(float* to, float value) { *to = value; }
__device__ void put_float(__nv_bfloat16* to, float value) { *to = __float2bfloat16_rn(value); }
__device__ void put_float(__half* to, float value) { *to = __float2half_rn(value); }

template <class Format, class T>
__global__ void encode_tiles(const T* values, size_t count, float divisor, TeamRounding rounding,
                             size_t tile_bytes, uint8_t* payload, unsigned* nonfinite) {
  __shared__ TeamTile tiles[kWarpsPerBlock];
  TeamTile& tile = tiles[threadIdx.x / kWarp];
  WarpTeam team{threadIdx.x % kWarp};
  const size_t number = size_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  const size_t begin = number * kTileCount;
  if (begin >= count) return;
  const size_t part = count - begin < kTileCount ? count - begin : kTileCount;
  team.each([&](unsigned lane, unsigned size) {
    for (size_t i = lane; i < kTileCount; i += size) {
      const float value = i < part ? to_float(values[begin + i]) : 0.0F;
      tile.values[i] = divisor == 1 ? value : divide(value, divisor);
    }
  });
  rounding.element += begin;
  const bool is_finite =
      encode_tile<Format>(team, tile, part, rounding, payload + number * tile_bytes);
  if (!is_finite && team.lane == 0) atomicOr(nonfinite, 1u);
}

template <class Format, class T>
__global__ void decode_tiles(const uint8_t* payload, size_t count, size_t tile_bytes, bool adds,
                             T* values) {
  WarpTeam team{threadIdx.x % kWarp};
  const size_t number = size_t{blockIdx.x} * kWarpsPerBlock + threadIdx.x / kWarp;
  const size_t begin = number * kTileCount;
  if (begin >= count) return;
  const size_t part = count - begin < kTileCount ? count - begin : kTileCount;
  decode_tile<Format>(team, payload + number * tile_bytes, part, [&](size_t i, float value) {
    T* to = values + begin + i;
    put_float(to, adds ? add(to_float(*to), value) : value);
  });
}

unsigned blocks_for(size_t count) {
  const size_t tiles = (count + kTileCount - 1) / kTileCount;
  return static_cast<unsigned>((tiles + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

template <class Format, class T>
void launch_encode(const CudaEncodeCall& call) {
  const TeamRounding rounding{(call.codec.options & kStochastic) != 0, call.stream,
                              call.first_element};
  encode_tiles<Format, T><<<blocks_for(call.count), kWarp * kWarpsPerBlock, 0,
                            static_cast<cudaStream_t>(call.cuda_stream)>>>(
      static_cast<const T*>(call.values), call.count, call.divisor, rounding, call.tile_bytes,
      static_cast<uint8_t*>(call.payload), call.nonfinite);
}

template <class Format, class T>
void launch_decode(const CudaDecodeCall& call) {
  decode_tiles<Format, T><<<blocks_for(call.count), kWarp * kWarpsPerBlock, 0,
                            static_cast<cudaStream_t>(call.cuda_stream)>>>(
      static_cast<const uint8_t*>(call.payload), call.count, call.tile_bytes, call.adds,
      static_cast<T*>(call.values));
}

template <class Format, class T>
void launch(const CudaEncodeCall& call) {
  launch_encode<Format, T>(call);
}
template <class Format, class T>
void launch(const CudaDecodeCall& call) {
  launch_decode<Format, T>(call);
}

template <class Format, class Call>
bool launch_of(const Call& call) {
  switch (call.dtype) {
    case DataType::Float32:
      launch<Format, float>(call);
      return true;
    case DataType::BFloat16:
      launch<Format, __nv_bfloat16>(call);
      return true;
    case DataType::Float16:
      launch<Format, __half>(call);
      return true;
    default:
      return false;
  }
}

// Calls body.operator()<Format>() for the codec's format; false where there is no kernel for it.
template <class Body>
bool with_format(Codec codec, const Body& body) {
  if ((codec.options & (kMseClip | kHadamard)) != 0) return false;
  switch (codec.id) {
    case CodecId::Int8:
      return body.template operator()<Int8Format>();
    case CodecId::Int6:
      return body.template operator()<Int6Format>();
    case CodecId::Int4:
      return body.template operator()<Int4Format>();
    case CodecId::Float8E4M3:
      return body.template operator()<E4M3Format>();
    case CodecId::Float8E5M2:
      return body.template operator()<E5M2Format>();
    default:
      return false;
  }
}

}  // namespace

extern "C" int pccl_cuda_devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

// The CUDA error of the launch, or -1 for a codec or dtype without a kernel.
extern "C" int pccl_cuda_encode(const CudaEncodeCall* call) {
  if (call->count == 0) return 0;
  const bool is_known =
      with_format(call->codec, [&]<class Format>() { return launch_of<Format>(*call); });
  return is_known ? static_cast<int>(cudaGetLastError()) : -1;
}

extern "C" int pccl_cuda_decode(const CudaDecodeCall* call) {
  if (call->count == 0) return 0;
  const bool is_known =
      with_format(call->codec, [&]<class Format>() { return launch_of<Format>(*call); });
  return is_known ? static_cast<int>(cudaGetLastError()) : -1;
}
