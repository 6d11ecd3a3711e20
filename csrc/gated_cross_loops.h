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
  // values[i] = factor · row[i]; elements are `column_stride` apart.
  void (*gather)(const void* row, int64_t field_stride, int64_t column_stride,
                 const CrossField* fields, int64_t count, int64_t width, int64_t stride,
                 void* values);
  void (*forward)(const Term* terms, int64_t count, const void* values, int64_t width,
                  int64_t stride, void* target);
  // Adds to `gradients`, one per field like `values`. Where terms are `gated`, their row products go
  // into `into`. The columns of `grad` are adjacent; what terms fetch is `ahead` bytes further.
  void (*backward)(const Term* terms, const Run* runs, int64_t count, const void* grad,
                   int64_t ahead, const void* values, int64_t width, int64_t stride,
                   void* gradients, bool gated, RowSums into);
  // target[i] = factor · gradients[i]. Where fields are `gated`, row products ⟨gradients[i], row[i]⟩
  // of those that learn go into `into`.
  void (*finish)(const void* row, int64_t field_stride, int64_t column_stride,
                 const CrossField* fields, const void* gradients, int64_t count, int64_t width,
                 int64_t stride, void* target, bool gated, RowSums into);
};

const CrossLoops& cross_loops_for(Dtype dtype);

}  // namespace lpfs
