// Numbers that have been given out: all below a bound, and some above it.
#pragma once

#include <cstdint>
#include <set>

namespace pccl {

class NumberSet {
 public:
  bool contains(uint64_t number) const { return number < below_ || above_.contains(number); }
  void insert(uint64_t number);
  void insert_all_below(uint64_t bound);
  // All numbers below are in it.
  uint64_t below() const { return below_; }
  uint64_t next() const { return above_.empty() ? below_ : *above_.rbegin() + 1; }

 private:
  uint64_t below_ = 0;
  std::set<uint64_t> above_;
};

}  // namespace pccl
