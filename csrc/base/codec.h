// Which codec: the word for it that every floor shares. What it does: quantization/codec.h.
//
// Both bytes travel on the wire (docs/codecs.md); never renumber.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace pccl {

enum class CodecId : uint8_t {
  None = 0,  // elements as they lie in memory
  BFloat16 = 1,
  Float16 = 2,
  Int8 = 3,
  Int6 = 4,
  Int4 = 5,
  Float8E4M3 = 6,
  Float8E5M2 = 7,
  TopK = 8,      // the largest of each chunk, with their indices
  TopK2Bit = 9,  // the same, with two bits for each value
};
inline constexpr int kCodecCount = 10;

// Bits of Codec::options; of TopK and TopK2Bit the options are log2 of the values kept in a chunk.
inline constexpr uint8_t kStochastic = 1;  // round up or down at random, in proportion
inline constexpr uint8_t kMseClip = 2;     // the scale of least squared error: may clip the largest
inline constexpr uint8_t kHadamard = 4;    // rotate groups of 128 first, to spread an outlier

struct Codec {
  CodecId id = CodecId::None;
  uint8_t options = 0;
  bool operator==(const Codec&) const = default;
  bool has(uint8_t option) const { return (options & option) != 0; }
};

struct CodecOptionName {
  uint8_t option;
  const char* name;
};
inline constexpr std::array kCodecOptionNames = {
    CodecOptionName{kMseClip, "mse_clip"},
    CodecOptionName{kHadamard, "hadamard"},
    CodecOptionName{kStochastic, "stochastic"},
};

const char* codec_id_name(CodecId id);
// "int8", "int4:hadamard:stochastic", "topk:64": what parse_codec() of quantization/codec.h reads.
std::string codec_name(Codec codec);

}  // namespace pccl
