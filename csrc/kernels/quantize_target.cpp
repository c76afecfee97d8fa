// The codecs behind encode() and decode(), compiled once per instruction set (see CMakeLists.txt).
//
// A segment is worked off tile by tile: its values, as floats, its codes and its scales stay in L1.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/quantize_codecs.h"
#include "kernels/reduce_table.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

Rounding rounding_of(const EncodeCall& call) {
  Rounding rounding{(call.codec.options & kStochastic) != 0, call.stream, call.first_element, {}};
  if (rounding.is_stochastic) rounding.key = random_key(call.stream, call.first_element);
  return rounding;
}

// To the next tile.
void go_on(Rounding& rounding) {
  const uint64_t next = rounding.element + kTileCount;
  if (rounding.is_stochastic && next >> 32 != rounding.element >> 32) {
    rounding.key = random_key(rounding.stream, next);
  }
  rounding.element = next;
}

template <class TileCodec>
bool encode_tiles(const EncodeCall& call, size_t tile_bytes) {
  alignas(64) std::byte scratch[kTileBytes];
  const size_t element_bytes = bytes_of(call.dtype);
  const auto* in = static_cast<const std::byte*>(call.values);
  Rounding rounding = rounding_of(call);
  bool is_finite = true;
  std::byte* wire = call.payload;
  for (size_t begin = 0; begin < call.count; begin += kTileCount) {
    const size_t left = call.count - begin;
    const size_t count = left < kTileCount ? left : kTileCount;
    const std::byte* tile = in + begin * element_bytes;
    if (call.dtype != DataType::Float32 || call.divisor != 1 || count != kTileCount) {
      if (count != kTileCount) std::memset(scratch, 0, sizeof(scratch));
      load_tile(call.dtype, tile, count, scratch);
      if (call.divisor != 1) divide_tile(scratch, count, call.divisor);
      tile = scratch;
    }
    is_finite = TileCodec::encode(tile, count, rounding, wire) && is_finite;
    wire += tile_bytes;
    go_on(rounding);
  }
  return is_finite;
}

template <class TileCodec>
void decode_tiles(const DecodeCall& call, size_t tile_bytes) {
  alignas(64) std::byte scratch[kTileBytes];
  const size_t element_bytes = bytes_of(call.dtype);
  auto* out = static_cast<std::byte*>(call.values);
  const std::byte* wire = call.payload;
  for (size_t begin = 0; begin < call.count; begin += kTileCount) {
    const size_t left = call.count - begin;
    const size_t count = left < kTileCount ? left : kTileCount;
    std::byte* to = out + begin * element_bytes;
    if (call.dtype == DataType::Float32 && count == kTileCount) {
      if (call.adds) {
        TileCodec::template decode<true>(wire, count, to);
      } else {
        TileCodec::template decode<false>(wire, count, to);
      }
    } else {
      TileCodec::template decode<false>(wire, count, scratch);
      if (call.adds) {
        add_tile(scratch, count, to);
      } else {
        store_tile(call.dtype, scratch, count, to);
      }
    }
    wire += tile_bytes;
  }
}

// Payloads of which pointers are kept at a time.
constexpr size_t kSources = 16;

template <class TileCodec>
Combined combine_tiles(const CombineCall& call, size_t tile_bytes) {
  alignas(64) std::byte tile[kTileBytes];
  const EncodeCall& sum = call.sum;
  const size_t element_bytes = bytes_of(sum.dtype);
  const auto* own = static_cast<const std::byte*>(sum.values);
  auto* sums = reinterpret_cast<std::byte*>(call.sums);
  Rounding rounding = rounding_of(sum);
  Combined found{true, call.source_count};
  size_t offset = 0;  // of the tile, in every payload
  for (size_t begin = 0; begin < sum.count; begin += kTileCount) {
    const size_t left = sum.count - begin;
    const size_t count = left < kTileCount ? left : kTileCount;
    load_tile(sum.dtype, own + begin * element_bytes, count, tile);
    for (size_t first = 0; first < call.source_count; first += kSources) {
      const size_t sources =
          call.source_count - first < kSources ? call.source_count - first : kSources;
      const std::byte* wires[kSources];
      for (size_t i = 0; i < sources; ++i) {
        wires[i] = call.sources[first + i] + offset;
        if (!TileCodec::is_valid(wires[i], count)) return {true, first + i};
      }
      TileCodec::add(wires, sources, count, tile);
    }
    if (count != kTileCount)
      std::memset(tile + count * sizeof(float), 0, kTileBytes - count * sizeof(float));
    if (sums != nullptr) std::memcpy(sums + begin * sizeof(float), tile, count * sizeof(float));
    if (sum.divisor != 1) divide_tile(tile, count, sum.divisor);
    found.is_finite =
        TileCodec::encode(tile, count, rounding, sum.payload + offset) && found.is_finite;
    offset += tile_bytes;
    go_on(rounding);
  }
  return found;
}

template <class TileCodec>
bool are_tiles_valid(const std::byte* wire, size_t all, size_t tile_bytes) {
  for (size_t begin = 0; begin < all; begin += kTileCount) {
    const size_t count = all - begin < kTileCount ? all - begin : kTileCount;
    if (!TileCodec::is_valid(wire, count)) return false;
    wire += tile_bytes;
  }
  return true;
}

// Calls `body` with the codec's type as its template argument.
template <class Body>
auto with_codec(Codec codec, const Body& body) {
  const bool clips = (codec.options & kMseClip) != 0;
  switch (codec.id) {
    case CodecId::BFloat16:
      return body.template operator()<Float16Codes<true>>();
    case CodecId::Float16:
      return body.template operator()<Float16Codes<false>>();
    case CodecId::Int6:
      return body.template operator()<PackedBits<Int6Format, false>>();
    case CodecId::Int4:
      if ((codec.options & kHadamard) != 0) {
        if (clips) return body.template operator()<RotatedBits<true>>();
        return body.template operator()<RotatedBits<false>>();
      }
      if (clips) return body.template operator()<PackedBits<Int4Format, true>>();
      return body.template operator()<PackedBits<Int4Format, false>>();
    case CodecId::Float8E4M3:
      return body.template operator()<Float8Codes<E4M3Format>>();
    case CodecId::Float8E5M2:
      return body.template operator()<Float8Codes<E5M2Format>>();
    default:
      return body.template operator()<WholeBytes<Int8Format>>();
  }
}

}  // namespace

bool encode(const EncodeCall& call, size_t tile_bytes) {
  return with_codec(call.codec,
                    [&]<class TileCodec>() { return encode_tiles<TileCodec>(call, tile_bytes); });
}

void decode(const DecodeCall& call, size_t tile_bytes) {
  with_codec(call.codec, [&]<class TileCodec>() { decode_tiles<TileCodec>(call, tile_bytes); });
}

Combined combine(const CombineCall& call, size_t tile_bytes) {
  return with_codec(call.sum.codec,
                    [&]<class TileCodec>() { return combine_tiles<TileCodec>(call, tile_bytes); });
}

bool is_payload_valid(Codec codec, const std::byte* payload, size_t count, size_t tile_bytes) {
  return with_codec(codec, [&]<class TileCodec>() {
    return are_tiles_valid<TileCodec>(payload, count, tile_bytes);
  });
}

void widen(DataType dtype, const void* values, size_t count, float* sums, bool adds) {
  alignas(64) std::byte scratch[kTileBytes];
  const size_t element_bytes = bytes_of(dtype);
  const auto* in = static_cast<const std::byte*>(values);
  auto* out = reinterpret_cast<std::byte*>(sums);
  for (size_t begin = 0; begin < count; begin += kTileCount) {
    const size_t part = count - begin < kTileCount ? count - begin : kTileCount;
    std::byte* to = out + begin * sizeof(float);
    load_tile(dtype, in + begin * element_bytes, part, adds ? scratch : to);
    if (adds) add_tile(scratch, part, to);
  }
}

void narrow(DataType dtype, const float* values, size_t count, void* out) {
  store_tile(dtype, reinterpret_cast<const std::byte*>(values), count,
             static_cast<std::byte*>(out));
}

}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
