// libpccl_cuda.so with host memory as the device's and each warp's lanes one after the other: what
// the host does with a GPU can be tested where there is none. Built by
// tests/python/test_device_codec.py.
#include <cstring>

#include "emulated_team.h"
#include "kernels/cuda_codecs.h"
#include "kernels/quantize_team.h"

namespace {

using namespace pccl;
using namespace pccl::kernels;

float take(DataType dtype, const void* values, size_t i) {
  if (dtype == DataType::Float32) return static_cast<const float*>(values)[i];
  const uint16_t bits = static_cast<const uint16_t*>(values)[i];
  return dtype == DataType::BFloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
}

void put(DataType dtype, void* values, size_t i, float value) {
  if (dtype == DataType::Float32) {
    static_cast<float*>(values)[i] = value;
  } else {
    static_cast<uint16_t*>(values)[i] =
        dtype == DataType::BFloat16 ? bfloat16_from_float(value) : float16_from_float(value);
  }
}

template <class Format>
void run(const CudaEncodeCall& call) {
  EmulatedTeam<32> team;
  auto* wire = static_cast<uint8_t*>(call.payload);
  for (size_t begin = 0; begin < call.count; begin += kTileCount, wire += call.tile_bytes) {
    const size_t part = std::min(kTileCount, call.count - begin);
    TeamTile tile{};
    for (size_t i = 0; i < part; ++i) tile.values[i] = take(call.dtype, call.values, begin + i);
    const TeamRounding rounding{call.codec.has(kStochastic), call.stream,
                                call.first_element + begin};
    if (!encode_tile<Format>(team, tile, part, rounding, wire)) *call.nonfinite = 1;
  }
}

template <class Format>
void run(const CudaDecodeCall& call) {
  EmulatedTeam<32> team;
  const auto* wire = static_cast<const uint8_t*>(call.payload);
  for (size_t begin = 0; begin < call.count; begin += kTileCount, wire += call.tile_bytes) {
    const size_t part = std::min(kTileCount, call.count - begin);
    decode_tile<Format>(team, wire, part, [&](size_t i, float value) {
      put(call.dtype, call.values, begin + i, value);
    });
  }
}

template <class Call>
int run_codec(const Call& call) {
  switch (call.codec.id) {
    case CodecId::Int8:
      return run<Int8Format>(call), 0;
    case CodecId::Int6:
      return run<Int6Format>(call), 0;
    case CodecId::Int4:
      return run<Int4Format>(call), 0;
    case CodecId::Float8E4M3:
      return run<E4M3Format>(call), 0;
    case CodecId::Float8E5M2:
      return run<E5M2Format>(call), 0;
    default:
      return -1;
  }
}

}  // namespace

extern "C" int pccl_cuda_devices() { return 1; }
extern "C" int pccl_cuda_encode(const CudaEncodeCall* call) { return run_codec(*call); }
extern "C" int pccl_cuda_decode(const CudaDecodeCall* call) { return run_codec(*call); }
