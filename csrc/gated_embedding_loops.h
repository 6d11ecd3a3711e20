// The vector loops of gated_embedding_concat, chosen for the processor at run time. No torch header
// here or in the .cpp, see gated_concat_loops.h.
#pragma once

#include <cstdint>

#include "gated_concat_loops.h"

namespace lpfs {

// A field that is dead has no rows in forward, and in backward only if it learns.
struct Lookup {
  double factor;
  bool dead, learns;
};

// Codes as they lie, `stride` apart; 64 or 32 bits each.
struct Codes {
  const void* data;
  int64_t stride;
  bool wide;
};

// The rows of some samples, bag after bag, of those fields that are read. `sizes` has the number of
// every bag, `fields` of them for a sample, or is null where each is one row. As many rows as are
// fetched ahead may be read beyond the last.
struct Bags {
  const int64_t *rows, *sizes;
  bool mean;
};
constexpr int64_t kRowsAhead = 24;

// What backward adds to rows, of which `first` is the first: the gradient of a sample, times its scale
// unless there are none. Row products that are `watched` are squared, too, which counts `row_scale` of
// their sample times, if any, and go into `products`, if any, at their places. Both are of the type
// that is computed in.
struct Additions {
  const int64_t *samples, *places, *rows;
  const double* scales;
  int64_t count, first;
  bool watched;
  const void* row_scale;
  void* products;
};

struct EmbeddingLoops {
  // rows[i] = first[i] + codes[i]; returns whether every code is below its limit.
  bool (*resolve)(Codes codes, const int64_t* first, const uint64_t* limits, int64_t count,
                  int64_t* rows);
  // Rows of the output, side by side: factor · the sum or mean of a bag. `past` the cache where
  // targets are whole lines. Returns the rows that are left.
  const int64_t* (*concat)(Rows weight, int64_t width, const Lookup* fields, int64_t count,
                           Bags bags, int64_t samples, void* target, bool past);
  // The entries of living fields: values = factor · grad, over the bag's size for a mean, for each
  // row of a bag. Row products are those of the sum or mean of the bag. The columns of `grad` are
  // adjacent.
  const int64_t* (*entries)(Rows weight, int64_t width, const Lookup* fields, int64_t count,
                            Bags bags, const void* grad, int64_t grad_stride, int64_t samples,
                            void* values, bool past, RowSums into);
  // totals[row − first] += factor · scale · grad unless `totals` is null, in the type that is
  // computed in. Returns the moments of the row products scale · ⟨grad, weight[row]⟩ unless
  // `weight.data` is null.
  Moments (*scatter)(Rows weight, Rows grad, int64_t width, double factor, Additions additions,
                     void* totals);
  // Rounds `count` elements of the type that is computed in.
  void (*round)(const void* totals, int64_t count, void* target);
};

const EmbeddingLoops& embedding_loops_for(Dtype dtype);

}  // namespace lpfs
