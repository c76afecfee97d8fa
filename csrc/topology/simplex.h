// A small linear program: the largest sum of x >= 0 with A x <= 1.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace pccl::topology {

struct SimplexResult {
  std::vector<double> x;       // [column]
  std::vector<double> prices;  // [row]: the dual values; a column with a price below 1 would help
  uint64_t work = 0;           // cells computed
};

// `a[row * columns + column]` >= 0, every column with an entry above 0. The dense simplex method:
// rows * columns cells a step, about as many steps as columns. After `work_max` cells it stops: x
// is a solution at every step, at the last one the best.
SimplexResult largest_sum(std::vector<double> a, size_t rows, size_t columns, uint64_t work_max);

}  // namespace pccl::topology
