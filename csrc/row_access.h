// Rows of a matrix by their number. For files without a torch header, like vectors.h.
#pragma once

#include "gated_concat_loops.h"
#include "vectors.h"

namespace lpfs {
namespace {

template <class T>
LPFS_INLINE const T* row_at(const Rows& rows, int64_t row, int64_t column) {
  return static_cast<const T*>(rows.data) + row * rows.row_stride + column * rows.column_stride;
}

template <class T, int N>
LPFS_INLINE void load_from(const Rows& rows, int64_t row, int64_t column,
                           Vector<Compute<T>, N>& value) {
  const T* source = row_at<T>(rows, row, column);
  if (rows.column_stride == 1) {
    load<N>(source, value);
  } else {
    T items[N];
    for (int k = 0; k < N; ++k) items[k] = source[k * rows.column_stride];
    load<N>(items, value);
  }
}

}  // namespace
}  // namespace lpfs
