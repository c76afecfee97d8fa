// What stands behind the header of a segment, whatever the codec: pieces that are put side by side.
//
// Requires everywhere: a codec but None, a float dtype.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "kernels/quantize.h"
#include "quantization/codec.h"

namespace pccl::quantization {

size_t payload_bytes(Codec codec, size_t count);

// `stream` comes from the seed and the step.
uint64_t stream_of(const EncodeKey& key);

// The first value that is not finite as float32 once divided, if there is one.
std::optional<size_t> encode_payload(const kernels::EncodeCall& call);

// Requires: is_payload_valid().
void decode_payload(const kernels::DecodeCall& call);
bool is_payload_valid(Codec codec, const std::byte* payload, size_t count);

void put_header(Codec codec, DataType dtype, size_t elements, std::byte* wire);

}  // namespace pccl::quantization
