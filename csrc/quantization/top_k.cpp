#include "quantization/top_k.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>

#include "kernels/half.h"
#include "kernels/quantize_elements.h"

namespace pccl::quantization {
namespace {

using kernels::bfloat16_from_float;
using kernels::bfloat16_to_float;
using kernels::bits_of;
using kernels::float_of;

// One kept element: its index in the chunk and its value, rounded.
struct Kept {
  uint16_t index;
  float value;
};
using Chunk = std::array<float, kChunkElements>;
using KeptValues = std::array<Kept, size_t{1} << kTopKShiftMax>;

size_t kept_count(Codec codec, size_t count) { return std::min(size_t{1} << codec.options, count); }

size_t index_bytes(size_t kept) { return (kept * 12 + 7) / 8; }

size_t chunk_bytes(Codec codec, size_t count) {
  const size_t kept = kept_count(codec, count);
  const size_t values = codec.id == CodecId::TopK ? kept * sizeof(uint16_t)
                                                  : 2 * sizeof(uint16_t) + (2 * kept + 7) / 8;
  return count == 0 ? 0 : index_bytes(kept) + values;
}

// ---- Bits ----

void put_bits(std::byte* out, size_t position, size_t bits, uint32_t value) {
  for (size_t i = 0; i < bits; ++i) {
    const size_t at = position + i;
    if ((value >> i & 1) != 0) out[at / 8] |= static_cast<std::byte>(1U << (at % 8));
  }
}

uint32_t take_bits(const std::byte* in, size_t position, size_t bits) {
  uint32_t value = 0;
  for (size_t i = 0; i < bits; ++i) {
    const size_t at = position + i;
    value |= static_cast<uint32_t>(in[at / 8] >> (at % 8) & std::byte{1}) << i;
  }
  return value;
}

// Finite in, finite out; below 2^-100 it is zero, as a scale of the dense codecs.
uint16_t round_size(double size) {
  const float bounded = kernels::clamp(static_cast<float>(size), kernels::kBFloat16Max);
  const uint16_t bits = bfloat16_from_float(bounded);
  return bits < kernels::kScaleMin ? uint16_t{0} : bits;
}

// ---- One chunk there ----

// The indices of the `kept` largest magnitudes, ascending; of equal ones the earlier.
void select(const Chunk& chunk, size_t count, std::span<Kept> kept) {
  std::array<uint64_t, kChunkElements> keys;
  for (size_t i = 0; i < count; ++i) {
    keys[i] = static_cast<uint64_t>(bits_of(chunk[i]) & 0x7FFFFFFFU) << 32 | (kChunkElements - i);
  }
  const auto end = keys.begin() + static_cast<std::ptrdiff_t>(count);
  const auto last = keys.begin() + static_cast<std::ptrdiff_t>(kept.size());
  std::nth_element(keys.begin(), last - 1, end, std::greater<>());
  for (size_t k = 0; k < kept.size(); ++k) {
    kept[k].index = static_cast<uint16_t>(kChunkElements - (keys[k] & 0xFFFFFFFFU));
  }
  std::sort(kept.begin(), kept.end(),
            [](const Kept& a, const Kept& b) { return a.index < b.index; });
  for (Kept& one : kept) one.value = chunk[one.index];
}

// Two sizes, for magnitudes up to their mean and above it: the mean of each.
void put_two_bits(std::span<const Kept> kept, std::byte* out) {
  double sum = 0;
  for (const Kept& one : kept) sum += std::abs(one.value);
  const double mean = sum / static_cast<double>(kept.size());
  std::array<double, 2> sums = {0, 0};
  std::array<size_t, 2> counts = {0, 0};
  for (const Kept& one : kept) {
    const size_t is_large = std::abs(one.value) > mean ? 1 : 0;
    sums[is_large] += std::abs(one.value);
    ++counts[is_large];
  }
  for (size_t size = 0; size < 2; ++size) {
    const double of_size = counts[size] == 0 ? 0 : sums[size] / static_cast<double>(counts[size]);
    const uint16_t bits = round_size(of_size);
    std::memcpy(out + size * sizeof(bits), &bits, sizeof(bits));
  }
  std::byte* codes = out + 2 * sizeof(uint16_t);
  for (size_t k = 0; k < kept.size(); ++k) {
    const uint32_t is_negative = std::signbit(kept[k].value) ? 1 : 0;
    const uint32_t is_large = std::abs(kept[k].value) > mean ? 2 : 0;
    put_bits(codes, 2 * k, 2, is_negative | is_large);
  }
}

bool encode_chunk(Codec codec, const Chunk& chunk, size_t count, std::byte* wire) {
  KeptValues all;
  const std::span<Kept> kept = std::span(all).first(kept_count(codec, count));
  select(chunk, count, kept);
  std::memset(wire, 0, chunk_bytes(codec, count));
  for (size_t k = 0; k < kept.size(); ++k) put_bits(wire, 12 * k, 12, kept[k].index);
  std::byte* values = wire + index_bytes(kept.size());
  // Not finite is larger than anything finite, so it is among the kept.
  const bool is_finite = std::all_of(kept.begin(), kept.end(), [](const Kept& one) {
    return (bits_of(one.value) & 0x7FFFFFFFU) < kernels::kFloatInfinity;
  });
  if (!is_finite) {
    std::memset(values, 0xFF, chunk_bytes(codec, count) - index_bytes(kept.size()));
  } else if (codec.id == CodecId::TopK2Bit) {
    put_two_bits(kept, values);
  } else {
    for (size_t k = 0; k < kept.size(); ++k) {
      const uint16_t bits =
          bfloat16_from_float(kernels::clamp(kept[k].value, kernels::kBFloat16Max));
      std::memcpy(values + k * sizeof(bits), &bits, sizeof(bits));
    }
  }
  return is_finite;
}

// ---- And back ----

uint16_t take_half(const std::byte* in, size_t index) {
  uint16_t bits;
  std::memcpy(&bits, in + index * sizeof(bits), sizeof(bits));
  return bits;
}

std::span<const Kept> decode_chunk(Codec codec, const std::byte* wire, size_t count,
                                   KeptValues& all) {
  const std::span<Kept> kept = std::span(all).first(kept_count(codec, count));
  const std::byte* values = wire + index_bytes(kept.size());
  for (size_t k = 0; k < kept.size(); ++k) {
    kept[k].index = static_cast<uint16_t>(take_bits(wire, 12 * k, 12));
    if (codec.id == CodecId::TopK) {
      kept[k].value = bfloat16_to_float(take_half(values, k));
      continue;
    }
    const uint32_t code = take_bits(values + 2 * sizeof(uint16_t), 2 * k, 2);
    const float size = bfloat16_to_float(take_half(values, code >> 1));
    kept[k].value = (code & 1) != 0 ? -size : size;
  }
  return kept;
}

bool is_chunk_valid(Codec codec, const std::byte* wire, size_t count) {
  KeptValues all;
  int last = -1;
  for (const Kept& one : decode_chunk(codec, wire, count, all)) {
    if (one.index <= last || one.index >= count || !std::isfinite(one.value)) return false;
    last = one.index;
  }
  return true;
}

}  // namespace

size_t sparse_payload_bytes(Codec codec, size_t count) {
  return count / kChunkElements * chunk_bytes(codec, kChunkElements) +
         chunk_bytes(codec, count % kChunkElements);
}

bool encode_sparse(const kernels::EncodeCall& call) {
  Chunk chunk;
  const auto* in = static_cast<const std::byte*>(call.values);
  std::byte* wire = call.payload;
  bool is_finite = true;
  for (size_t begin = 0; begin < call.count; begin += kChunkElements) {
    const size_t count = std::min(kChunkElements, call.count - begin);
    kernels::widen(call.dtype, in + begin * element_bytes(call.dtype), count, chunk.data(), false);
    if (call.divisor != 1) {
      for (size_t i = 0; i < count; ++i) chunk[i] /= call.divisor;
    }
    is_finite = encode_chunk(call.codec, chunk, count, wire) && is_finite;
    wire += chunk_bytes(call.codec, count);
  }
  return is_finite;
}

void decode_sparse(const kernels::DecodeCall& call) {
  auto* out = static_cast<std::byte*>(call.values);
  const std::byte* wire = call.payload;
  const size_t bytes = element_bytes(call.dtype);
  KeptValues all;
  for (size_t begin = 0; begin < call.count; begin += kChunkElements) {
    const size_t count = std::min(kChunkElements, call.count - begin);
    std::byte* to = out + begin * bytes;
    if (!call.adds) std::memset(to, 0, count * bytes);
    for (const Kept& one : decode_chunk(call.codec, wire, count, all)) {
      std::byte* at = to + one.index * bytes;
      float value = one.value;
      if (call.adds) {
        std::memcpy(&value, at, sizeof(value));
        value += one.value;
      }
      kernels::narrow(call.dtype, &value, 1, at);
    }
    wire += chunk_bytes(call.codec, count);
  }
}

bool is_sparse_payload_valid(Codec codec, const std::byte* payload, size_t count) {
  for (size_t begin = 0; begin < count; begin += kChunkElements) {
    const size_t part = std::min(kChunkElements, count - begin);
    if (!is_chunk_valid(codec, payload, part)) return false;
    payload += chunk_bytes(codec, part);
  }
  return true;
}

}  // namespace pccl::quantization
