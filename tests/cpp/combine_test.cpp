// What an owner encodes in one pass: the bytes that decoding, adding and encoding one after the
// other give, on every target, whatever the codec, the length and the number of contributions.
#include <doctest/doctest.h>

#include <array>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/reduce.h"
#include "quantization/codec.h"
#include "quantization_values.h"

namespace {

using namespace codecs;
using pccl::kernels::select_target;

constexpr double kDivisor = 6;
constexpr std::array<const char*, 4> kTargets = {"baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4"};

std::vector<Codec> dense_codecs() {
  std::vector<Codec> codecs = lossy_codecs();
  std::erase_if(codecs, [](Codec codec) { return codec_name(codec).starts_with("topk"); });
  return codecs;
}

std::vector<Bytes> wires_of(Codec codec, size_t count, size_t contributions) {
  std::vector<Bytes> wires;
  for (size_t i = 0; i < contributions; ++i) {
    wires.push_back(encode_all(codec, random_floats(count, 100 + i), {i, 1, 0}));
  }
  return wires;
}

std::vector<std::span<const std::byte>> spans_of(const std::vector<Bytes>& wires) {
  return {wires.begin(), wires.end()};
}

// One after the other; nullopt: a contribution is refused, or the sum is not finite.
std::optional<Bytes> one_by_one(Codec codec, Floats& sums, const std::vector<Bytes>& wires) {
  for (const Bytes& wire : wires) {
    if (decode_add(codec, DataType::Float32, wire, sums.size(), sums.data())) return std::nullopt;
  }
  Bytes wire(encoded_bytes(codec, DataType::Float32, sums.size()));
  if (encode_sums(codec, sums.data(), sums.size(), kDivisor, kKey, wire.data()))
    return std::nullopt;
  return wire;
}

void check(Codec codec, size_t count, size_t contributions) {
  const Floats own = random_floats(count, 3);
  std::vector<Bytes> wires = wires_of(codec, count, contributions);
  // Bits past the end that no sender sets.
  if (!wires.empty() && count > 0) wires.back().back() ^= std::byte{0x30};
  const auto spans = spans_of(wires);
  const Contributions all{DataType::Float32, own.data(), count, spans};
  Floats expected_sums = own;
  const std::optional<Bytes> expected = one_by_one(codec, expected_sums, wires);
  for (const char* target : kTargets) {
    if (!select_target(target)) continue;
    CAPTURE(target);
    Bytes wire(encoded_bytes(codec, DataType::Float32, count) + 1, std::byte{0x5A});
    Floats sums(count + 1, 42);
    const auto fault = combine(codec, all, kDivisor, kKey, wire.data(), sums.data());
    CHECK(fault.has_value() != expected.has_value());
    if (!expected) continue;
    CHECK(wire.back() == std::byte{0x5A});
    CHECK(sums.back() == 42);
    wire.pop_back();
    sums.pop_back();
    CHECK(wire == *expected);
    CHECK(bytes_of(sums) == bytes_of(expected_sums));
    // In place, and without a wish for the sums.
    Floats in_place = own;
    const Contributions same{DataType::Float32, in_place.data(), count, spans};
    CHECK_FALSE(combine(codec, same, kDivisor, kKey, wire.data(), in_place.data()));
    CHECK(bytes_of(in_place) == bytes_of(expected_sums));
    CHECK_FALSE(combine(codec, all, kDivisor, kKey, wire.data()));
    CHECK(wire == *expected);
  }
}

}  // namespace

TEST_CASE("one pass gives the bytes of decoding, adding and encoding one after the other") {
  const std::string selected(pccl::kernels::selected_target());
  for (const Codec codec : dense_codecs()) {
    CAPTURE(codec_name(codec));
    for (const size_t count : {0, 1, 31, 129, 255, 256, 257, 1029}) {
      CAPTURE(count);
      for (const size_t contributions : {0, 1, 2, 7, 8, 15, 16, 17, 33}) {
        CAPTURE(contributions);
        check(codec, count, contributions);
      }
    }
  }
  select_target(selected);
}

TEST_CASE("the first contribution may be of any float type") {
  const Codec codec = parse_codec("int8");
  const Floats own = random_floats(700, 4);
  const std::vector<Bytes> wires = wires_of(codec, 700, 3);
  const auto spans = spans_of(wires);
  const std::vector<double> doubles(own.begin(), own.end());
  Bytes found(encoded_bytes(codec, DataType::Float32, 700));
  Bytes expected = found;
  const Contributions of_floats{DataType::Float32, own.data(), 700, spans};
  const Contributions of_doubles{DataType::Float64, doubles.data(), 700, spans};
  CHECK_FALSE(combine(codec, of_floats, 1, kKey, expected.data()));
  CHECK_FALSE(combine(codec, of_doubles, 1, kKey, found.data()));
  CHECK(found == expected);
}

TEST_CASE("a forged contribution and a sum that is not finite are named") {
  for (const Codec codec : dense_codecs()) {
    CAPTURE(codec_name(codec));
    const size_t count = 700;
    Floats own = random_floats(count, 3);
    std::vector<Bytes> wires = wires_of(codec, count, 19);
    auto spans = spans_of(wires);
    Bytes wire(encoded_bytes(codec, DataType::Float32, count));
    const auto run = [&] {
      return combine(codec, {DataType::Float32, own.data(), count, spans}, 2, kKey, wire.data());
    };
    REQUIRE_FALSE(run());
    spans[5] = spans[5].first(spans[5].size() - 1);
    CHECK(run()->wire == 5);
    spans[5] = wires[5];
    // A tile that is no first one gets a scale, or a value, that none has.
    const size_t tile = (encoded_bytes(codec, DataType::Float32, 512) - kHeaderBytes) / 2;
    const size_t at = kHeaderBytes + tile;
    const std::array<std::byte, 2> kept = {wires[18][at], wires[18][at + 1]};
    wires[18][at] = wires[18][at + 1] = std::byte{0xFF};
    const auto fault = run();
    REQUIRE(fault);
    CHECK_FALSE(fault->element);
    CHECK(fault->wire == 18);
    CHECK(fault->fault.find("no sender") != std::string::npos);
    wires[18][at] = kept[0];
    wires[18][at + 1] = kept[1];
    own[300] = kInfinity;
    const auto infinite = run();
    REQUIRE(infinite);
    CHECK(infinite->element == 300);
    CHECK(find_fault(codec, DataType::Float32, wire, count));
  }
}
