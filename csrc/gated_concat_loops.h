// The vector loops of gated_concat, chosen for the processor at run time. No torch header here or in
// the .cpp: inline functions of torch compiled for AVX-512 could be the copies that the linker keeps.
#pragma once

#include <cstdint>

namespace lpfs {

enum class Dtype { float64, float32, float16, bfloat16 };

// The rows of one field. Strides count elements.
struct Rows {
  const void* data;
  int64_t row_stride, column_stride;
};

// No call passes more columns than this, so that lane sums stay short.
constexpr int64_t kRowBytes = 2048;

struct Loops {
  // target = factor · source
  void (*scale)(Rows source, double factor, int64_t rows, int64_t width, void* target,
                int64_t target_stride);
  // target = factor · grad; returns Σ grad ⊙ source
  double (*scale_and_dot)(Rows grad, Rows source, double factor, int64_t rows, int64_t width,
                          void* target, int64_t target_stride);
  // returns Σ grad ⊙ source
  double (*dot)(Rows grad, Rows source, int64_t rows, int64_t width);
};

const Loops& loops_for(Dtype dtype);

// memcpy past the cache. `fence` before another thread may read what was streamed.
void stream(void* target, const void* source, int64_t bytes);
void fence();

}  // namespace lpfs
