#include "quantization/codec.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "kernels/quantize_elements.h"
#include "quantization/payload.h"
#include "quantization/top_k.h"

namespace pccl::quantization {
namespace {

struct Row {
  CodecId id;
  uint8_t options;  // that it takes
};

// In the order of the numbers.
constexpr std::array kRows = {
    Row{CodecId::None, 0},           Row{CodecId::BFloat16, 0},
    Row{CodecId::Float16, 0},        Row{CodecId::Int8, kStochastic},
    Row{CodecId::Int6, kStochastic}, Row{CodecId::Int4, kStochastic | kMseClip | kHadamard},
    Row{CodecId::Float8E4M3, 0},     Row{CodecId::Float8E5M2, 0},
    Row{CodecId::TopK, 0},           Row{CodecId::TopK2Bit, 0},
};

const Row* find_row(CodecId id) {
  for (const Row& row : kRows) {
    if (row.id == id) return &row;
  }
  return nullptr;
}

std::string options_of(const Row& row) {
  if (is_sparse({row.id, 0})) return ":1..1024, a power of two";
  std::string text;
  for (const CodecOptionName& option : kCodecOptionNames) {
    if ((row.options & option.option) != 0) text.append(":").append(option.name);
  }
  return text;
}

[[noreturn]] void refuse(std::string_view text) {
  std::string known;
  for (const Row& row : kRows) {
    if (!known.empty()) known += ", ";
    known += codec_id_name(row.id);
    if (const std::string options = options_of(row); !options.empty())
      known.append("[").append(options).append("]");
  }
  throw std::invalid_argument("codec '" + std::string(text) + "': expected one of " + known);
}

// Cuts the part before the first ':' off `text`.
std::string_view next_word(std::string_view& text) {
  const size_t colon = text.find(':');
  const std::string_view word = text.substr(0, colon);
  text = colon == std::string_view::npos ? std::string_view{} : text.substr(colon + 1);
  return word;
}

// SparseLoCo's: 64 of 4096.
constexpr uint8_t kTopKShift = 6;

// log2 of the number that `text` is, if it is a power of two up to 1024.
std::optional<uint8_t> parse_top_k(std::string_view text) {
  for (uint8_t shift = 0; shift <= kTopKShiftMax; ++shift) {
    if (text == std::to_string(1 << shift)) return shift;
  }
  return std::nullopt;
}

uint8_t option_called(const Row& row, std::string_view name) {
  for (const CodecOptionName& option : kCodecOptionNames) {
    if (option.name == name && (row.options & option.option) != 0) return option.option;
  }
  return 0;
}

bool is_float(DataType dtype) {
  return dtype == DataType::Float64 || dtype == DataType::Float32 || dtype == DataType::Float16 ||
         dtype == DataType::BFloat16;
}

// ---- The header ----

// Of the elements, where they are on the wire as they were; else nothing.
constexpr uint8_t kNoDataType = 0xFF;

struct Header {
  uint8_t version;
  uint8_t codec;
  uint8_t options;
  uint8_t dtype;
  uint32_t elements;
};
static_assert(sizeof(Header) == kHeaderBytes);

Header make_header(Codec codec, DataType dtype, size_t elements) {
  return {kWireVersion, static_cast<uint8_t>(codec.id), codec.options,
          codec.id == CodecId::None ? static_cast<uint8_t>(dtype) : kNoDataType,
          static_cast<uint32_t>(elements)};
}

std::string describe(Codec codec) {
  return is_known(codec) ? codec_name(codec)
                         : "codec " + std::to_string(static_cast<int>(codec.id)) +
                               " with options " + std::to_string(codec.options);
}

std::optional<std::string> find_header_fault(const Header& found, const Header& expected) {
  if (found.version != expected.version) {
    return "version " + std::to_string(found.version) + " instead of " +
           std::to_string(expected.version);
  }
  if (found.codec != expected.codec || found.options != expected.options) {
    return describe({static_cast<CodecId>(found.codec), found.options}) + " instead of " +
           describe({static_cast<CodecId>(expected.codec), expected.options});
  }
  if (found.dtype != expected.dtype) {
    return "dtype " + std::to_string(found.dtype) + " instead of " + std::to_string(expected.dtype);
  }
  if (found.elements != expected.elements) {
    return std::to_string(found.elements) + " elements instead of " +
           std::to_string(expected.elements);
  }
  return std::nullopt;
}

std::string prefix(Codec codec) { return "segment of " + codec_name(codec) + ": "; }

// find_fault() without a look at the values.
std::optional<std::string> find_frame_fault(Codec codec, DataType dtype,
                                            std::span<const std::byte> wire, size_t elements) {
  const size_t expected = encoded_bytes(codec, dtype, elements);
  if (wire.size() != expected) {
    return prefix(codec) + std::to_string(wire.size()) + " bytes, expected " +
           std::to_string(expected) + " for " + std::to_string(elements) + " elements";
  }
  Header header;
  std::memcpy(&header, wire.data(), sizeof(header));
  if (auto fault = find_header_fault(header, make_header(codec, dtype, elements)))
    return prefix(codec) + *fault;
  return std::nullopt;
}

// ---- Values that are not finite ----

// Of values one of which is not finite as float32, once divided.
size_t first_nonfinite(const kernels::EncodeCall& call) {
  std::array<float, kernels::kTileCount> tile;
  const auto* bytes = static_cast<const std::byte*>(call.values);
  for (size_t begin = 0; begin < call.count; begin += tile.size()) {
    const size_t count = std::min(tile.size(), call.count - begin);
    kernels::widen(call.dtype, bytes + begin * element_bytes(call.dtype), count, tile.data(),
                   false);
    for (size_t i = 0; i < count; ++i) {
      if (!std::isfinite(tile[i] / call.divisor)) return begin + i;
    }
  }
  return 0;
}

}  // namespace

uint64_t stream_of(const EncodeKey& key) { return kernels::mix(kernels::mix(key.seed) ^ key.step); }

size_t payload_bytes(Codec codec, size_t count) {
  return is_sparse(codec) ? sparse_payload_bytes(codec, count)
                          : kernels::payload_bytes(codec, count);
}

std::optional<size_t> encode_payload(const kernels::EncodeCall& call) {
  const bool is_finite = is_sparse(call.codec) ? encode_sparse(call) : kernels::encode(call);
  return is_finite ? std::nullopt : std::optional(first_nonfinite(call));
}

void decode_payload(const kernels::DecodeCall& call) {
  is_sparse(call.codec) ? decode_sparse(call) : kernels::decode(call);
}

bool is_payload_valid(Codec codec, const std::byte* payload, size_t count) {
  return is_sparse(codec) ? is_sparse_payload_valid(codec, payload, count)
                          : kernels::is_payload_valid(codec, payload, count);
}

void put_header(Codec codec, DataType dtype, size_t elements, std::byte* wire) {
  assert(elements <= kElementsMax);
  const Header header = make_header(codec, dtype, elements);
  std::memcpy(wire, &header, sizeof(header));
}

Codec parse_codec(std::string_view text) {
  std::string_view rest = text;
  const std::string_view name = next_word(rest);
  if (text.ends_with(':')) refuse(text);
  for (const Row& row : kRows) {
    if (codec_id_name(row.id) != name) continue;
    Codec codec{row.id, 0};
    if (is_sparse(codec)) {
      const auto shift = rest.empty() ? std::optional(kTopKShift) : parse_top_k(rest);
      if (!shift) refuse(text);
      return {row.id, *shift};
    }
    while (!rest.empty()) {
      const uint8_t option = option_called(row, next_word(rest));
      if (option == 0) refuse(text);
      codec.options |= option;
    }
    return codec;
  }
  refuse(text);
}

bool is_known(Codec codec) {
  const Row* row = find_row(codec.id);
  if (is_sparse(codec)) return codec.options <= kTopKShiftMax;
  return row != nullptr && (codec.options & ~row->options) == 0;
}

void check_dtype(Codec codec, DataType dtype) {
  if (codec.id == CodecId::None || is_float(dtype)) return;
  throw std::invalid_argument("codec '" + codec_name(codec) +
                              "' loses bits, so it takes float64, "
                              "float32, float16 and bfloat16, not " +
                              std::string(data_type_name(dtype)));
}

size_t block_elements(Codec codec) {
  return is_sparse(codec) ? kChunkElements : kernels::kTileCount;
}

size_t encoded_bytes(Codec codec, DataType dtype, size_t elements) {
  if (codec.id == CodecId::None) return kHeaderBytes + elements * element_bytes(dtype);
  return kHeaderBytes + payload_bytes(codec, elements);
}

std::optional<SegmentHeader> read_header(std::span<const std::byte> wire) {
  Header header;
  if (wire.size() < sizeof(header)) return std::nullopt;
  std::memcpy(&header, wire.data(), sizeof(header));
  const Codec codec{static_cast<CodecId>(header.codec), header.options};
  const bool has_dtype = header.dtype < kDataTypeCount;
  if (header.version != kWireVersion || !is_known(codec) || header.elements > kElementsMax ||
      has_dtype != (codec.id == CodecId::None) || (!has_dtype && header.dtype != kNoDataType))
    return std::nullopt;
  const auto dtype = static_cast<DataType>(header.dtype);
  return SegmentHeader{codec, has_dtype ? std::optional(dtype) : std::nullopt, header.elements};
}

std::optional<size_t> encode(Codec codec, DataType dtype, const void* values, size_t elements,
                             const EncodeKey& key, std::byte* wire) {
  put_header(codec, dtype, elements, wire);
  std::byte* payload = wire + kHeaderBytes;
  if (codec.id == CodecId::None) {
    if (elements > 0) std::memcpy(payload, values, elements * element_bytes(dtype));
    return std::nullopt;
  }
  return encode_payload(
      {codec, dtype, values, elements, 1, stream_of(key), key.first_element, payload});
}

std::optional<size_t> encode_sums(Codec codec, const float* sums, size_t elements, double divisor,
                                  const EncodeKey& key, std::byte* wire) {
  assert(codec.id != CodecId::None && divisor > 0);
  put_header(codec, DataType::Float32, elements, wire);
  return encode_payload({codec, DataType::Float32, sums, elements, static_cast<float>(divisor),
                         stream_of(key), key.first_element, wire + kHeaderBytes});
}

std::optional<CombineFault> combine(Codec codec, const Contributions& contributions, double divisor,
                                    const EncodeKey& key, std::byte* wire, float* sums) {
  assert(codec.id != CodecId::None && !is_sparse(codec) && divisor > 0);
  const size_t count = contributions.elements;
  std::vector<const std::byte*> payloads;
  for (const auto& segment : contributions.wires) {
    if (auto fault = find_frame_fault(codec, DataType::Float32, segment, count))
      return CombineFault{std::nullopt, payloads.size(), *fault};
    payloads.push_back(segment.data() + kHeaderBytes);
  }
  put_header(codec, DataType::Float32, count, wire);
  kernels::CombineCall call{
      {codec, contributions.dtype, contributions.values, count, static_cast<float>(divisor),
       stream_of(key), key.first_element, wire + kHeaderBytes},
      payloads.data(),
      payloads.size(),
      nullptr};
  call.sums = sums;
  kernels::Combined found = kernels::combine(call);
  if (found.valid < payloads.size()) {
    return CombineFault{
        std::nullopt, found.valid,
        *find_fault(codec, DataType::Float32, contributions.wires[found.valid], count)};
  }
  if (found.is_finite) return std::nullopt;
  std::vector<float> again(sums == nullptr ? count : 0);
  if (sums == nullptr) {
    call.sums = again.data();
    found = kernels::combine(call);
  }
  call.sum.dtype = DataType::Float32;
  call.sum.values = call.sums;
  return CombineFault{first_nonfinite(call.sum), 0, {}};
}

std::optional<std::string> find_fault(Codec codec, DataType dtype, std::span<const std::byte> wire,
                                      size_t elements) {
  if (auto fault = find_frame_fault(codec, dtype, wire, elements)) return fault;
  if (codec.id == CodecId::None || is_payload_valid(codec, wire.data() + kHeaderBytes, elements))
    return std::nullopt;
  return prefix(codec) + "holds a scale or a value that no sender makes of finite numbers";
}

std::optional<std::string> decode(Codec codec, DataType dtype, std::span<const std::byte> wire,
                                  size_t elements, void* values) {
  if (auto fault = find_fault(codec, dtype, wire, elements)) return fault;
  const std::byte* payload = wire.data() + kHeaderBytes;
  if (codec.id != CodecId::None) {
    decode_payload({codec, payload, elements, dtype, values, false});
  } else if (elements > 0) {
    std::memcpy(values, payload, elements * element_bytes(dtype));
  }
  return std::nullopt;
}

std::optional<std::string> decode_add(Codec codec, DataType dtype, std::span<const std::byte> wire,
                                      size_t elements, float* sums) {
  if (auto fault = find_fault(codec, dtype, wire, elements)) return fault;
  const std::byte* payload = wire.data() + kHeaderBytes;
  if (codec.id == CodecId::None) {
    kernels::widen(dtype, payload, elements, sums, true);
  } else {
    decode_payload({codec, payload, elements, DataType::Float32, sums, true});
  }
  return std::nullopt;
}

void widen(DataType dtype, const void* values, size_t elements, float* sums) {
  kernels::widen(dtype, values, elements, sums, false);
}

void widen_add(DataType dtype, const void* values, size_t elements, float* sums) {
  kernels::widen(dtype, values, elements, sums, true);
}

}  // namespace pccl::quantization
