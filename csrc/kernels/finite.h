// Numbers that are none.
#pragma once

#include <cstddef>
#include <optional>

#include "base/types.h"

namespace pccl::kernels {

// The first of `count` elements that is NaN or infinite. Integers never are; of Float8, whose
// formats differ, nothing is said. One pass at the speed of memory. `data` need not be aligned.
std::optional<size_t> find_nonfinite(const void* data, size_t count, DataType dtype);

}  // namespace pccl::kernels
