// The vector loops of gated_concat, chosen for the processor at run time. No torch header here or in
// the .cpp: inline functions of torch compiled for AVX-512 could be the copies that the linker keeps.
#pragma once

#include <cstdint>

#include "moments.h"

namespace lpfs {

enum class Dtype { float64, float32, float16, bfloat16 };

// Rows of a matrix, or of some of its columns. Strides count elements.
struct Rows {
  const void* data;
  int64_t row_stride, column_stride;
};

// What one field puts into a row of the output; `dead` columns are zero.
struct Source {
  Rows rows;
  int64_t width;
  double factor;
  bool dead;
};

// What passes one source in backward. Its target holds factor · grad, or zero where it is dead. Row
// products, of the type that is computed in, go into `products`, if any, from row 0 on.
struct Flow {
  Source source;
  Rows grad;
  bool learns;
  void* target;
  int64_t target_stride;
  void* products = nullptr;
};

// Row products of each flow, of the type that is computed in, as many as whole lines take and a line
// more. Those of all rows of what lives and of the first ones of what is dead go into `sums` and, times
// `row_scale` of their row, if any, squared into `squares`; of the others, what learns has them apart.
// Some go into `products` too, if they are `shared`. With `everything` what does not learn has them too.
struct Watch {
  int64_t dead_rows;
  const void* row_scale;
  bool shared, everything;
  void *sums, *squares, *other_sums, *other_squares;
};

// No source is wider than this, so that lane sums stay short and buffers small.
constexpr int64_t kSourceBytes = 2048;

// `ahead` is how many rows further down to fetch into the cache: a processor follows a few streams
// by itself, a list has one per field.
struct Loops {
  // Writes one row: factor · source, the sources side by side.
  void (*concat_row)(const Source* sources, int64_t count, int64_t row, int64_t ahead,
                     void* target);
  // Writes target = factor · grad unless `target` is null.
  // Returns Σ grad ⊙ source, or 0 if `source.data` is null.
  double (*scale_and_dot)(Rows grad, Rows source, double factor, int64_t rows, int64_t width,
                          int64_t ahead, void* target, int64_t target_stride);
  // The same; and of the first rows, as many as are `watched`, the moments and products.
  double (*watch_and_dot)(Rows grad, Rows source, double factor, int64_t rows, int64_t width,
                          int64_t ahead, void* target, int64_t target_stride, int64_t watched,
                          const void* row_scale, void* products, Moments* moments);
  // The same past the cache, some rows of a source or two before the next, where columns lie side by
  // side and targets are whole cache lines.
  void (*stream_concat)(const Source* sources, int64_t count, int64_t row, int64_t rows,
                        int64_t ahead, void* target, int64_t target_stride);
  void (*stream_backward)(const Flow* flows, int64_t count, int64_t row, int64_t rows,
                          int64_t ahead, Watch watch);
};

constexpr int64_t kLineBytes = 64;

const Loops& loops_for(Dtype dtype);

// memcpy past the cache. `fence` before another thread may read what was streamed.
void stream(void* target, const void* source, int64_t bytes);
void fence();

}  // namespace lpfs
