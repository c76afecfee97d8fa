#include "topology/simplex.h"

#include <utility>

namespace pccl::topology {
namespace {

constexpr double kTolerance = 1e-9;

// basic = right side - table * others; what is basic exchanges with what is not, step by step.
class Table {
 public:
  Table(std::vector<double> a, size_t rows, size_t columns)
      : cells_(std::move(a)),
        rows_(rows),
        columns_(columns),
        right_(rows),
        gain_(columns, 1),
        basic_(rows),
        other_(columns) {
    for (size_t row = 0; row < rows; ++row) {
      basic_[row] = columns + row;
      // Where links are alike, many rows would be tight at once, and steps without gain could go in
      // a circle. Slightly uneven right sides prevent that.
      right_[row] = 1 + 1e-7 * static_cast<double>((row * 7919 + 1) % 1009) / 1009;
    }
    for (size_t column = 0; column < columns; ++column) other_[column] = column;
  }

  SimplexResult solve(uint64_t work_max) {
    const uint64_t cells_each_step = rows_ * columns_ + 1;
    uint64_t work = 0;
    for (; work < work_max; work += cells_each_step) {
      const size_t column = entering();
      if (column == columns_) break;
      const size_t row = leaving(column);
      if (row == rows_) break;
      exchange(row, column);
    }
    SimplexResult result{std::vector<double>(columns_), std::vector<double>(rows_), work};
    for (size_t row = 0; row < rows_; ++row) {
      if (basic_[row] < columns_) result.x[basic_[row]] = right_[row];
    }
    for (size_t column = 0; column < columns_; ++column) {
      if (other_[column] >= columns_) result.prices[other_[column] - columns_] = -gain_[column];
    }
    return result;
  }

 private:
  double& cell(size_t row, size_t column) { return cells_[row * columns_ + column]; }

  size_t entering() const {
    size_t best = columns_;
    double best_gain = kTolerance;
    for (size_t column = 0; column < columns_; ++column) {
      if (gain_[column] <= best_gain) continue;
      best = column;
      best_gain = gain_[column];
    }
    return best;
  }

  // The row that first forbids more of `column`.
  size_t leaving(size_t column) {
    size_t best = rows_;
    double best_room = 0;
    for (size_t row = 0; row < rows_; ++row) {
      if (cell(row, column) <= kTolerance) continue;
      const double room = right_[row] / cell(row, column);
      if (best != rows_ && room >= best_room) continue;
      best = row;
      best_room = room;
    }
    return best;
  }

  void exchange(size_t row, size_t column) {
    const double inverse = 1 / cell(row, column);
    for (size_t other = 0; other < columns_; ++other) cell(row, other) *= inverse;
    cell(row, column) = inverse;
    right_[row] *= inverse;
    for (size_t other = 0; other < rows_; ++other) {
      const double factor = cell(other, column);
      if (other == row || factor == 0) continue;
      cell(other, column) = 0;
      for (size_t k = 0; k < columns_; ++k) cell(other, k) -= factor * cell(row, k);
      right_[other] -= factor * right_[row];
      if (right_[other] < 0) right_[other] = 0;  // rounding
    }
    const double factor = gain_[column];
    gain_[column] = 0;
    for (size_t k = 0; k < columns_; ++k) gain_[k] -= factor * cell(row, k);
    std::swap(basic_[row], other_[column]);
  }

  std::vector<double> cells_;  // [row * columns + column]
  const size_t rows_;
  const size_t columns_;
  std::vector<double> right_;
  std::vector<double> gain_;   // of the sum, by each unit of what is not basic
  std::vector<size_t> basic_;  // [row]; columns, then slacks of rows
  std::vector<size_t> other_;  // [column]
};

}  // namespace

SimplexResult largest_sum(std::vector<double> a, size_t rows, size_t columns, uint64_t work_max) {
  return Table(std::move(a), rows, columns).solve(work_max);
}

}  // namespace pccl::topology
