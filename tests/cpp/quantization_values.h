// What the tests of codecs share: values, and the way there and back.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quantization/codec.h"

namespace codecs {

using namespace pccl;
using namespace pccl::quantization;

using Bytes = std::vector<std::byte>;
using Floats = std::vector<float>;

inline constexpr float kInfinity = std::numeric_limits<float>::infinity();
inline constexpr EncodeKey kKey{7, 11, 0};

inline std::vector<Codec> lossy_codecs() {
  std::vector<Codec> codecs;
  for (const char* text :
       {"bf16", "fp16", "int8", "int8:stochastic", "int6", "int6:stochastic", "int4",
        "int4:stochastic", "int4:mse_clip", "int4:hadamard", "int4:mse_clip:hadamard:stochastic",
        "fp8_e4m3", "fp8_e5m2", "topk:64", "topk:1024", "topk_2bit"}) {
    codecs.push_back(parse_codec(text));
  }
  return codecs;
}

// Of many magnitudes, with runs of zeros and of subnormal numbers.
inline Floats random_floats(size_t count, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (size_t i = 0; i < count; ++i) {
    const int exponent = static_cast<int>(i / 64 % 9) - 4;
    values[i] = std::ldexp(normal(random), exponent);
    if (i / 300 % 7 == 5) values[i] = 0;
    if (i / 300 % 7 == 6) values[i] = std::ldexp(values[i], -140);
    if (i % 97 == 13) values[i] *= 50;
  }
  return values;
}

inline Bytes encode_all(Codec codec, const Floats& values, EncodeKey key = kKey) {
  Bytes wire(encoded_bytes(codec, DataType::Float32, values.size()), std::byte{0xEE});
  REQUIRE_FALSE(encode(codec, DataType::Float32, values.data(), values.size(), key, wire.data()));
  return wire;
}

inline Floats decode_all(Codec codec, const Bytes& wire, size_t count) {
  Floats values(count);
  const auto fault = decode(codec, DataType::Float32, wire, count, values.data());
  REQUIRE_MESSAGE(!fault, codec_name(codec) << ": " << fault.value_or(""));
  return values;
}

inline double relative_error(const Floats& found, const Floats& expected) {
  double error = 0;
  double whole = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    error += std::pow(static_cast<double>(found[i]) - expected[i], 2);
    whole += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(error / whole);
}

inline Bytes bytes_of(const Floats& values) {
  Bytes bytes(values.size() * sizeof(float));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace codecs
