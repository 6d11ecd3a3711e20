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
// unless there are none.
struct Additions {
  const int64_t *samples, *rows;
  const double* scales;
  int64_t count, first;
};

struct EmbeddingLoops {
  // How many partial sums a gate has.
  int64_t lanes;
  // rows[i] = first[i] + codes[i]; returns whether every code is below its limit.
  bool (*resolve)(Codes codes, const int64_t* first, const uint64_t* limits, int64_t count,
                  int64_t* rows);
  // Rows of the output, side by side: factor · the sum or mean of a bag. `past` the cache where
  // targets are whole lines. Returns the rows that are left.
  const int64_t* (*concat)(Rows weight, int64_t width, const Lookup* fields, int64_t count,
                           Bags bags, int64_t samples, void* target, bool past);
  // The entries of living fields: values = factor · grad, over the bag's size for a mean, for each
  // row of a bag. Adds grad ⊙ the sum or mean of the bag to `sums`, `lanes` per field. The columns
  // of `grad` are adjacent.
  const int64_t* (*entries)(Rows weight, int64_t width, const Lookup* fields, int64_t count,
                            Bags bags, const void* grad, int64_t grad_stride, int64_t samples,
                            void* values, bool past, void* sums);
  // totals[row − first] += factor · scale · grad unless `totals` is null, in the type that is
  // computed in; sums += scale · grad ⊙ weight[row] unless `weight.data` is null. `sums` has `lanes`
  // for all additions together or, `apart`, for each.
  void (*scatter)(Rows weight, Rows grad, int64_t width, double factor, Additions additions,
                  void* totals, void* sums, bool apart);
  // Rounds `count` elements of the type that is computed in.
  void (*round)(const void* totals, int64_t count, void* target);
  // The sum of a gate's partial sums.
  double (*total)(const void* sums);
  // Of `count` gates or additions, in whole vectors: the sums of their partial sums, `products`,
  // which it adds to `totals` and squared, times `scale`, to `squares`.
  void (*fold)(const void* sums, int64_t count, double scale, void* products, void* totals,
               void* squares);
};

const EmbeddingLoops& embedding_loops_for(Dtype dtype);

}  // namespace lpfs
