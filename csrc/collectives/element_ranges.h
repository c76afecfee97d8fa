// Elements of a tensor, as people read them in an error.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pccl {

struct ElementRange {
  uint64_t begin = 0;
  uint64_t end = 0;
};

// What the tensor of a failed all_reduce of `count` elements holds: the result in `results`,
// fragments in `torn`, its input elsewhere (`is_in_place`), or what it held before.
std::string describe_reduced(std::vector<ElementRange> results, std::vector<ElementRange> torn,
                             uint64_t count, bool is_in_place);

}  // namespace pccl
