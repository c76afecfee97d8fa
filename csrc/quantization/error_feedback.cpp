#include "quantization/error_feedback.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "quantization/payload.h"

namespace pccl::quantization {
namespace {

// A multiple of every block; its floats stay in L2.
constexpr size_t kPieceElements = 16384;

struct Piece {
  size_t begin;
  size_t count;
};

// Writes values / divisor, plus or minus `memory`, into `out`; returns whether all are finite.
bool combine(DataType dtype, const void* values, Piece piece, float divisor, float sign,
             const float* memory, float* out) {
  const auto* in = static_cast<const std::byte*>(values) + piece.begin * element_bytes(dtype);
  kernels::widen(dtype, in, piece.count, out, false);
  float all = 0;
  for (size_t i = 0; i < piece.count; ++i) {
    const float value = divisor == 1 ? out[i] : out[i] / divisor;
    // A sign is no rounding, so this is one addition.
    out[i] = value + (sign < 0 ? -memory[piece.begin + i] : memory[piece.begin + i]);
    all += out[i] - out[i];  // 0, or NaN for ever
  }
  return all == 0;
}

// Encodes pieces of the combined values and calls update(piece, combined, its payload).
template <class Update>
std::optional<size_t> encode_pieces(Codec codec, DataType dtype, const void* values,
                                    size_t elements, float divisor, float sign,
                                    const EncodeKey& key, const float* memory, std::byte* wire,
                                    const Update& update) {
  std::vector<float> combined(std::min(elements, kPieceElements));
  const auto for_each_piece = [&](const auto& body) -> std::optional<size_t> {
    for (size_t begin = 0; begin < elements; begin += kPieceElements) {
      const Piece piece{begin, std::min(kPieceElements, elements - begin)};
      const bool is_finite = combine(dtype, values, piece, divisor, sign, memory, combined.data());
      if (auto bad = body(piece, is_finite)) return begin + *bad;
    }
    return std::nullopt;
  };
  const auto encode_piece = [&](Piece piece, std::byte* payload) {
    return encode_payload({codec, DataType::Float32, combined.data(), piece.count, 1,
                           stream_of(key), key.first_element + piece.begin, payload});
  };
  put_header(codec, DataType::Float32, elements, wire);
  std::byte* payload = wire + kHeaderBytes;
  // First to find a value that is not finite, before anything is changed.
  const auto bad = for_each_piece([&](Piece piece, bool is_finite) {
    return is_finite ? std::nullopt : encode_piece(piece, payload);
  });
  if (bad) return bad;
  return for_each_piece([&](Piece piece, bool) {
    const auto none = encode_piece(piece, payload);
    update(piece, combined.data(), payload);
    payload += payload_bytes(codec, piece.count);
    return none;
  });
}

}  // namespace

std::optional<size_t> encode_with_feedback(Codec codec, DataType dtype, const void* values,
                                           size_t elements, double divisor, const EncodeKey& key,
                                           float* residual, std::byte* wire) {
  return encode_pieces(
      codec, dtype, values, elements, static_cast<float>(divisor), 1, key, residual, wire,
      [&](Piece piece, const float* combined, const std::byte* payload) {
        float* lost = residual + piece.begin;
        decode_payload({codec, payload, piece.count, DataType::Float32, lost, false});
        for (size_t i = 0; i < piece.count; ++i) lost[i] = combined[i] - lost[i];
      });
}

void find_lost(Codec codec, const float* sums, size_t elements, double divisor,
               const std::byte* wire, float* lost) {
  decode_payload({codec, wire + kHeaderBytes, elements, DataType::Float32, lost, false});
  const auto factor = static_cast<float>(divisor);
  for (size_t i = 0; i < elements; ++i) lost[i] = sums[i] - factor * lost[i];
}

std::optional<size_t> encode_difference(Codec codec, DataType dtype, const void* values,
                                        size_t elements, const EncodeKey& key, float* estimate,
                                        std::byte* wire) {
  return encode_pieces(codec, dtype, values, elements, 1, -1, key, estimate, wire,
                       [&](Piece piece, const float*, const std::byte* payload) {
                         decode_payload({codec, payload, piece.count, DataType::Float32,
                                         estimate + piece.begin, true});
                       });
}

}  // namespace pccl::quantization
