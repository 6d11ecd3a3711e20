// Sums over rows of row products ⟨∂L/∂y, e⟩ and of their squares. No torch header here.
#pragma once

#include <cstdint>

namespace lpfs {

struct Moments {
  double sum = 0, square = 0;

  Moments& operator+=(const Moments& other) {
    sum += other.sum, square += other.square;
    return *this;
  }
};

// Where row products go, a row of many sources after the other: into `sums` and squared, times
// `row_scale` of their row, if any, into `squares`, a vector at a time; and into `products` of their
// source, from row 0 on, if there are any. Of the type that is computed in. `row` is the first one's.
struct RowSums {
  int64_t row;
  const void* row_scale;
  void* const* products;
  void *sums, *squares;
};

}  // namespace lpfs
