// The vector loops of gated_cross_concat, chosen for the processor at run time. No torch header here
// or in the .cpp, see gated_concat_loops.h.
#pragma once

#include <cstdint>

#include "gated_concat_loops.h"

namespace lpfs {

// factor · first ⊙ second, or factor · first where `second` is negative. A term that is not alive is
// zero in the output. Backward: whose gradients it adds to, and whether its gate has one; and whether
// the gradient that lies `ahead` will be read.
struct Term {
  int64_t first, second;
  double factor;
  bool alive, to_first, to_second, learns, fetches = false;

  bool is_read() const { return to_first || to_second || learns; }
};

// A field that is dead has no embedding: zeros stand for it, and its gradient is zero.
struct CrossField {
  double factor;
  bool dead, learns;
};

// Neighbouring terms of one first field.
struct Run {
  int64_t begin, end;
};

// Each works on one row. `values` holds its fields as they are computed with, float or double,
// `stride` elements apart.
struct CrossLoops {
  // How many partial sums a gate has.
  int64_t lanes;
  // values[i] = factor · row[i]; elements are `column_stride` apart.
  void (*gather)(const void* row, int64_t field_stride, int64_t column_stride,
                 const CrossField* fields, int64_t count, int64_t width, int64_t stride,
                 void* values);
  void (*forward)(const Term* terms, int64_t count, const void* values, int64_t width,
                  int64_t stride, void* target);
  // Adds to `gradients`, one per field like `values`, and to `sums`, `lanes` per term. The columns of
  // `grad` are adjacent; what terms fetch is `ahead` bytes further.
  void (*backward)(const Term* terms, const Run* runs, int64_t count, const void* grad,
                   int64_t ahead, const void* values, int64_t width, int64_t stride,
                   void* gradients, void* sums);
  // target[i] = factor · gradients[i]; and sums[i] += gradients[i] · row[i] for fields that learn.
  void (*finish)(const void* row, int64_t field_stride, int64_t column_stride,
                 const CrossField* fields, const void* gradients, int64_t count, int64_t width,
                 int64_t stride, void* target, void* sums);
  // The sum of a gate's partial sums.
  double (*total)(const void* sums);
  // Of `count` gates, in whole vectors: the sums of their partial sums, `products`, which it adds to
  // `totals` and squared, times `scale`, to `squares`.
  void (*fold)(const void* sums, int64_t count, double scale, void* products, void* totals,
               void* squares);
};

const CrossLoops& cross_loops_for(Dtype dtype);

}  // namespace lpfs
