// Arithmetic on host memory: the only place where elements are added.
//
// Pure functions; any thread. One portable source is compiled per instruction set and the best one
// is chosen once at run time; every target gives the same bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "base/types.h"

namespace pccl::kernels {

// target[i] = ((sources[0][i] op sources[1][i]) op sources[2][i]) ..., left to right, and for Avg
// divided by `divisor` at the end. Float16 and BFloat16 accumulate in float and round once. Bool:
// sum, max and bor are "or"; product, min and band are "and". Min and Max propagate NaN. Integer
// overflow wraps; the integer average truncates towards zero. PremulSum adds (the factor was
// applied by scale()). Requires: is_reducible(dtype, op); 1 <= sources.size() <= kSourcesMax;
// `target` equals one of the sources or overlaps none; divisor >= 1 (1: no division). Pointers need
// no alignment beyond that of the element, which is not assumed either.
inline constexpr size_t kSourcesMax = 64;
void reduce(void* target, std::span<const void* const> sources, size_t count, DataType dtype,
            ReduceOp op, int64_t divisor = 1);

// target[i] = source[i] * factor (PremulSum's first half). Requires: a float or complex dtype.
void scale(void* target, const void* source, size_t count, DataType dtype, double factor);

// The instruction set in use: "x86-64-v4", -v3, -v2, "baseline". Chosen at the first call;
// `select_target` overrides it (tests; PCCL_SIMD in the environment). Returns false where the
// machine lacks it.
std::string_view selected_target();
bool select_target(std::string_view name);

}  // namespace pccl::kernels
