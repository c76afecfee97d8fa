// Segments that travel in a codec. A contribution is encoded once, where it begins; sums are made
// in float32 and encoded again where they go on; the owner encodes a final once, and everybody, the
// owner too, decodes those bytes: so all hold the same.
#include <algorithm>
#include <cassert>
#include <cstring>
#include <functional>
#include <span>
#include <utility>

#include "collectives/collective_operation.h"
#include "collectives/group.h"
#include "quantization/codec.h"
#include "quantization/error_feedback.h"
#include "quantization/payload.h"

namespace pccl {

using transport::FrameHeader;
using transport::Payload;

uint32_t CollectiveOperation::wire_length_of(const Part& part, uint32_t segment) const {
  const uint32_t length = length_of(part, segment);
  if (!part.is_coded) return length;
  return static_cast<uint32_t>(quantization::encoded_bytes(
      call_.signature.codec, call_.signature.dtype, length / element_bytes_));
}

// The element of the segment that is not finite, if one is; stops at bytes of a child that are no
// segment, with the group broken.
std::optional<size_t> CollectiveOperation::encode_combined(const Part& part, uint32_t length,
                                                           std::byte* wire) {
  const Codec codec = call_.signature.codec;
  const DataType dtype = call_.signature.dtype;
  const size_t count = length / element_bytes_;
  const uint64_t offset = uint64_t{part.combined} * part.segment_bytes;
  const std::byte* own = part.input + memory_offset(part, offset / element_bytes_);
  const quantization::EncodeKey key{.seed = static_cast<uint64_t>(group_.rank),
                                    .step = number,
                                    .first_element = part.plan->offset + offset / element_bytes_};
  const bool is_weighted = call_.signature.op == ReduceOp::WeightedAvg;
  const bool is_scaled = call_.signature.op == ReduceOp::PremulSum || is_weighted;
  const Feedback feedback = feedback_of(part, offset / element_bytes_);
  const bool is_plain = !is_scaled && feedback.lost == nullptr;
  if (call_.is_encoded) {
    const auto bad = copy_encoded(part, count, wire);
    if (bad || (part.up && part.children.empty())) return bad;
  } else if (part.up && part.children.empty() && is_plain) {
    return quantization::encode(codec, dtype, own, count, key, wire);
  }
  quantization::Contributions all{dtype, own, count, {}};
  if (!is_plain || call_.is_encoded) {
    prepare_own(own, count, feedback.residual);
    all.dtype = DataType::Float32;
    all.values = sums_.data();
  }
  wires_.clear();
  for (const Child& child : part.children) {
    const Payload& payload = child.waiting.at(part.combined);
    wires_.emplace_back(payload.data(), payload.size());
  }
  all.wires = wires_;
  double divisor = 1;
  if (!part.up && is_weighted) divisor = part.weight > 0 ? part.weight : 1;
  if (!part.up && call_.signature.op == ReduceOp::Avg) divisor = static_cast<double>(call_.divisor);
  float* sums = feedback.lost != nullptr ? sums_.data() : nullptr;
  const auto fault = quantization::combine(codec, all, divisor, key, wire, sums);
  if (fault && !fault->element) {
    group_.fail({ErrorKind::RemoteProtocol, group_.describe(part.children[fault->wire].rank) +
                                                " sent for " + describe() +
                                                " what is not in its codec: " + fault->fault});
    return std::nullopt;
  }
  if (fault) return fault->element;
  if (feedback.lost != nullptr)
    quantization::find_lost(codec, sums_.data(), count, divisor, wire, feedback.lost);
  return std::nullopt;
}

uint64_t CollectiveOperation::memory_offset(const Part& part, uint64_t element) const {
  if (!call_.is_encoded || !part.is_coded) return element * element_bytes_;
  assert(element % quantization::block_elements(call_.signature.codec) == 0);
  return quantization::payload_bytes(call_.signature.codec, element);
}

// Writes the own contribution of a segment, which is encoded already, to `wire`. Returns the first
// element of a tile that holds what no sender makes of finite numbers, if there is one.
std::optional<size_t> CollectiveOperation::copy_encoded(const Part& part, size_t count,
                                                        std::byte* wire) const {
  const Codec codec = call_.signature.codec;
  const std::byte* own = part.input + memory_offset(part, uint64_t{part.combined} *
                                                              part.segment_bytes / element_bytes_);
  quantization::put_header(codec, call_.signature.dtype, count, wire);
  std::memcpy(wire + quantization::kHeaderBytes, own, quantization::payload_bytes(codec, count));
  if (quantization::is_payload_valid(codec, own, count)) return std::nullopt;
  const size_t tile = quantization::block_elements(codec);
  for (size_t begin = 0; begin < count; begin += tile) {
    const size_t left = std::min(tile, count - begin);
    const std::byte* at = own + quantization::payload_bytes(codec, begin);
    if (!quantization::is_payload_valid(codec, at, left)) return begin;
  }
  return 0;
}

// Puts the own contribution of a segment into sums_, with its factor and what was lost before.
void CollectiveOperation::prepare_own(const std::byte* own, size_t count, const float* residual) {
  const bool is_weighted = call_.signature.op == ReduceOp::WeightedAvg;
  sums_.resize(count);
  if (is_weighted && call_.factor == 0) {
    // Nothing, even if there are infinities in what does not count.
    std::fill(sums_.begin(), sums_.end(), 0.0F);
    return;
  }
  if (call_.is_encoded) {
    quantization::decode_payload(
        {call_.signature.codec, own, count, DataType::Float32, sums_.data(), false});
    return;
  }
  quantization::widen(call_.signature.dtype, own, count, sums_.data());
  const auto factor = static_cast<float>(call_.factor);
  if (is_weighted || call_.signature.op == ReduceOp::PremulSum)
    std::for_each(sums_.begin(), sums_.end(), [factor](float& x) { x *= factor; });
  if (residual != nullptr)
    std::transform(sums_.begin(), sums_.end(), residual, sums_.begin(), std::plus<>());
}

// Of a segment, from its first element in the chunk on. A contribution that does not count leaves
// what was lost before as it is.
Feedback CollectiveOperation::feedback_of(const Part& part, uint64_t first) const {
  const bool counts = call_.signature.op != ReduceOp::WeightedAvg || call_.factor != 0;
  Feedback feedback = call_.blocks[part.plan->block].feedback;
  if (!counts || feedback.lost == nullptr) return {};
  feedback.lost += part.plan->offset + first;
  if (feedback.residual != nullptr) feedback.residual += part.plan->offset + first;
  return feedback;
}

void CollectiveOperation::combine_coded(Part& part, uint32_t length) {
  const uint32_t segment = part.combined;
  part.weight = call_.signature.op == ReduceOp::WeightedAvg ? call_.factor : 0;
  for (const Child& child : part.children) part.weight += child.weight;
  const uint32_t wire_length = wire_length_of(part, segment);
  transport::BufferPool::Buffer wire = group_.pool().take(wire_length);
  const std::optional<size_t> element = encode_combined(part, length, wire.bytes.get());
  if (is_finished()) return;
  if (element) {
    const uint64_t first =
        part.plan->offset + uint64_t{segment} * part.segment_bytes / element_bytes_;
    group_.fail({ErrorKind::NonFinite,
                 describe() + (call_.is_encoded ? ": the tile of element " : ": element ") +
                     std::to_string(first + *element) +
                     (part.children.empty() ? " of the contribution of rank "
                                            : " of the sum, or of the contribution, of rank ") +
                     std::to_string(group_.rank) + " is NaN or infinite."});
    return;
  }
  std::byte* bytes = wire.bytes.get();
  if (part.up) {
    send_segment(*part.up, data_header(part, part.combined, wire_length), bytes, index_of(part),
                 std::move(wire));
    return;
  }
  part.final_weight = part.weight;
  if (!take_coded_final(part, segment, Payload(std::move(wire), wire_length, &group_.pool())))
    return;
  part.finals += 1;
}

bool CollectiveOperation::take_coded_final(Part& part, uint32_t segment, Payload payload) {
  const Codec codec = call_.signature.codec;
  const DataType dtype = call_.signature.dtype;
  const size_t count = length_of(part, segment) / element_bytes_;
  const std::span<const std::byte> wire{payload.data(), payload.size()};
  std::byte* output =
      part.output + memory_offset(part, uint64_t{segment} * part.segment_bytes / element_bytes_);
  const auto fault = call_.is_encoded ? quantization::find_fault(codec, dtype, wire, count)
                                      : quantization::decode(codec, dtype, wire, count, output);
  if (call_.is_encoded && !fault) {
    std::memcpy(output, wire.data() + quantization::kHeaderBytes,
                wire.size() - quantization::kHeaderBytes);
  }
  if (fault) {
    const int32_t from = part.plan->down_parent >= 0 ? part.plan->down_parent : group_.rank;
    group_.fail({ErrorKind::RemoteProtocol, group_.describe(from) + " sent for " + describe() +
                                                " what is not in its codec: " + *fault});
    return false;
  }
  if (!part.down.empty()) {
    payload.keep();
    part.coded_finals.emplace(segment, std::move(payload));
  }
  return true;
}

}  // namespace pccl
