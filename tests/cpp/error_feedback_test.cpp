// Error feedback: what a codec loses is sent later, and what the estimate of EF21 comes to.
#include "quantization/error_feedback.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "quantization_values.h"

using namespace pccl;
using namespace pccl::quantization;
using namespace codecs;

TEST_CASE("with feedback nothing is lost in the end") {
  const size_t count = 40000;
  const Floats values = random_floats(count, 12);
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    Floats residual(count);
    std::vector<double> sent(count);
    Bytes wire(encoded_bytes(codec, DataType::Float32, count));
    const int rounds = 5;
    for (int round = 0; round < rounds; ++round) {
      const EncodeKey key{1, static_cast<uint64_t>(round), 0};
      REQUIRE_FALSE(encode_with_feedback(codec, DataType::Float32, values.data(), count, 2, key,
                                         residual.data(), wire.data()));
      const Floats decoded = decode_all(codec, wire, count);
      for (size_t i = 0; i < count; ++i) sent[i] += decoded[i];
    }
    double wrong = 0;
    for (size_t i = 0; i < count; ++i) {
      const double whole = rounds * static_cast<double>(values[i]) / 2;
      wrong = std::max(wrong, std::abs(sent[i] + residual[i] - whole) / (std::abs(whole) + 1));
    }
    CHECK(wrong < 1e-5);
    CHECK(relative_error(residual, Floats(count, 1)) > 0);
  }
}

TEST_CASE("what was lost of sums is what their wire has not") {
  const size_t count = 40000;
  const Floats sums = random_floats(count, 12);
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    Bytes wire(encoded_bytes(codec, DataType::Float32, count));
    REQUIRE_FALSE(encode_sums(codec, sums.data(), count, 3, kKey, wire.data()));
    Floats lost(count, kInfinity);
    find_lost(codec, sums.data(), count, 3, wire.data(), lost.data());
    const Floats decoded = decode_all(codec, wire, count);
    double wrong = 0;
    for (size_t i = 0; i < count; ++i) {
      const double whole = sums[i];
      wrong = std::max(wrong, std::abs(3.0 * decoded[i] + lost[i] - whole) / (std::abs(whole) + 1));
    }
    CHECK(wrong < 1e-5);
  }
}

TEST_CASE("EF21 brings the estimate to the values, the same at sender and receiver") {
  const size_t count = 20000;
  std::mt19937_64 random(3);
  std::normal_distribution<float> normal;
  Floats values(count);
  for (float& value : values) value = normal(random);
  for (const char* text : {"int4", "topk:1024"}) {
    CAPTURE(text);
    const Codec codec = parse_codec(text);
    Floats estimate(count);
    Floats receiver(count);
    Bytes wire(encoded_bytes(codec, DataType::Float32, count));
    double last = 1.01;
    for (int round = 0; round < 4; ++round) {
      REQUIRE_FALSE(encode_difference(codec, DataType::Float32, values.data(), count, kKey,
                                      estimate.data(), wire.data()));
      REQUIRE_FALSE(decode_add(codec, DataType::Float32, wire, count, receiver.data()));
      CHECK(bytes_of(receiver) == bytes_of(estimate));
      const double error = relative_error(estimate, values);
      CHECK(error < 0.7 * last);
      last = error;
    }
  }
}

TEST_CASE("a value that is not finite leaves the residual as it was") {
  for (const Codec codec : lossy_codecs()) {
    CAPTURE(codec_name(codec));
    Floats values = random_floats(40000, 1);
    values[39000] = kInfinity;
    Floats residual = random_floats(40000, 2);
    const Floats before = residual;
    Bytes wire(encoded_bytes(codec, DataType::Float32, 40000));
    CHECK(encode_with_feedback(codec, DataType::Float32, values.data(), 40000, 1, kKey,
                               residual.data(), wire.data()) == 39000);
    CHECK(encode_difference(codec, DataType::Float32, values.data(), 40000, kKey, residual.data(),
                            wire.data()) == 39000);
    CHECK(residual == before);
    CHECK(find_fault(codec, DataType::Float32, wire, 40000));
  }
}
