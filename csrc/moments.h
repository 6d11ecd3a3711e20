// Sums over rows of row products ⟨∂L/∂y, e⟩ and of their squares. No torch header here.
#pragma once

namespace lpfs {

struct Moments {
  double sum = 0, square = 0;

  Moments& operator+=(const Moments& other) {
    sum += other.sum, square += other.square;
    return *this;
  }
};

}  // namespace lpfs
