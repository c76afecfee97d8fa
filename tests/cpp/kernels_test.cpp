// Every kernel on every target against the scalar reference: the same bytes.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "base/types.h"
#include "kernels/finite.h"
#include "kernels/half.h"
#include "kernels/reduce.h"
#include "kernels_reference.h"

namespace {

using namespace pccl;
using namespace pccl::reference;

constexpr uint64_t kSeed = 20240611;
constexpr std::array<size_t, 13> kCounts = {0, 1, 2, 3, 7, 8, 31, 63, 64, 65, 255, 1000, 4099};
constexpr std::array<size_t, 6> kSourceCounts = {1, 2, 3, 4, 8, 33};

using Random = std::mt19937_64;

std::vector<std::string> available_targets() {
  std::vector<std::string> names;
  for (const char* name : {"baseline", "x86-64-v2", "x86-64-v3", "x86-64-v4"}) {
    if (kernels::select_target(name)) names.push_back(name);
  }
  return names;
}

template <class T>
Bytes bytes_of(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  if (!values.empty()) std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// ---- Inputs ----

// Mostly numbers whose sum depends on the order; one in fifty is any bit pattern or a special one.
template <class T, class Bits>
T random_float(Random& random) {
  constexpr T kInfinity = std::numeric_limits<T>::infinity();
  constexpr T kTiny = std::numeric_limits<T>::denorm_min();
  const std::array<T, 8> specials = {T{0},  -T{0},        kInfinity, -kInfinity,
                                     kTiny, T{3} * kTiny, T{1},      std::numeric_limits<T>::max()};
  const uint64_t bits = random();
  if (bits % 100 == 0) return as<T>(static_cast<Bits>(random()));
  if (bits % 100 == 1) return specials[(bits >> 32) % specials.size()];
  if (bits % 400 == 2) return std::copysign(std::numeric_limits<T>::quiet_NaN(), T{-1});
  const T magnitude =
      std::ldexp(T{1} + static_cast<T>(bits >> 40), static_cast<int>(bits % 7) - 26);
  return (bits & 128) != 0 ? magnitude : -magnitude;
}

Bytes random_elements(DataType dtype, size_t count, Random& random) {
  Bytes bytes(count * element_bytes(dtype));
  const bool is_single = dtype == DataType::Float32 || dtype == DataType::Complex64;
  const bool is_double = dtype == DataType::Float64 || dtype == DataType::Complex128;
  const bool is_half = dtype == DataType::Float16 || dtype == DataType::BFloat16;
  const size_t step = is_single ? 4 : is_double ? 8 : is_half ? 2 : 1;
  for (size_t offset = 0; offset < bytes.size(); offset += step) {
    std::byte* at = bytes.data() + offset;
    if (is_single) Same<uint32_t>::store(at, as<uint32_t>(random_float<float, uint32_t>(random)));
    if (is_double) Same<uint64_t>::store(at, as<uint64_t>(random_float<double, uint64_t>(random)));
    if (is_half) {
      const HalfShape shape = dtype == DataType::Float16 ? kFloat16Shape : kBFloat16Shape;
      const bool any_pattern = random() % 50 == 0;
      const uint16_t number = reference_encode(shape, random_float<float, uint32_t>(random));
      Same<uint16_t>::store(at, any_pattern ? static_cast<uint16_t>(random()) : number);
    }
    if (step == 1) *at = static_cast<std::byte>(random());
    if (dtype == DataType::Bool && random() % 2 == 0) *at = std::byte{0};
  }
  return bytes;
}

std::string describe(const std::string& target, DataType dtype, ReduceOp op, size_t sources,
                     size_t count, int aliased, int64_t divisor) {
  return target + " " + std::string(data_type_name(dtype)) + " " + std::string(reduce_op_name(op)) +
         " sources " + std::to_string(sources) + " count " + std::to_string(count) + " aliased " +
         std::to_string(aliased) + " divisor " + std::to_string(divisor);
}

// Reduce into a buffer that is source `aliased` (-1: none), `shift` bytes off alignment, with guard
// bytes behind; whether the bytes are `expected` and nothing else changed.
bool reduce_gives(const Bytes& expected, const std::vector<Bytes>& sources, size_t count,
                  DataType dtype, ReduceOp op, int64_t divisor, int aliased, size_t shift) {
  constexpr size_t kGuardBytes = 64;
  constexpr std::byte kGuard{0xa5};
  Bytes buffer(shift + expected.size() + kGuardBytes, kGuard);
  std::byte* target = buffer.data() + shift;
  std::vector<const void*> pointers;
  for (const Bytes& source : sources) pointers.push_back(source.data());
  if (aliased >= 0) {
    const Bytes& source = sources[static_cast<size_t>(aliased)];
    std::copy(source.begin(), source.end(), target);
    pointers[static_cast<size_t>(aliased)] = target;
  }
  kernels::reduce(target, pointers, count, dtype, op, divisor);
  const auto is_guard = [](std::byte byte) { return byte == kGuard; };
  return std::equal(expected.begin(), expected.end(), target) &&
         std::all_of(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(shift),
                     is_guard) &&
         std::all_of(buffer.end() - kGuardBytes, buffer.end(), is_guard);
}

void check_every_target_and_alias(DataType dtype, ReduceOp op, size_t source_count, size_t count,
                                  int64_t divisor, Random& random) {
  std::vector<Bytes> sources;
  for (size_t k = 0; k < source_count; ++k) {
    sources.push_back(random_elements(dtype, count, random));
  }
  const std::vector<Bytes> untouched = sources;
  const Bytes expected = reference_reduce(sources, count, dtype, op, divisor);
  for (const std::string& target : available_targets()) {
    kernels::select_target(target);
    for (int aliased = -1; aliased < static_cast<int>(source_count); ++aliased) {
      const size_t shift = static_cast<size_t>(aliased + 1) % 2;
      if (!reduce_gives(expected, sources, count, dtype, op, divisor, aliased, shift)) {
        FAIL(describe(target, dtype, op, source_count, count, aliased, divisor));
      }
    }
  }
  CHECK(sources == untouched);
}

template <class T>
std::vector<T> reduced(const std::vector<std::vector<T>>& sources, DataType dtype, ReduceOp op,
                       int64_t divisor = 1) {
  std::vector<const void*> pointers;
  for (const std::vector<T>& source : sources) pointers.push_back(source.data());
  std::vector<T> out(sources[0].size());
  const size_t count = out.size() * sizeof(T) / element_bytes(dtype);
  kernels::reduce(out.data(), pointers, count, dtype, op, divisor);
  return out;
}

}  // namespace

TEST_CASE("every target gives the bytes of a scalar fold, whichever source the target is") {
  constexpr std::array<int64_t, 6> kDivisors = {2, 1, 3, 7, 300, int64_t{1} << 33};
  INFO("seed ", kSeed);
  Random random(kSeed);
  for (int d = 0; d < kDataTypeCount; ++d) {
    for (int o = 0; o < kReduceOpCount; ++o) {
      const auto dtype = static_cast<DataType>(d);
      const auto op = static_cast<ReduceOp>(o);
      if (!is_reducible(dtype, op)) continue;
      size_t round = 0;
      for (size_t source_count : kSourceCounts) {
        for (size_t count : kCounts) {
          const int64_t divisor = op == ReduceOp::Avg ? kDivisors[round++ % kDivisors.size()] : 1;
          check_every_target_and_alias(dtype, op, source_count, count, divisor, random);
        }
      }
    }
  }
}

TEST_CASE("sources and target at odd addresses give the same bytes") {
  Random random(kSeed);
  constexpr size_t kCount = 1003;
  for (int d = 0; d < kDataTypeCount; ++d) {
    const auto dtype = static_cast<DataType>(d);
    if (!is_reducible(dtype, ReduceOp::Sum)) continue;
    std::vector<Bytes> sources, shifted;
    std::vector<const void*> pointers;
    for (size_t k = 0; k < 6; ++k) {
      sources.push_back(random_elements(dtype, kCount, random));
      shifted.push_back(sources.back());
      shifted.back().insert(shifted.back().begin(), std::byte{});
    }
    for (const Bytes& source : shifted) pointers.push_back(source.data() + 1);
    const Bytes expected = reference_reduce(sources, kCount, dtype, ReduceOp::Sum, 1);
    for (const std::string& target : available_targets()) {
      kernels::select_target(target);
      Bytes out(expected.size() + 1);
      kernels::reduce(out.data() + 1, pointers, kCount, dtype, ReduceOp::Sum);
      CHECK_MESSAGE(std::equal(expected.begin(), expected.end(), out.begin() + 1),
                    describe(target, dtype, ReduceOp::Sum, 6, kCount, -1, 1));
    }
  }
}

TEST_CASE("all 65536 float16 and bfloat16 patterns decode to their value and encode back") {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const auto float16 = static_cast<float>(reference_decode(kFloat16Shape, half));
    const auto bfloat16 = static_cast<float>(reference_decode(kBFloat16Shape, half));
    const float decoded16 = kernels::float16_to_float(half);
    const float decoded_b = kernels::bfloat16_to_float(half);
    const bool same16 = std::isnan(float16) ? std::isnan(decoded16)
                                            : as<uint32_t>(float16) == as<uint32_t>(decoded16);
    const bool same_b = std::isnan(bfloat16) ? std::isnan(decoded_b)
                                             : as<uint32_t>(bfloat16) == as<uint32_t>(decoded_b);
    const bool back16 =
        kernels::float16_from_float(decoded16) == (std::isnan(float16) ? 0x7e00 : half);
    const bool back_b =
        kernels::bfloat16_from_float(decoded_b) == (std::isnan(bfloat16) ? 0x7fc0 : half);
    if (!(same16 && same_b && back16 && back_b)) FAIL_CHECK("pattern ", bits);
  }
}

TEST_CASE("floats encode to the nearest float16 and bfloat16, ties to even") {
  const auto check = [](uint32_t bits) {
    const float value = as<float>(bits);
    const bool same16 =
        kernels::float16_from_float(value) == reference_encode(kFloat16Shape, value);
    const bool same_b =
        kernels::bfloat16_from_float(value) == reference_encode(kBFloat16Shape, value);
    if (!(same16 && same_b)) FAIL_CHECK("float bits ", bits);
  };
  // A sweep over all magnitudes; 9973 is prime, so low bits vary.
  for (uint64_t bits = 0; bits <= 0xffffffffu; bits += 9973) check(static_cast<uint32_t>(bits));
  // Halfway between neighbours of either type, and one float to each side.
  for (uint32_t half = 0; half < 65536; ++half) {
    const auto low = static_cast<uint16_t>(half), high = static_cast<uint16_t>(half + 1);
    const double middle16 =
        (reference_decode(kFloat16Shape, low) + reference_decode(kFloat16Shape, high)) / 2;
    for (int step = -1; step <= 1; ++step) {
      check(as<uint32_t>(static_cast<float>(middle16)) + static_cast<uint32_t>(step));
      check((half << 16) + 0x8000u + static_cast<uint32_t>(step));
    }
  }
  CHECK(kernels::float16_from_float(65519.996f) == 0x7bff);
  CHECK(kernels::float16_from_float(65520.0f) == 0x7c00);
}

TEST_CASE("every float16 pattern adds up the same on every target") {
  Random random(kSeed);
  std::vector<uint16_t> patterns(65536), shuffled;
  for (uint32_t bits = 0; bits < 65536; ++bits) patterns[bits] = static_cast<uint16_t>(bits);
  shuffled = patterns;
  std::shuffle(shuffled.begin(), shuffled.end(), random);
  for (DataType dtype : {DataType::Float16, DataType::BFloat16}) {
    for (ReduceOp op : {ReduceOp::Sum, ReduceOp::Product, ReduceOp::Min, ReduceOp::Avg}) {
      const int64_t divisor = op == ReduceOp::Avg ? 5 : 1;
      const std::vector<Bytes> sources = {bytes_of(patterns), bytes_of(shuffled)};
      const Bytes expected = reference_reduce(sources, patterns.size(), dtype, op, divisor);
      for (const std::string& target : available_targets()) {
        kernels::select_target(target);
        CHECK_MESSAGE(
            bytes_of(reduced<uint16_t>({patterns, shuffled}, dtype, op, divisor)) == expected,
            describe(target, dtype, op, 2, patterns.size(), -1, divisor));
      }
    }
  }
}

TEST_CASE("half types accumulate in float and round once") {
  for (const std::string& target : available_targets()) {
    kernels::select_target(target);
    // 2048 + 1 is a tie that rounds back to 2048 (float16); 256 + 1 likewise (bfloat16).
    for (size_t ones : {2, 4, 8, 10}) {
      std::vector<std::vector<uint16_t>> float16(1, std::vector<uint16_t>(40, 0x6800));
      std::vector<std::vector<uint16_t>> bfloat16(1, std::vector<uint16_t>(40, 0x4380));
      float16.resize(1 + ones, std::vector<uint16_t>(40, 0x3c00));
      bfloat16.resize(1 + ones, std::vector<uint16_t>(40, 0x3f80));
      const auto half_ones = static_cast<uint16_t>(ones / 2);
      CHECK(reduced(float16, DataType::Float16, ReduceOp::Sum)[39] == 0x6800 + half_ones);
      CHECK(reduced(bfloat16, DataType::BFloat16, ReduceOp::Sum)[39] == 0x4380 + half_ones);
    }
  }
}

TEST_CASE("a NaN on either side reaches the result as the one quiet NaN") {
  const float number = 1, infinity = std::numeric_limits<float>::infinity();
  const float nan = as<float>(0xffc12345u), signalling = as<float>(0x7f800001u);
  std::vector<float> left, right;
  for (int repeat = 0; repeat < 9; ++repeat) {
    for (auto [a, b] :
         {std::pair{nan, number}, {number, nan}, {signalling, number}, {nan, signalling}}) {
      left.push_back(a);
      right.push_back(b);
    }
  }
  for (const std::string& target : available_targets()) {
    kernels::select_target(target);
    for (ReduceOp op :
         {ReduceOp::Sum, ReduceOp::Min, ReduceOp::Max, ReduceOp::Product, ReduceOp::Avg}) {
      const int64_t divisor = op == ReduceOp::Avg ? 2 : 1;
      for (float value : reduced<float>({left, right}, DataType::Float32, op, divisor)) {
        CHECK(as<uint32_t>(value) == 0x7fc00000u);
      }
    }
    const float none =
        reduced<float>({{infinity}, {-infinity}}, DataType::Float32, ReduceOp::Sum)[0];
    CHECK(as<uint32_t>(none) == 0x7fc00000u);
    CHECK(reduced<float>({{infinity}, {1}}, DataType::Float32, ReduceOp::Min)[0] == 1);
    CHECK(reduced<float>({{-infinity}, {1}}, DataType::Float32, ReduceOp::Sum)[0] == -infinity);
  }
}

TEST_CASE("the earlier of two zeros wins Min and Max, and -0 - 0 stays -0") {
  for (const std::string& target : available_targets()) {
    kernels::select_target(target);
    for (ReduceOp op : {ReduceOp::Min, ReduceOp::Max}) {
      const auto zeros = reduced<float>({{-0.0f, 0.0f}, {0.0f, -0.0f}}, DataType::Float32, op);
      CHECK(std::signbit(zeros[0]));
      CHECK_FALSE(std::signbit(zeros[1]));
    }
    CHECK(std::signbit(reduced<float>({{-0.0f}, {-0.0f}}, DataType::Float32, ReduceOp::Sum)[0]));
  }
}

TEST_CASE("integer sums wrap and integer averages truncate towards zero") {
  std::vector<int16_t> values(65536), zeros(65536);
  for (int i = 0; i < 65536; ++i) values[static_cast<size_t>(i)] = static_cast<int16_t>(i - 32768);
  const std::vector<int32_t> edges = {
      std::numeric_limits<int32_t>::min(), -2147483647, -7, -1, 0, 1, 7,
      std::numeric_limits<int32_t>::max()};
  for (const std::string& target : available_targets()) {
    kernels::select_target(target);
    CHECK(reduced<int8_t>({{100, -7}, {100, 0}}, DataType::Int8, ReduceOp::Avg, 3) ==
          std::vector<int8_t>{-18, -2});
    CHECK(reduced<int8_t>({{-128}, {0}}, DataType::Int8, ReduceOp::Avg, 200)[0] == 0);
    for (int64_t divisor : {2, 3, 5, 7, 10, 41, 127, 255, 32767, 32768, 65535}) {
      const auto averages =
          reduced<int16_t>({values, zeros}, DataType::Int16, ReduceOp::Avg, divisor);
      const auto single = reduced<int16_t>({values}, DataType::Int16, ReduceOp::Avg, divisor);
      std::vector<int16_t> expected;
      for (int16_t value : values) expected.push_back(static_cast<int16_t>(value / divisor));
      CHECK(averages == expected);
      CHECK(single == expected);
      const auto wide = reduced<int32_t>({edges}, DataType::Int32, ReduceOp::Avg, divisor);
      for (size_t i = 0; i < edges.size(); ++i) CHECK(wide[i] == edges[i] / divisor);
    }
    constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();
    CHECK(reduced<int32_t>({edges}, DataType::Int32, ReduceOp::Avg, kHuge) ==
          std::vector<int32_t>(8));
    CHECK(reduced<int64_t>({{kHuge}}, DataType::Int64, ReduceOp::Avg, kHuge)[0] == 1);
    CHECK(reduced<uint64_t>({{~uint64_t{0}}}, DataType::UInt64, ReduceOp::Avg, 2)[0] == kHuge);
    CHECK(reduced<uint16_t>({{65535}, {65535}}, DataType::UInt16, ReduceOp::Product)[0] == 1);
  }
}

TEST_CASE("booleans come out as 0 or 1, a single source included") {
  for (const std::string& target : available_targets()) {
    kernels::select_target(target);
    const std::vector<uint8_t> a = {0, 0, 1, 2, 0x80}, b = {0, 3, 0, 4, 1};
    CHECK(reduced<uint8_t>({a}, DataType::Bool, ReduceOp::Band) ==
          std::vector<uint8_t>{0, 0, 1, 1, 1});
    CHECK(reduced<uint8_t>({a, b}, DataType::Bool, ReduceOp::Product) ==
          std::vector<uint8_t>{0, 0, 0, 1, 1});
    CHECK(reduced<uint8_t>({a, b}, DataType::Bool, ReduceOp::Sum) ==
          std::vector<uint8_t>{0, 1, 1, 1, 1});
    CHECK(reduced<uint8_t>({a, b}, DataType::Bool, ReduceOp::Bxor) ==
          std::vector<uint8_t>{0, 1, 1, 0, 0});
  }
}

TEST_CASE("scale multiplies each element, in place too, and PremulSum adds what it gives") {
  Random random(kSeed);
  for (DataType dtype : {DataType::Float64, DataType::Float32, DataType::Float16,
                         DataType::BFloat16, DataType::Complex64, DataType::Complex128}) {
    for (size_t count : kCounts) {
      const Bytes source = random_elements(dtype, count, random);
      const double factor = 1.0 / 3.0;
      Bytes expected(source.size());
      with_codec(dtype, [&](auto codec) {
        using Codec = decltype(codec);
        for (size_t offset = 0; offset < source.size(); offset += Codec::kBytes) {
          using Value = typename Codec::Value;
          const Value value = Codec::load(source.data() + offset);
          if constexpr (std::is_floating_point_v<Value>) {
            Codec::store(expected.data() + offset, value * static_cast<Value>(factor));
          } else if constexpr (!std::is_integral_v<Value>) {
            const auto by = static_cast<typename Value::value_type>(factor);
            Codec::store(expected.data() + offset, {value.real() * by, value.imag() * by});
          }
        }
      });
      const Bytes sum = reference_reduce({expected, source}, count, dtype, ReduceOp::PremulSum, 1);
      for (const std::string& target : available_targets()) {
        kernels::select_target(target);
        Bytes out(source.size() + 1);
        kernels::scale(out.data() + 1, source.data(), count, dtype, factor);
        CHECK(std::equal(expected.begin(), expected.end(), out.begin() + 1));
        std::copy(source.begin(), source.end(), out.begin() + 1);
        kernels::scale(out.data() + 1, out.data() + 1, count, dtype, factor);
        CHECK(std::equal(expected.begin(), expected.end(), out.begin() + 1));
        const std::array<const void*, 2> both = {out.data() + 1, source.data()};
        kernels::reduce(out.data() + 1, both, count, dtype, ReduceOp::PremulSum);
        CHECK(std::equal(sum.begin(), sum.end(), out.begin() + 1));
      }
    }
  }
}

TEST_CASE("the most sources a call may have are folded in order") {
  Random random(kSeed);
  for (DataType dtype : {DataType::Float32, DataType::Float16, DataType::BFloat16}) {
    check_every_target_and_alias(dtype, ReduceOp::Sum, kernels::kSourcesMax, 2500, 1, random);
    check_every_target_and_alias(dtype, ReduceOp::Avg, kernels::kSourcesMax - 1, 2500, 63, random);
  }
}

TEST_CASE("select_target takes what this machine has and refuses the rest") {
  CHECK(available_targets().front() == "baseline");
  for (const std::string& target : available_targets()) {
    CHECK(kernels::select_target(target));
    CHECK(kernels::selected_target() == target);
    if (target == "baseline") continue;
    CHECK(kernels::select_target(target.substr(target.size() - 2)));  // "v3"
    CHECK(kernels::selected_target() == target);
  }
  CHECK_FALSE(kernels::select_target("v"));
  const std::string before(kernels::selected_target());
  CHECK_FALSE(kernels::select_target("nonsense"));
  CHECK_FALSE(kernels::select_target(""));
  CHECK(kernels::selected_target() == before);
}

TEST_CASE("the first element that is no number is found, wherever it lies") {
  const auto check = [](auto zero, DataType dtype, const auto& bad, size_t per_element) {
    for (const size_t count : {size_t{0}, size_t{1}, size_t{13}, size_t{4096}, size_t{9001}}) {
      std::vector<decltype(zero)> numbers(count * per_element, zero);
      CHECK_FALSE(kernels::find_nonfinite(numbers.data(), count, dtype));
      for (const auto value : bad) {
        for (const size_t at : {size_t{0}, count / 2, count - 1}) {
          if (count == 0) continue;
          numbers.assign(count * per_element, zero);
          numbers[at * per_element + per_element - 1] = value;
          CHECK(kernels::find_nonfinite(numbers.data(), count, dtype) == at);
        }
      }
    }
  };
  const std::array<float, 3> floats{NAN, INFINITY, -INFINITY};
  const std::array<double, 3> doubles{NAN, INFINITY, -INFINITY};
  check(3e38F, DataType::Float32, floats, 1);
  check(1e308, DataType::Float64, doubles, 1);
  check(-1.0F, DataType::Complex64, floats, 2);
  check(-1.0, DataType::Complex128, doubles, 2);
  check(uint16_t{0x7BFF}, DataType::Float16, std::array<uint16_t, 3>{0x7C00, 0xFC00, 0x7E01}, 1);
  check(uint16_t{0x7F7F}, DataType::BFloat16, std::array<uint16_t, 3>{0x7F80, 0xFF80, 0xFFC0}, 1);
  const std::vector<uint32_t> integers(100, 0xFFFFFFFFU);
  CHECK_FALSE(kernels::find_nonfinite(integers.data(), 100, DataType::UInt32));
}
