// Codecs: the same bytes on every target, whatever the cuts; what comes back; what is refused.
// Their arithmetic is held against an independent reference in tests/python/test_codecs.py.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/reduce.h"
#include "quantization/codec.h"
#include "quantization_values.h"

namespace {

using namespace pccl;
using namespace pccl::quantization;
using namespace codecs;

constexpr float kMax = std::numeric_limits<float>::max();
constexpr std::array<size_t, 12> kCounts = {0, 1, 2, 3, 31, 33, 127, 129, 255, 256, 257, 4229};

std::vector<std::string> available_targets() {
  std::vector<std::string> names;
  for (const char* name : {"baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4"}) {
    if (kernels::select_target(name)) names.emplace_back(name);
  }
  return names;
}

}  // namespace

TEST_CASE("every target writes the same bytes and reads the same numbers") {
  const auto targets = available_targets();
  REQUIRE(targets.front() == "baseline");
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    for (const size_t count : kCounts) {
      const Floats values = random_floats(count, count + 1);
      kernels::select_target("baseline");
      const Bytes expected = encode_all(codec, values);
      const Floats decoded = decode_all(codec, expected, count);
      Floats sums = values;
      REQUIRE_FALSE(decode_add(codec, DataType::Float32, expected, count, sums.data()));
      for (const std::string& target : targets) {
        CAPTURE(target);
        kernels::select_target(target);
        CHECK(encode_all(codec, values) == expected);
        CHECK(bytes_of(decode_all(codec, expected, count)) == bytes_of(decoded));
        Floats again = values;
        REQUIRE_FALSE(decode_add(codec, DataType::Float32, expected, count, again.data()));
        CHECK(bytes_of(again) == bytes_of(sums));
      }
    }
  }
}

TEST_CASE("a tensor cut at multiples of a block has the tiles of the whole") {
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    const size_t cut = 3 * block_elements(codec);
    const Floats values = random_floats(cut + 900, 5);
    const Floats head(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(cut));
    const Floats tail(values.begin() + static_cast<std::ptrdiff_t>(cut), values.end());
    Bytes parts = encode_all(codec, head);
    const Bytes second = encode_all(codec, tail, {kKey.seed, kKey.step, cut});
    parts.insert(parts.end(), second.begin() + kHeaderBytes, second.end());
    const Bytes whole = encode_all(codec, values);
    CHECK(Bytes(parts.begin() + kHeaderBytes, parts.end()) ==
          Bytes(whole.begin() + kHeaderBytes, whole.end()));
  }
}

TEST_CASE("memory needs no alignment, and nothing beside it is touched") {
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    const size_t count = 777;
    const Floats values = random_floats(count, 3);
    const Bytes expected = encode_all(codec, values);
    Bytes source(count * sizeof(float) + 1);
    std::memcpy(source.data() + 1, values.data(), count * sizeof(float));
    Bytes wire(expected.size() + 3, std::byte{0x5A});
    REQUIRE_FALSE(
        encode(codec, DataType::Float32, source.data() + 1, count, kKey, wire.data() + 1));
    CHECK(Bytes(wire.begin() + 1, wire.end() - 2) == expected);
    CHECK(wire.front() == std::byte{0x5A});
    CHECK(wire[wire.size() - 2] == std::byte{0x5A});
    Bytes target(count * sizeof(float) + 3, std::byte{0x5A});
    REQUIRE_FALSE(decode(codec, DataType::Float32, expected, count, target.data() + 1));
    CHECK(Bytes(target.begin() + 1, target.end() - 2) ==
          bytes_of(decode_all(codec, expected, count)));
    CHECK(target.front() == std::byte{0x5A});
    CHECK(target[target.size() - 2] == std::byte{0x5A});
  }
}

TEST_CASE("what comes back is close, and stays when it is sent once more") {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal;
  Floats values(20000);
  for (float& value : values) value = normal(random);
  const std::array<std::pair<const char*, double>, 8> limits = {{{"bf16", 0.002},
                                                                 {"fp16", 0.0003},
                                                                 {"int8", 0.0075},
                                                                 {"int6", 0.027},
                                                                 {"int4", 0.105},
                                                                 {"int4:mse_clip", 0.1},
                                                                 {"fp8_e4m3", 0.028},
                                                                 {"fp8_e5m2", 0.056}}};
  for (const auto& row : limits) {
    const Codec codec = parse_codec(row.first);
    const double limit = row.second;
    CAPTURE(row.first);
    const Floats once = decode_all(codec, encode_all(codec, values), values.size());
    CHECK(relative_error(once, values) < limit);
    CHECK(relative_error(once, values) > limit / 3);
  }
}

TEST_CASE("stochastic rounding is right on average, and depends on seed, step and index") {
  const Codec codec = parse_codec("int4:stochastic");
  Floats values(8192, 0.3F);
  for (size_t i = 0; i < values.size(); i += 32) values[i] = 7;  // the scale is 1
  double sum = 0;
  const Floats found = decode_all(codec, encode_all(codec, values), values.size());
  for (size_t i = 0; i < values.size(); ++i) sum += i % 32 == 0 ? 0 : found[i];
  CHECK(std::abs(sum / (8192.0 * 31 / 32) - 0.3) < 0.02);
  CHECK(found[0] == 7);
  const Bytes wire = encode_all(codec, values);
  CHECK(encode_all(codec, values, kKey) == wire);
  CHECK(encode_all(codec, values, {8, 11, 0}) != wire);
  CHECK(encode_all(codec, values, {7, 12, 0}) != wire);
  CHECK(encode_all(codec, values, {7, 11, 1}) != wire);
}

TEST_CASE("the index of stochastic rounding goes on past 2^32") {
  const Codec codec = parse_codec("int8:stochastic");
  const Floats values = random_floats(1024, 9);
  const uint64_t begin = (uint64_t{1} << 32) - 300;
  const Bytes whole = encode_all(codec, values, {1, 1, begin});
  for (size_t tile = 0; tile < 4; ++tile) {
    const auto first = values.begin() + static_cast<std::ptrdiff_t>(tile * 256);
    const Bytes part = encode_all(codec, Floats(first, first + 256), {1, 1, begin + tile * 256});
    CHECK(std::memcmp(part.data() + kHeaderBytes, whole.data() + kHeaderBytes + tile * 258, 258) ==
          0);
  }
}

TEST_CASE("zeros, tiny, constant and huge values come back as numbers") {
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    const bool is_sparse = block_elements(codec) > 256;
    for (const size_t count : {1, 5, 256, 300}) {
      const auto back = [&](float value) {
        const Floats values(count, value);
        return decode_all(codec, encode_all(codec, values), count);
      };
      for (const float value : {0.0F, -0.0F, 1e-45F, 1e-38F}) {
        for (const float found : back(value)) CHECK(std::abs(found) <= 1.01e-38F);
      }
      if (codec.id == CodecId::Float16) {
        for (const float found : back(kMax)) CHECK(found == 65504);
        continue;
      }
      for (const float value : {1.0F, -3e-20F, kMax, -kMax}) {
        for (const float found : back(value)) {
          CHECK(std::isfinite(found));
          if (is_sparse || (codec.has(kHadamard) && std::abs(value) > 1e38F)) continue;
          // A short group that is rotated shares its error with the zeros past the end.
          const double limit = codec.has(kHadamard) ? 0.6 : 0.2;
          CHECK(std::abs(static_cast<double>(found) / value - 1) < limit);
        }
      }
    }
  }
}

TEST_CASE("a value that is not finite is found, and its bytes are refused") {
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    for (const float bad : {kInfinity, -kInfinity, std::nanf("")}) {
      for (const size_t index : {0, 255, 256, 599}) {
        Floats values = random_floats(600, 2);
        values[index] = bad;
        Bytes wire(encoded_bytes(codec, DataType::Float32, 600));
        CHECK(encode(codec, DataType::Float32, values.data(), 600, kKey, wire.data()) == index);
        CHECK(find_fault(codec, DataType::Float32, wire, 600));
        CHECK(encode_sums(codec, values.data(), 600, 3, kKey, wire.data()) == index);
      }
    }
    const std::array<double, 3> beyond = {1, 1e300, 2};
    Bytes wire(encoded_bytes(codec, DataType::Float64, 3));
    CHECK(encode(codec, DataType::Float64, beyond.data(), 3, kKey, wire.data()) == 1);
  }
}

TEST_CASE("forged bytes are an error, and nothing is written") {
  std::mt19937_64 random(4);
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    const size_t count = 700;
    const Bytes wire = encode_all(codec, random_floats(count, 6));
    const auto is_refused = [&](const Bytes& bytes, size_t elements) {
      Floats target(elements + 1, 42);
      Floats sums = target;
      const bool refused =
          decode(codec, DataType::Float32, bytes, elements, target.data()).has_value();
      CHECK(refused ==
            decode_add(codec, DataType::Float32, bytes, elements, sums.data()).has_value());
      if (refused) CHECK((target == Floats(elements + 1, 42) && sums == target));
      for (const float value : target) CHECK(std::isfinite(value));
      for (const float value : sums) CHECK(std::isfinite(value));
      return refused;
    };
    CHECK_FALSE(is_refused(wire, count));
    CHECK(is_refused(wire, count - 1));
    CHECK(is_refused(wire, count + 1));
    CHECK(is_refused({}, 0));
    CHECK(is_refused(Bytes(wire.begin(), wire.end() - 1), count));
    for (size_t i = 0; i < kHeaderBytes; ++i) {
      Bytes forged = wire;
      forged[i] ^= std::byte{1};
      CHECK(is_refused(forged, count));
    }
    // Whatever passes decodes to numbers.
    for (int round = 0; round < 50; ++round) {
      Bytes forged = wire;
      for (size_t i = kHeaderBytes; i < forged.size(); ++i) {
        if (random() % 8 == 0) forged[i] = static_cast<std::byte>(random());
      }
      is_refused(forged, count);
    }
  }
}

TEST_CASE("every scale that a decoder takes gives numbers with every code") {
  for (const char* text : {"int8", "int6", "int4", "int4:hadamard", "fp8_e4m3", "fp8_e5m2"}) {
    CAPTURE(text);
    const Codec codec = parse_codec(text);
    // All codes 0x80 or 0x88: the lowest integer; of 8-bit floats the largest finite one.
    const Bytes like = encode_all(codec, Floats(256, 1.0F));
    const size_t scales = codec.id == CodecId::Int8   ? 1
                          : codec.id == CodecId::Int6 ? 4
                          : codec.id == CodecId::Int4 ? 8
                                                      : 2;
    size_t taken = 0;
    for (uint32_t scale = 0; scale < 0x10000; scale += 1) {
      Bytes forged(like.size(), codec.id == CodecId::Float8E4M3   ? std::byte{0x7E}
                                : codec.id == CodecId::Float8E5M2 ? std::byte{0x7B}
                                : codec.id == CodecId::Int8       ? std::byte{0x80}
                                                                  : std::byte{0x88});
      std::memcpy(forged.data(), like.data(), kHeaderBytes);
      for (size_t block = 0; block < scales; ++block) {
        const auto bits = static_cast<uint16_t>(scale);
        std::memcpy(forged.data() + kHeaderBytes + 2 * block, &bits, sizeof(bits));
      }
      Floats values(256);
      if (decode(codec, DataType::Float32, forged, 256, values.data())) continue;
      ++taken;
      bool are_finite = true;
      for (const float value : values) are_finite = are_finite && std::isfinite(value);
      CHECK(are_finite);
    }
    CHECK(taken > 20000);
    CHECK(taken < 33000);
  }
}

TEST_CASE("other float types come through float32, and sums are divided") {
  const size_t count = 515;
  const Floats values = random_floats(count, 8);
  const std::vector<double> doubles(values.begin(), values.end());
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    const Bytes expected = encode_all(codec, values);
    Bytes wire(expected.size());
    REQUIRE_FALSE(encode(codec, DataType::Float64, doubles.data(), count, kKey, wire.data()));
    CHECK(wire == expected);
    std::vector<double> back(count);
    REQUIRE_FALSE(decode(codec, DataType::Float64, wire, count, back.data()));
    CHECK(Floats(back.begin(), back.end()) == decode_all(codec, expected, count));

    // A power of two goes another way, to the same result.
    for (const int divisor : {3, 8}) {
      Floats shares(count);
      for (size_t i = 0; i < count; ++i) shares[i] = values[i] / static_cast<float>(divisor);
      REQUIRE_FALSE(encode_sums(codec, values.data(), count, divisor, kKey, wire.data()));
      CHECK(wire == encode_all(codec, shares));
    }

    for (const DataType dtype : {DataType::Float16, DataType::BFloat16}) {
      const Codec half = parse_codec(dtype == DataType::Float16 ? "fp16" : "bf16");
      const Bytes halves = encode_all(half, values);
      const Floats rounded = decode_all(half, halves, count);
      REQUIRE_FALSE(encode(codec, dtype, halves.data() + kHeaderBytes, count, kKey, wire.data()));
      CHECK(wire == encode_all(codec, rounded));
      Floats sums(count);
      widen(dtype, halves.data() + kHeaderBytes, count, sums.data());
      CHECK(bytes_of(sums) == bytes_of(rounded));
      widen_add(dtype, halves.data() + kHeaderBytes, count, sums.data());
      CHECK(sums[100] == 2 * rounded[100]);
    }
  }
}

TEST_CASE("none moves every type as it is") {
  const Codec none = parse_codec("none");
  const std::vector<int16_t> values = {1, -2, 3};
  Bytes wire(encoded_bytes(none, DataType::Int16, 3));
  CHECK(wire.size() == kHeaderBytes + 6);
  REQUIRE_FALSE(encode(none, DataType::Int16, values.data(), 3, kKey, wire.data()));
  std::vector<int16_t> back(3);
  REQUIRE_FALSE(decode(none, DataType::Int16, wire, 3, back.data()));
  CHECK(back == values);
  CHECK(decode(none, DataType::UInt16, wire, 3, back.data()));
}

TEST_CASE("a sparse codec sends the largest of each chunk where they are") {
  Floats values(5000, 0.001F);
  values[7] = 3;
  values[4095] = -5;
  values[4096] = 1;
  const Codec top = parse_codec("topk:2");
  const Bytes wire = encode_all(top, values);
  CHECK(wire.size() == kHeaderBytes + 2 * (3 + 4));
  Floats expected(5000);
  expected[7] = 3;
  expected[4095] = -5;
  expected[4096] = 1;
  expected[4097] =
      decode_all(parse_codec("bf16"), encode_all(parse_codec("bf16"), values), 5000)[0];
  CHECK(decode_all(top, wire, 5000) == expected);
  Floats sums(5000, 1);
  REQUIRE_FALSE(decode_add(top, DataType::Float32, wire, 5000, sums.data()));
  CHECK(sums[7] == 4);
  CHECK(sums[8] == 1);

  // Two sizes: the mean of those up to the mean of all, and that of the others.
  Floats few(300);
  few[0] = 1;
  few[10] = -2;
  few[20] = 8;
  few[299] = -10;
  const Codec two_bits = parse_codec("topk_2bit:4");
  const Floats found = decode_all(two_bits, encode_all(two_bits, few), 300);
  CHECK(found[0] == 1.5F);
  CHECK(found[10] == -1.5F);
  CHECK(found[20] == 9);
  CHECK(found[299] == -9);
  CHECK(parse_codec("topk_2bit") == parse_codec("topk_2bit:64"));
  CHECK_THROWS_AS(parse_codec("topk:65"), std::invalid_argument);
}

TEST_CASE("names of codecs go there and back; wrong ones are told what there is") {
  for (const Codec codec : lossy_codecs()) {
    CHECK(parse_codec(codec_name(codec)) == codec);
    CHECK(is_known(codec));
    CHECK_NOTHROW(check_dtype(codec, DataType::BFloat16));
    CHECK_THROWS_AS(check_dtype(codec, DataType::Int32), std::invalid_argument);
  }
  CHECK_NOTHROW(check_dtype(parse_codec("none"), DataType::Int32));
  for (const char* text : {"", "int3", "int8:hadamard", "int4:", "int4::hadamard", "INT8"}) {
    CAPTURE(text);
    CHECK_THROWS_WITH_AS(parse_codec(text), doctest::Contains("int4[:mse_clip:hadamard"),
                         std::invalid_argument);
  }
  CHECK_FALSE(is_known({static_cast<CodecId>(77), 0}));
  CHECK_FALSE(is_known({CodecId::Int8, kHadamard}));
}
