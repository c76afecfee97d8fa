// Encoded segments: what a decoder takes is numbers, and what it refuses leaves no trace.
#include <cmath>

#include "fuzz.h"
#include "quantization/codec.h"

using namespace pccl;
using namespace pccl::quantization;

namespace {

constexpr DataType kTypes[] = {DataType::Float32, DataType::Float64, DataType::Float16,
                               DataType::BFloat16};

}  // namespace

std::vector<fuzz::Bytes> make_seeds() {
  std::vector<fuzz::Bytes> seeds;
  std::vector<float> values(300);
  for (size_t i = 0; i < values.size(); ++i) values[i] = std::sin(static_cast<float>(i * i));
  for (const char* name : {"none", "bf16", "fp16", "int8", "int6", "int4", "int4:hadamard",
                           "fp8_e4m3", "fp8_e5m2", "topk:8", "topk_2bit:8"}) {
    const Codec codec = parse_codec(name);
    fuzz::Bytes wire(encoded_bytes(codec, DataType::Float32, values.size()));
    encode(codec, DataType::Float32, values.data(), values.size(), {}, wire.data());
    seeds.push_back(wire);
  }
  return seeds;
}

void try_input(std::span<const std::byte> input) {
  const auto header = read_header(input);
  if (!header) return;
  const Codec codec = header->codec;
  const size_t count = header->elements;
  for (const DataType dtype : kTypes) {
    if (header->dtype.value_or(dtype) != dtype || find_fault(codec, dtype, input, count)) continue;
    fuzz::require(input.size() == encoded_bytes(codec, dtype, count), "a length is checked");
    // Of exactly this size: a write beyond it is an error to the sanitizers.
    std::vector<std::byte> target(count * element_bytes(dtype));
    fuzz::require(!decode(codec, dtype, input, count, target.data()), "what has no fault decodes");
  }
  std::vector<float> sums(input.size() < 4096 ? count % 100000 : 0, 1);
  const auto fault = decode_add(codec, DataType::Float32, input, sums.size(), sums.data());
  for (const float sum : sums) {
    if (fault) fuzz::require(sum == 1, "what is refused changes nothing");
    if (codec.id != CodecId::None) fuzz::require(std::isfinite(sum), "what decodes is a number");
  }
}
