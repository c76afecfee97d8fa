#include "collectives/number_set.h"

#include <algorithm>

namespace pccl {

void NumberSet::insert(uint64_t number) {
  if (number < below_) return;
  above_.insert(number);
  while (!above_.empty() && *above_.begin() == below_) {
    above_.erase(above_.begin());
    below_ += 1;
  }
}

void NumberSet::insert_all_below(uint64_t bound) {
  below_ = std::max(below_, bound);
  above_.erase(above_.begin(), above_.lower_bound(below_));
  while (!above_.empty() && *above_.begin() == below_) {
    above_.erase(above_.begin());
    below_ += 1;
  }
}

}  // namespace pccl
