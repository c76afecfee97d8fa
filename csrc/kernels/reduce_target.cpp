// The loops behind reduce() and scale(), compiled once per instruction set (see CMakeLists.txt).
//
// Every loop is elementwise and folds its sources from left to right, so neither the vector width
// nor the blocks change a byte. Functions here and in elements.h and half.h have internal linkage
// and call no other inline function: a merged copy would carry one target's instructions away.
//
// Sources: passes of up to three sources keep the running value in registers; where there are more
// than four sources the value waits between passes in a block on the stack, which stays in L1.
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/elements.h"
#include "kernels/half_blocks.h"
#include "kernels/reduce_table.h"

namespace pccl::kernels::PCCL_KERNEL_TARGET {
namespace {

// The running values of one block: 1024 floats, with its sources' parts well inside a 32 KiB L1.
constexpr size_t kBlockBytes = 4096;

// ---- Loops ----

const std::byte* at(const void* data, size_t offset) {
  return static_cast<const std::byte*>(data) + offset;
}

// out[i] = ((first[i] op x[i]) op y[i]) op z[i]; y and z are extra[1] and extra[2], where kExtra
// says that they exist. The extra sources start at `offset` bytes.
template <class Op, int kExtra, class Out, class First, class In>
[[gnu::noinline]] void fold(std::byte* out, const std::byte* first, const void* const* extra,
                            size_t offset, size_t count) {
  const std::byte* x = at(extra[0], offset);
  const std::byte* y = kExtra >= 2 ? at(extra[1], offset) : nullptr;
  const std::byte* z = kExtra >= 3 ? at(extra[2], offset) : nullptr;
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = 0; i < count; ++i) {
    typename In::Value value = Op::apply(First::load(first, i), In::load(x, i));
    if constexpr (kExtra >= 2) value = Op::apply(value, In::load(y, i));
    if constexpr (kExtra >= 3) value = Op::apply(value, In::load(z, i));
    Out::store(out, i, value);
  }
}

// out[i] = in[i] / divisor for floats.
template <class Out, class In>
[[gnu::noinline]] void divide_floats(std::byte* out, const std::byte* in, size_t count,
                                     int64_t divisor) {
  const auto by = static_cast<typename In::Value>(divisor);
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = 0; i < count; ++i) Out::store(out, i, In::load(in, i) / by);
}

// The same for integers, truncating towards zero. Narrow ones divide as floating point, which
// vectorises: a quotient of integers below 2^24 (float) or 2^53 (double) never rounds up to the
// next integer, and a larger divisor gives 0 either way.
template <class T, class Quotient>
[[gnu::noinline]] void divide_integers(std::byte* out, const std::byte* in, size_t count,
                                       int64_t divisor) {
  const auto by = static_cast<Quotient>(divisor);
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = 0; i < count; ++i) {
    const auto quotient = static_cast<Quotient>(Plain<T>::load(in, i)) / by;
    Plain<T>::store(out, i, static_cast<T>(quotient));
  }
}

// out[i] = in[i] * factor.
template <class Format>
[[gnu::noinline]] void multiply(std::byte* out, const std::byte* in, size_t count, double factor) {
  const auto by = static_cast<typename Format::Value>(factor);
  PCCL_INDEPENDENT_ITERATIONS
  for (size_t i = 0; i < count; ++i) Format::store(out, i, Format::load(in, i) * by);
}

// ---- Passes over the sources ----

size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

// How many sources the first pass takes, so that the passes after it take three each.
size_t first_pass_sources(size_t source_count) { return (source_count - 2) % 3 + 2; }

template <class Op, class Out, class In>
void fold_two_to_four(std::byte* out, const void* const* sources, size_t source_count,
                      size_t offset, size_t count) {
  const std::byte* first = at(sources[0], offset);
  if (source_count == 2) fold<Op, 1, Out, In, In>(out, first, sources + 1, offset, count);
  if (source_count == 3) fold<Op, 2, Out, In, In>(out, first, sources + 1, offset, count);
  if (source_count == 4) fold<Op, 3, Out, In, In>(out, first, sources + 1, offset, count);
}

using DivideLoop = void (*)(std::byte* out, const std::byte* in, size_t count, int64_t divisor);

// The final division of an average, out of a source or out of the running values.
struct Division {
  DivideLoop of_source;
  DivideLoop of_running;
};

// Running: the format of the values between two passes, which `Format` rounds.
// Requires: source_count >= 2, or a divisor > 1; where that is, a division.
template <class Op, class Format, class Running = Format>
void reduce_folding(const ReduceCall& call, Division division = {}) {
  alignas(64) std::byte running[kBlockBytes];
  const size_t source_count = call.source_count;
  const bool divides = call.divisor > 1;
  const bool is_one_pass = source_count <= 4 && !divides;
  const size_t block_count = is_one_pass ? call.count : kBlockBytes / Running::kBytes;
  for (size_t begin = 0; begin < call.count; begin += block_count) {
    const size_t count = smaller(block_count, call.count - begin);
    const size_t offset = begin * Format::kBytes;
    std::byte* out = static_cast<std::byte*>(call.target) + offset;
    if (source_count == 1) {
      division.of_source(out, at(call.sources[0], offset), count, call.divisor);
      continue;
    }
    if (is_one_pass) {
      fold_two_to_four<Op, Format, Format>(out, call.sources, source_count, offset, count);
      continue;
    }
    // The target may be a source that a later pass still reads: only the last pass writes there.
    size_t done = first_pass_sources(source_count);
    fold_two_to_four<Op, Running, Format>(running, call.sources, done, offset, count);
    for (; done < source_count; done += 3) {
      const void* const* next = call.sources + done;
      if (done + 3 == source_count && !divides) {
        fold<Op, 3, Format, Running, Format>(out, running, next, offset, count);
      } else {
        fold<Op, 3, Running, Running, Format>(running, running, next, offset, count);
      }
    }
    if (divides) division.of_running(out, running, count, call.divisor);
  }
}

// Float16 rounds once, after the last source and the division. Requires: as reduce_folding.
template <class Op>
void reduce_float16(const ReduceCall& call) {
  using Wide = Plain<float>;
  constexpr size_t kBlockCount = kBlockBytes / 2 / Wide::kBytes;
  alignas(64) std::byte wide[4][kBlockBytes / 2];
  const void* const rows[4] = {wide[0], wide[1], wide[2], wide[3]};
  for (size_t begin = 0; begin < call.count; begin += kBlockCount) {
    const size_t count = smaller(kBlockCount, call.count - begin);
    const size_t offset = begin * sizeof(uint16_t);
    widen(wide[0], at(call.sources[0], offset), count);
    for (size_t done = 1; done < call.source_count;) {
      const size_t extra = smaller(3, call.source_count - done);
      for (size_t k = 0; k < extra; ++k) {
        widen(wide[1 + k], at(call.sources[done + k], offset), count);
      }
      fold_two_to_four<Op, Wide, Wide>(wide[0], rows, 1 + extra, 0, count);
      done += extra;
    }
    if (call.divisor > 1) divide_floats<Wide, Wide>(wide[0], wide[0], count, call.divisor);
    narrow(static_cast<std::byte*>(call.target) + offset, wide[0], count);
  }
}

void scale_float16(const ScaleCall& call) {
  using Wide = Plain<float>;
  constexpr size_t kBlockCount = kBlockBytes / Wide::kBytes;
  alignas(64) std::byte wide[kBlockBytes];
  for (size_t begin = 0; begin < call.count; begin += kBlockCount) {
    const size_t count = smaller(kBlockCount, call.count - begin);
    const size_t offset = begin * sizeof(uint16_t);
    widen(wide, at(call.source, offset), count);
    multiply<Wide>(wide, wide, count, call.factor);
    narrow(static_cast<std::byte*>(call.target) + offset, wide, count);
  }
}

// ---- From (dtype, op) to a loop; pairs that is_reducible() refuses are not met ----

template <class Format, class Running>
void reduce_float(const ReduceCall& call) {
  switch (call.op) {
    case ReduceOp::Product:
      return reduce_folding<Product, Format, Running>(call);
    case ReduceOp::Min:
      return reduce_folding<Min, Format, Running>(call);
    case ReduceOp::Max:
      return reduce_folding<Max, Format, Running>(call);
    default:
      return reduce_folding<Sum, Format, Running>(
          call, {divide_floats<Format, Format>, divide_floats<Format, Running>});
  }
}

void reduce_float16_by_op(const ReduceCall& call) {
  switch (call.op) {
    case ReduceOp::Product:
      return reduce_float16<Product>(call);
    case ReduceOp::Min:
      return reduce_float16<Min>(call);
    case ReduceOp::Max:
      return reduce_float16<Max>(call);
    default:
      return reduce_float16<Sum>(call);
  }
}

template <class T>
void reduce_complex(const ReduceCall& call) {
  if (call.op == ReduceOp::Product) return reduce_folding<Product, Complex<T>>(call);
  // Both parts alike: so many more real elements.
  ReduceCall parts = call;
  parts.count *= 2;
  reduce_float<Plain<T>, Plain<T>>(parts);
}

// `T` orders and divides; sums and products wrap in its unsigned twin; bits need no type at all.
template <class T, class Unsigned, class Quotient>
void reduce_integer(const ReduceCall& call) {
  ReduceCall bytes = call;
  bytes.count *= sizeof(T);
  switch (call.op) {
    case ReduceOp::Product:
      return reduce_folding<Product, Plain<Unsigned>>(call);
    case ReduceOp::Min:
      return reduce_folding<Min, Plain<T>>(call);
    case ReduceOp::Max:
      return reduce_folding<Max, Plain<T>>(call);
    case ReduceOp::Band:
      return reduce_folding<And, Plain<uint8_t>>(bytes);
    case ReduceOp::Bor:
      return reduce_folding<Or, Plain<uint8_t>>(bytes);
    case ReduceOp::Bxor:
      return reduce_folding<Xor, Plain<uint8_t>>(bytes);
    default:
      return reduce_folding<Sum, Plain<Unsigned>>(
          call, {divide_integers<T, Quotient>, divide_integers<T, Quotient>});
  }
}

void reduce_bool(const ReduceCall& call) {
  if (call.source_count == 1) {
    // x or x: what is left of the reduction is to turn any true byte into 1.
    const void* twice[2] = {call.sources[0], call.sources[0]};
    ReduceCall normalise = call;
    normalise.sources = twice;
    normalise.source_count = 2;
    return reduce_folding<Logical<Or>, Plain<uint8_t>>(normalise);
  }
  switch (call.op) {
    case ReduceOp::Product:
    case ReduceOp::Min:
    case ReduceOp::Band:
      return reduce_folding<Logical<And>, Plain<uint8_t>>(call);
    case ReduceOp::Bxor:
      return reduce_folding<Logical<Xor>, Plain<uint8_t>>(call);
    default:
      return reduce_folding<Logical<Or>, Plain<uint8_t>>(call);
  }
}

void reduce(const ReduceCall& call) {
  switch (call.dtype) {
    case DataType::Float64:
      return reduce_float<Plain<double>, Plain<double>>(call);
    case DataType::Float32:
      return reduce_float<Plain<float>, Plain<float>>(call);
    case DataType::Float16:
      return reduce_float16_by_op(call);
    case DataType::BFloat16:
      return reduce_float<BFloat16, Plain<float>>(call);
    case DataType::Int8:
      return reduce_integer<int8_t, uint8_t, float>(call);
    case DataType::Int16:
      return reduce_integer<int16_t, uint16_t, float>(call);
    case DataType::Int32:
      return reduce_integer<int32_t, uint32_t, double>(call);
    case DataType::Int64:
      return reduce_integer<int64_t, uint64_t, int64_t>(call);
    case DataType::UInt8:
      return reduce_integer<uint8_t, uint8_t, float>(call);
    case DataType::UInt16:
      return reduce_integer<uint16_t, uint16_t, float>(call);
    case DataType::UInt32:
      return reduce_integer<uint32_t, uint32_t, double>(call);
    case DataType::UInt64:
      return reduce_integer<uint64_t, uint64_t, uint64_t>(call);
    case DataType::Bool:
      return reduce_bool(call);
    case DataType::Complex64:
      return reduce_complex<float>(call);
    case DataType::Complex128:
      return reduce_complex<double>(call);
    case DataType::Float8:
      return;
  }
}

void scale(const ScaleCall& call) {
  auto* out = static_cast<std::byte*>(call.target);
  const std::byte* in = at(call.source, 0);
  switch (call.dtype) {
    case DataType::Float64:
      return multiply<Plain<double>>(out, in, call.count, call.factor);
    case DataType::Float32:
      return multiply<Plain<float>>(out, in, call.count, call.factor);
    case DataType::Float16:
      return scale_float16(call);
    case DataType::BFloat16:
      return multiply<BFloat16>(out, in, call.count, call.factor);
    case DataType::Complex64:
      return multiply<Plain<float>>(out, in, 2 * call.count, call.factor);
    case DataType::Complex128:
      return multiply<Plain<double>>(out, in, 2 * call.count, call.factor);
    default:
      return;
  }
}

}  // namespace

const KernelTable kKernels = {reduce,           scale, encode, decode, combine,
                              is_payload_valid, widen, narrow};

}  // namespace pccl::kernels::PCCL_KERNEL_TARGET
