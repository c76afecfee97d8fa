// Copies whose result nobody reads soon.
#pragma once

#include <cstddef>

namespace pccl::kernels {

// As memcpy(3), but the target's lines neither are read first nor stay in the cache. Worth it where
// a target is larger than the cache: it moves a third fewer bytes between cache and memory.
void* copy_past_cache(void* target, const void* source, size_t bytes);

}  // namespace pccl::kernels
