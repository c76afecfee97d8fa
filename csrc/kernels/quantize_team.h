// A tile of a codec by a team of lanes: a warp of a GPU, or one after the other on the CPU.
//
// The same bytes as quantize_target.cpp, which is the one that runs on CPUs. A team has
//   max(f)    the largest of f(lane, lanes) over all lanes, known to each
//   each(f)   f(lane, lanes) for all lanes, all done before it returns
// Integers and 8-bit floats, without mse_clip and hadamard.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/quantize_elements.h"

namespace pccl::kernels {

// What the lanes of a team share; in shared memory on a GPU.
struct TeamTile {
  float values[kTileCount];  // zeros past the end
  uint8_t codes[kTileCount];
};

struct TeamRounding {
  bool is_stochastic;
  uint64_t stream;
  uint64_t element;  // of the tile's first element
};

namespace team {

template <class Format>
inline constexpr bool kIsFloat8 = Format::kLevels > 127;

PCCL_HOST_DEVICE static inline void put_half(uint8_t* wire, size_t index, uint16_t bits) {
  wire[2 * index] = static_cast<uint8_t>(bits);
  wire[2 * index + 1] = static_cast<uint8_t>(bits >> 8);
}

PCCL_HOST_DEVICE static inline uint16_t take_half(const uint8_t* wire, size_t index) {
  return static_cast<uint16_t>(wire[2 * index] | wire[2 * index + 1] << 8);
}

template <class Format>
PCCL_HOST_DEVICE uint8_t code_of(float value, float inverse, const TeamRounding& rounding,
                                 size_t index) {
  if constexpr (kIsFloat8<Format>) {
    return to_float8<Format>(clamp(multiply(value, inverse), Format::kLevels));
  } else {
    float offset = 0;
    if (rounding.is_stochastic) {
      const uint64_t element = rounding.element + index;
      offset = random_offset(random_key(rounding.stream, element), static_cast<uint32_t>(element));
    }
    return static_cast<uint8_t>(quantize_randomly(value, inverse, Format::kLevels, offset));
  }
}

template <class Format>
PCCL_HOST_DEVICE float value_of(uint8_t code, float scale) {
  if constexpr (kIsFloat8<Format>) {
    return multiply(from_float8<Format>(code), scale);
  } else {
    return dequantize(static_cast<int8_t>(code), scale);
  }
}

// Byte `i` of the codes on the wire.
template <class Format>
PCCL_HOST_DEVICE uint8_t packed(const uint8_t* codes, size_t count, size_t i) {
  if constexpr (Format::kCodeBits == 8) return codes[i];
  const size_t half = (count + 1) / 2;
  const auto at = [codes](size_t index) { return index < kTileCount ? codes[index] : 0; };
  if (i < half) return static_cast<uint8_t>((at(i) & 15) | (at(half + i) & 15) << 4);
  const size_t quarter = (count + 3) / 4;
  int bits = 0;
  for (size_t part = 0; part < 4; ++part) {
    bits |= (at(part * quarter + i - half) >> 4 & 3) << (2 * part);
  }
  return static_cast<uint8_t>(bits);
}

// The code of element `i`, sign and all.
template <class Format>
PCCL_HOST_DEVICE uint8_t unpacked(const uint8_t* wire, size_t count, size_t i) {
  if constexpr (Format::kCodeBits == 8) return wire[i];
  const size_t half = (count + 1) / 2;
  const int low = i < half ? wire[i] & 15 : wire[i - half] >> 4;
  if constexpr (Format::kCodeBits == 4) return static_cast<uint8_t>((low ^ 8) - 8);
  const size_t quarter = (count + 3) / 4;
  const int high = wire[half + i % quarter] >> (2 * (i / quarter)) & 3;
  return static_cast<uint8_t>(((low | high << 4) ^ 32) - 32);
}

template <class Format>
PCCL_HOST_DEVICE constexpr size_t code_bytes(size_t count) {
  if constexpr (Format::kCodeBits == 8) return count;
  const size_t high = Format::kCodeBits == 6 ? (count + 3) / 4 : 0;
  return (count + 1) / 2 + high;
}

}  // namespace team

// Returns whether all values were finite. Requires: tile.values are loaded.
template <class Format, class Team>
PCCL_HOST_DEVICE bool encode_tile(Team& lanes, TeamTile& tile, size_t count,
                                  const TeamRounding& rounding, uint8_t* wire) {
  const size_t blocks = (count + Format::kBlock - 1) / Format::kBlock;
  bool is_finite = true;
  lanes.each([&](unsigned lane, unsigned size) {
    for (size_t i = lane; i < kTileCount; i += size) tile.codes[i] = 0;
  });
  for (size_t block = 0; block < blocks; ++block) {
    const size_t begin = block * Format::kBlock;
    const uint32_t absmax = lanes.max([&](unsigned lane, unsigned size) {
      uint32_t most = 0;
      for (size_t i = begin + lane; i < begin + Format::kBlock; i += size) {
        const uint32_t magnitude = bits_of(tile.values[i]) & 0x7FFFFFFFu;
        most = most > magnitude ? most : magnitude;
      }
      return most;
    });
    const uint16_t scale = scale_of<Format>(absmax);
    const float inverse = inverse_scale(scale);
    is_finite = is_finite && scale != kScaleInvalid;
    lanes.each([&](unsigned lane, unsigned size) {
      if (lane == 0) team::put_half(wire, block, scale);
      for (size_t i = begin + lane; i < begin + Format::kBlock; i += size) {
        tile.codes[i] = team::code_of<Format>(tile.values[i], inverse, rounding, i);
      }
    });
  }
  uint8_t* codes = wire + blocks * sizeof(uint16_t);
  lanes.each([&](unsigned lane, unsigned size) {
    for (size_t i = lane; i < team::code_bytes<Format>(count); i += size) {
      codes[i] = team::packed<Format>(tile.codes, count, i);
    }
  });
  return is_finite;
}

// put(i, element i) for all of them. Requires: a valid payload.
template <class Format, class Team, class Put>
PCCL_HOST_DEVICE void decode_tile(Team& lanes, const uint8_t* wire, size_t count, const Put& put) {
  const uint8_t* codes = wire + (count + Format::kBlock - 1) / Format::kBlock * sizeof(uint16_t);
  lanes.each([&](unsigned lane, unsigned size) {
    for (size_t i = lane; i < count; i += size) {
      const float scale = bfloat16_to_float(team::take_half(wire, i / Format::kBlock));
      put(i, team::value_of<Format>(team::unpacked<Format>(codes, count, i), scale));
    }
  });
}

}  // namespace pccl::kernels
