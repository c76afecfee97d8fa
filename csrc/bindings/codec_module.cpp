#include "bindings/codec_module.h"

#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/errors.h"
#include "bindings/calls_module.h"
#include "kernels/cuda_codecs.h"
#include "kernels/quantize.h"
#include "kernels/quantize_elements.h"
#include "quantization/codec.h"
#include "quantization/error_feedback.h"
#include "quantization/payload.h"

namespace pccl::bindings {

namespace py = pybind11;
using namespace quantization;
using BlockPair = std::pair<uintptr_t, uint64_t>;  // pointer, elements

namespace {

std::span<const std::byte> as_span(const py::bytes& bytes) {
  const std::string_view view = bytes;
  return {reinterpret_cast<const std::byte*>(view.data()), view.size()};
}

Codec codec_for(const std::string& name, DataType dtype, uint64_t count) {
  const Codec codec = parse_codec(name);
  check_dtype(codec, dtype);
  if (count > kElementsMax) {
    throw py::value_error("a segment has at most " + std::to_string(kElementsMax) +
                          " elements, not " + std::to_string(count));
  }
  return codec;
}

float* to_floats(uintptr_t pointer) { return reinterpret_cast<float*>(pointer); }

struct EncodeOptions {
  double divisor;
  EncodeKey key;
  uintptr_t residual;
  uintptr_t estimate;
};

std::optional<size_t> encode_block(Codec codec, const BlockPair& source, DataType dtype,
                                   const EncodeOptions& options, std::byte* wire) {
  const auto* values = reinterpret_cast<const void*>(source.first);
  if (options.residual != 0) {
    return encode_with_feedback(codec, dtype, values, source.second, options.divisor, options.key,
                                to_floats(options.residual), wire);
  }
  if (options.estimate != 0) {
    return encode_difference(codec, dtype, values, source.second, options.key,
                             to_floats(options.estimate), wire);
  }
  if (options.divisor != 1) {
    return encode_sums(codec, static_cast<const float*>(values), source.second, options.divisor,
                       options.key, wire);
  }
  return encode(codec, dtype, values, source.second, options.key, wire);
}

// Uninitialised memory of its own object: bytes() would be filled with zeros first.
py::bytes empty_bytes(size_t size) {
  auto bytes = py::reinterpret_steal<py::bytes>(
      PyBytes_FromStringAndSize(nullptr, static_cast<Py_ssize_t>(size)));
  if (!bytes) throw py::error_already_set();
  return bytes;
}

py::bytes encode_bytes(const std::string& name, const BlockPair& source, int dtype_number,
                       const EncodeOptions& options) {
  const DataType dtype = to_dtype(dtype_number);
  const Codec codec = codec_for(name, dtype, source.second);
  const bool is_special = options.divisor != 1 || options.residual != 0 || options.estimate != 0;
  if (is_special && codec.id == CodecId::None)
    throw py::value_error("codec 'none' has neither a divisor nor error feedback");
  if (options.estimate != 0 && (options.divisor != 1 || options.residual != 0))
    throw py::value_error("an estimate goes with neither a divisor nor a residual");
  if (!(options.divisor > 0)) throw py::value_error("a divisor is above 0");
  if (options.divisor != 1 && options.residual == 0 && dtype != DataType::Float32)
    throw py::value_error("a divisor is for sums, which are float32");
  py::bytes wire = empty_bytes(encoded_bytes(codec, dtype, source.second));
  auto* out = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(wire.ptr()));
  std::optional<size_t> bad;
  {
    py::gil_scoped_release release;
    bad = encode_block(codec, source, dtype, options, out);
  }
  if (bad) {
    throw NonFiniteContribution("encode: element " + std::to_string(*bad) + " of " +
                                std::to_string(source.second) + " is not finite as float32");
  }
  return wire;
}

py::bytes combine_bytes(const std::string& name, const BlockPair& own, int dtype_number,
                        const std::vector<py::bytes>& contributions, double divisor,
                        const EncodeKey& key) {
  const DataType dtype = to_dtype(dtype_number);
  const Codec codec = codec_for(name, dtype, own.second);
  if (codec.id == CodecId::None || codec.id == CodecId::TopK || codec.id == CodecId::TopK2Bit)
    throw py::value_error("codec '" + name + "' is not for sums");
  if (!(divisor > 0)) throw py::value_error("a divisor is above 0");
  std::vector<std::span<const std::byte>> wires;
  wires.reserve(contributions.size());
  for (const py::bytes& contribution : contributions) wires.push_back(as_span(contribution));
  py::bytes wire = empty_bytes(encoded_bytes(codec, dtype, own.second));
  auto* out = reinterpret_cast<std::byte*>(PyBytes_AS_STRING(wire.ptr()));
  const Contributions all{dtype, reinterpret_cast<const void*>(own.first), own.second, wires};
  std::optional<CombineFault> fault;
  {
    py::gil_scoped_release release;
    fault = combine(codec, all, divisor, key, out);
  }
  if (fault && fault->element) {
    throw NonFiniteContribution("combine: element " + std::to_string(*fault->element) + " of " +
                                std::to_string(own.second) +
                                " of the sum is not finite as float32");
  }
  if (fault) {
    throw RemoteProtocolError("combine: contribution " + std::to_string(fault->wire) + ": " +
                              fault->fault);
  }
  return wire;
}

void decode_bytes(const std::string& name, const py::bytes& wire, const BlockPair& target,
                  int dtype_number, bool adds) {
  const DataType dtype = to_dtype(dtype_number);
  const Codec codec = codec_for(name, dtype, target.second);
  if (adds && dtype != DataType::Float32) throw py::value_error("only float32 is added to");
  const auto bytes = as_span(wire);
  std::optional<std::string> fault;
  {
    py::gil_scoped_release release;
    auto* values = reinterpret_cast<void*>(target.first);
    fault = adds ? decode_add(codec, dtype, bytes, target.second, static_cast<float*>(values))
                 : decode(codec, dtype, bytes, target.second, values);
  }
  if (fault) throw RemoteProtocolError("decode: " + *fault);
}

void check_cuda(int status, const char* what) {
  if (status == 0) return;
  throw std::runtime_error(std::string(what) + " on the device: CUDA error " +
                           std::to_string(status));
}

const kernels::CudaCodecs& cuda_codecs() {
  const kernels::CudaCodecs* codecs = kernels::load_cuda_codecs();
  if (codecs == nullptr)
    throw std::runtime_error("no codecs on a device: load_cuda_codecs() first");
  return *codecs;
}

// Device memory at `values` and `payload`; put into `stream`, nobody waits.
void cuda_encode(const std::string& name, const BlockPair& values, int dtype, uintptr_t payload,
                 uintptr_t nonfinite, uintptr_t stream, uint64_t seed, uint64_t step) {
  const Codec codec = codec_for(name, to_dtype(dtype), values.second);
  const kernels::CudaEncodeCall call{
      .codec = codec,
      .dtype = to_dtype(dtype),
      .values = reinterpret_cast<const void*>(values.first),
      .count = values.second,
      .stream = stream_of({.seed = seed, .step = step}),
      .tile_bytes = kernels::payload_bytes(codec, kernels::kTileCount),
      .payload = reinterpret_cast<void*>(payload),
      .nonfinite = reinterpret_cast<unsigned*>(nonfinite),
      .cuda_stream = reinterpret_cast<void*>(stream)};
  check_cuda(cuda_codecs().encode(&call), "encode");
}

void cuda_decode(const std::string& name, uintptr_t payload, const BlockPair& values, int dtype,
                 uintptr_t stream) {
  const Codec codec = codec_for(name, to_dtype(dtype), values.second);
  const kernels::CudaDecodeCall call{
      .codec = codec,
      .payload = reinterpret_cast<const void*>(payload),
      .count = values.second,
      .tile_bytes = kernels::payload_bytes(codec, kernels::kTileCount),
      .dtype = to_dtype(dtype),
      .values = reinterpret_cast<void*>(values.first),
      .cuda_stream = reinterpret_cast<void*>(stream)};
  check_cuda(cuda_codecs().decode(&call), "decode");
}

void bind_cuda(py::module_& module) {
  module.def(
      "load_cuda_codecs",
      [](const std::string& path) { return kernels::load_cuda_codecs(path.c_str()) != nullptr; },
      py::arg("path"));
  module.def(
      "has_cuda_kernels",
      [](const std::string& codec, int dtype) {
        return kernels::has_cuda_kernels(parse_codec(codec), to_dtype(dtype));
      },
      py::arg("codec"), py::arg("dtype"));
  module.def("cuda_encode", &cuda_encode, py::arg("codec"), py::arg("values"), py::arg("dtype"),
             py::arg("payload"), py::arg("nonfinite"), py::arg("stream"), py::kw_only(),
             py::arg("seed") = 0, py::arg("step") = 0);
  module.def("cuda_decode", &cuda_decode, py::arg("codec"), py::arg("payload"), py::arg("values"),
             py::arg("dtype"), py::arg("stream"));
}

}  // namespace

void bind_codecs(py::module_& module) {
  bind_cuda(module);
  module.def(
      "parse_codec",
      [](const std::string& name) {
        const Codec codec = parse_codec(name);
        const int two_bytes = static_cast<int>(codec.id) | codec.options << 8;
        return std::make_tuple(codec_name(codec), two_bytes, block_elements(codec));
      },
      py::arg("name"));
  module.def(
      "read_segment",
      [](const py::bytes& wire) -> py::object {
        const auto header = read_header(as_span(wire));
        if (!header) return py::none();
        const int dtype = header->dtype ? static_cast<int>(*header->dtype) : -1;
        return py::make_tuple(codec_name(header->codec), dtype, header->elements);
      },
      py::arg("wire"));
  module.def(
      "encoded_bytes",
      [](const std::string& name, int dtype, uint64_t count) {
        return encoded_bytes(codec_for(name, to_dtype(dtype), count), to_dtype(dtype), count);
      },
      py::arg("codec"), py::arg("dtype"), py::arg("count"));
  module.def(
      "encode",
      [](const std::string& codec, const BlockPair& source, int dtype, double divisor,
         uint64_t seed, uint64_t step, uint64_t first_element, uintptr_t residual,
         uintptr_t estimate) {
        return encode_bytes(codec, source, dtype,
                            {divisor, {seed, step, first_element}, residual, estimate});
      },
      py::arg("codec"), py::arg("source"), py::arg("dtype"), py::kw_only(),
      py::arg("divisor") = 1.0, py::arg("seed") = 0, py::arg("step") = 0,
      py::arg("first_element") = 0, py::arg("residual") = 0, py::arg("estimate") = 0);
  module.def(
      "combine",
      [](const std::string& codec, const BlockPair& own, int dtype,
         const std::vector<py::bytes>& wires, double divisor, uint64_t seed, uint64_t step,
         uint64_t first_element) {
        return combine_bytes(codec, own, dtype, wires, divisor, {seed, step, first_element});
      },
      py::arg("codec"), py::arg("own"), py::arg("dtype"), py::arg("wires"), py::kw_only(),
      py::arg("divisor") = 1.0, py::arg("seed") = 0, py::arg("step") = 0,
      py::arg("first_element") = 0);
  module.def("decode", &decode_bytes, py::arg("codec"), py::arg("wire"), py::arg("target"),
             py::arg("dtype"), py::kw_only(), py::arg("adds") = false);
}

}  // namespace pccl::bindings
