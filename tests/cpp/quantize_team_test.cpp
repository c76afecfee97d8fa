// The algorithm of the CUDA kernels, its lanes one after the other: the bytes of the CPU's kernels.
#include "kernels/quantize_team.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "emulated_team.h"
#include "kernels/cuda_codecs.h"
#include "quantization_values.h"

using namespace codecs;
using namespace pccl::kernels;

namespace {

template <class Format, unsigned kLanes>
void check(const char* name, const Floats& values, uint64_t first_element) {
  CAPTURE(name);
  const Codec codec = parse_codec(name);
  const size_t count = values.size();
  const Bytes expected = encode_all(codec, values, {3, 4, first_element});
  const Floats decoded = decode_all(codec, expected, count);
  const uint64_t stream = mix(mix(3) ^ 4);
  Bytes wire = expected;
  std::fill(wire.begin() + kHeaderBytes, wire.end(), std::byte{0xEE});
  Floats back(count);
  Floats sums = values;
  auto* at = reinterpret_cast<uint8_t*>(wire.data()) + kHeaderBytes;
  EmulatedTeam<kLanes> team;
  for (size_t begin = 0; begin < count; begin += kTileCount) {
    const size_t part = std::min(kTileCount, count - begin);
    TeamTile tile{};
    std::memcpy(tile.values, values.data() + begin, part * sizeof(float));
    const TeamRounding rounding{codec.has(kStochastic), stream, first_element + begin};
    CHECK(encode_tile<Format>(team, tile, part, rounding, at));
    decode_tile<Format>(team, at, part, [&](size_t i, float value) { back[begin + i] = value; });
    decode_tile<Format>(team, at, part, [&](size_t i, float value) {
      sums[begin + i] = add(sums[begin + i], value);
    });
    at += encoded_bytes(codec, DataType::Float32, part) - kHeaderBytes;
  }
  CHECK(wire == expected);
  CHECK(bytes_of(back) == bytes_of(decoded));
  Floats expected_sums = values;
  REQUIRE_FALSE(decode_add(codec, DataType::Float32, expected, count, expected_sums.data()));
  CHECK(bytes_of(sums) == bytes_of(expected_sums));
}

template <unsigned kLanes>
void check_all(const Floats& values) {
  check<Int8Format, kLanes>("int8", values, 0);
  check<Int8Format, kLanes>("int8:stochastic", values, (uint64_t{1} << 32) - 300);
  check<Int6Format, kLanes>("int6", values, 0);
  check<Int6Format, kLanes>("int6:stochastic", values, 7);
  check<Int4Format, kLanes>("int4", values, 0);
  check<Int4Format, kLanes>("int4:stochastic", values, 512);
  check<E4M3Format, kLanes>("fp8_e4m3", values, 0);
  check<E5M2Format, kLanes>("fp8_e5m2", values, 0);
}

}  // namespace

TEST_CASE("a warp of 32 lanes and a single lane write and read the bytes of the CPU") {
  for (const size_t count : {1, 2, 3, 31, 33, 63, 65, 127, 129, 255, 256, 257, 3000}) {
    CAPTURE(count);
    const Floats values = random_floats(count, count);
    check_all<32>(values);
    check_all<1>(values);
  }
}

TEST_CASE("a team finds what is not finite") {
  TeamTile tile{};
  tile.values[200] = kInfinity;
  uint8_t wire[258];
  EmulatedTeam<32> team;
  CHECK_FALSE(encode_tile<Int8Format>(team, tile, 256, {}, wire));
  tile.values[200] = 1;
  CHECK(encode_tile<Int8Format>(team, tile, 256, {}, wire));
}

TEST_CASE("without its library there are no codecs on a GPU, and no error") {
  CHECK(load_cuda_codecs("/nowhere/libpccl_cuda.so") == nullptr);
}
