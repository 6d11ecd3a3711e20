#include "gated_concat_loops.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "vectors.h"

namespace lpfs {
namespace {

// Row r, gathered into `buffer` if its columns do not lie side by side.
template <class T>
LPFS_INLINE const T* row_of(const Rows& rows, int64_t r, int64_t width, T* buffer) {
  const T* row = static_cast<const T*>(rows.data) + r * rows.row_stride;
  if (rows.column_stride == 1) return row;
  for (int64_t j = 0; j < width; ++j) buffer[j] = row[j * rows.column_stride];
  return buffer;
}

template <class T, int N>
LPFS_INLINE void scale_row(const T* source, Compute<T> factor, int64_t width, int64_t ahead_bytes,
                           T* target) {
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    fetch(source + j, ahead_bytes);
    Vector<Compute<T>, N> value;
    load<N>(source + j, value);
    store<N>(target + j, value * factor);
  }
  if constexpr (N > 1) {
    if (j < width) scale_row<T, N / 2>(source + j, factor, width - j, ahead_bytes, target + j);
  }
}

template <class T, int N>
LPFS_INLINE void concat_row(const Source* sources, int64_t count, int64_t row, int64_t ahead,
                            T* target) {
  T buffer[kSourceBytes / sizeof(T)];
  for (const Source* source = sources; source != sources + count; ++source) {
    const Rows& rows = source->rows;
    if (source->dead) {
      std::memset(target, 0, source->width * sizeof(T));
    } else {
      scale_row<T, N>(row_of(rows, row, source->width, buffer), source->factor, source->width,
                      ahead * rows.row_stride * sizeof(T), target);
    }
    target += source->width;
  }
}

template <class T, int N, bool kScale, bool kDot>
LPFS_INLINE void backward_row(const T* grad, const T* source, Compute<T> factor, int64_t width,
                              int64_t grad_ahead, int64_t source_ahead, T* target,
                              Sums<Compute<T>, N>& sums) {
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> upstream, value;
    fetch(grad + j, grad_ahead);
    load<N>(grad + j, upstream);
    if constexpr (kDot) {
      fetch(source + j, source_ahead);
      load<N>(source + j, value);
      sums.lanes += upstream * value;
    }
    if constexpr (kScale) store<N>(target + j, upstream * factor);
  }
  if constexpr (N > 1) {
    if (j < width) {
      backward_row<T, N / 2, kScale, kDot>(grad + j, source + j, factor, width - j, grad_ahead,
                                           source_ahead, target + j, sums.rest);
    }
  }
}

template <class T, int N, bool kScale, bool kDot>
LPFS_INLINE double backward_rows(const Rows& grad, const Rows& source, Compute<T> factor,
                                 int64_t rows, int64_t width, int64_t ahead, T* target,
                                 int64_t target_stride) {
  T grad_buffer[kSourceBytes / sizeof(T)], source_buffer[kSourceBytes / sizeof(T)];
  const int64_t ahead_bytes = ahead * sizeof(T);
  Sums<Compute<T>, N> sums;
  for (int64_t r = 0; r < rows; ++r) {
    backward_row<T, N, kScale, kDot>(
        row_of(grad, r, width, grad_buffer),
        kDot ? row_of(source, r, width, source_buffer) : nullptr, factor, width,
        ahead_bytes * grad.row_stride, ahead_bytes * source.row_stride,
        kScale ? target + r * target_stride : nullptr, sums);
  }
  return sums.total();
}

template <class T, int N>
LPFS_INLINE double scale_and_dot(const Rows& grad, const Rows& source, Compute<T> factor,
                                 int64_t rows, int64_t width, int64_t ahead, T* target,
                                 int64_t target_stride) {
  if (!target) {
    return backward_rows<T, N, false, true>(grad, source, factor, rows, width, ahead, target,
                                            target_stride);
  }
  if (!source.data) {
    return backward_rows<T, N, true, false>(grad, source, factor, rows, width, ahead, target,
                                            target_stride);
  }
  return backward_rows<T, N, true, true>(grad, source, factor, rows, width, ahead, target,
                                         target_stride);
}

template <class T, int N>
LPFS_INLINE void put_zeros(T* target, int64_t rows, int64_t stride, int64_t width) {
  const Vector<Compute<T>, N> zero{};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < width; j += N) put_row<T, N>(target + r * stride + j, zero);
  }
}

template <class T>
LPFS_INLINE const T* at(const Rows& rows, int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.row_stride;
}

template <class T, int N>
LPFS_INLINE void stream_concat(const Source* sources, int64_t count, int64_t row, int64_t rows,
                               int64_t ahead, T* target, int64_t target_stride) {
  for (const Source* source = sources; source != sources + count; ++source) {
    const int64_t width = source->width, stride = source->rows.row_stride;
    if (source->dead) {
      put_zeros<T, N>(target, rows, target_stride, width);
    } else {
      const T* from = at<T>(source->rows, row);
      const Compute<T> factor = source->factor;
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t j = 0; j < width; j += N) {
          Vector<Compute<T>, N> value;
          fetch(from + r * stride + j, ahead * stride * sizeof(T));
          load<N>(from + r * stride + j, value);
          put_row<T, N>(target + r * target_stride + j, value * factor);
        }
      }
    }
    target += width;
  }
}

// One vector of columns of a flow, from some row on.
template <class T>
struct Column {
  const T *grad, *source;
  T* target;
  int64_t grad_stride, source_stride, target_stride;
  Compute<T> factor, *sums;
};

// Down the rows of C neighbours at a time: lines that lie side by side are read together.
template <class T, int N, bool kScale, bool kDot, int C>
LPFS_INLINE void stream_columns(const Column<T>* columns, int64_t rows, int64_t ahead) {
  Vector<Compute<T>, N> sums[C];
  for (int c = 0; c < C; ++c) load<N>(columns[c].sums, sums[c]);
  for (int64_t r = 0; r < rows; ++r) {
    for (int c = 0; c < C; ++c) {
      const Column<T>& column = columns[c];
      Vector<Compute<T>, N> upstream, value;
      const T* grad = column.grad + r * column.grad_stride;
      fetch(grad, ahead * column.grad_stride * sizeof(T));
      load<N>(grad, upstream);
      if constexpr (kDot) {
        const T* source = column.source + r * column.source_stride;
        fetch(source, ahead * column.source_stride * sizeof(T));
        load<N>(source, value);
        sums[c] += upstream * value;
      }
      if constexpr (kScale) {
        put_row<T, N>(column.target + r * column.target_stride, upstream * column.factor);
      }
    }
  }
  for (int c = 0; c < C; ++c) store<N>(columns[c].sums, sums[c]);
}

template <class T, int N, bool kScale, bool kDot>
LPFS_INLINE void stream_flows(const Flow* flows, const Flow* end, int64_t row, int64_t rows,
                              int64_t ahead, Compute<T>* sums) {
  constexpr int kTogether = 2;
  Column<T> columns[kTogether];
  int count = 0;
  for (const Flow* flow = flows; flow != end; ++flow) {
    const Rows &grad = flow->grad, &source = flow->source.rows;
    T* const target = static_cast<T*>(flow->target) + row * flow->target_stride;
    for (int64_t j = 0; j < flow->source.width; j += N, sums += N) {
      columns[count++] = {at<T>(grad, row) + j,
                          at<T>(source, row) + j,
                          target + j,
                          grad.row_stride,
                          source.row_stride,
                          flow->target_stride,
                          static_cast<Compute<T>>(flow->source.factor),
                          sums};
      if (count < kTogether) continue;
      stream_columns<T, N, kScale, kDot, kTogether>(columns, rows, ahead);
      count = 0;
    }
  }
  for (int c = 0; c < count; ++c) {
    stream_columns<T, N, kScale, kDot, 1>(columns + c, rows, ahead);
  }
}

template <class T, int N>
LPFS_INLINE void stream_backward(const Flow* flows, int64_t count, int64_t row, int64_t rows,
                                 int64_t ahead, Compute<T>* sums) {
  for (const Flow *flow = flows, *next; flow != flows + count; flow = next) {
    int64_t width = 0;
    for (next = flow; next != flows + count && next->source.dead == flow->source.dead &&
                      next->learns == flow->learns;
         ++next) {
      width += next->source.width;
      if (!next->source.dead) continue;
      T* target = static_cast<T*>(next->target) + row * next->target_stride;
      put_zeros<T, N>(target, rows, next->target_stride, next->source.width);
    }
    if (flow->source.dead) {
      if (flow->learns) stream_flows<T, N, false, true>(flow, next, row, rows, ahead, sums);
    } else if (flow->learns) {
      stream_flows<T, N, true, true>(flow, next, row, rows, ahead, sums);
    } else {
      stream_flows<T, N, true, false>(flow, next, row, rows, ahead, sums);
    }
    sums += width;
  }
}

#define LPFS_DEFINE_LOOPS(NAME, VECTOR_BYTES, ATTRIBUTES)                                         \
  template <class T>                                                                              \
  struct NAME {                                                                                   \
    static constexpr int N = VECTOR_BYTES / sizeof(Compute<T>);                                   \
    ATTRIBUTES static void concat_row(const Source* sources, int64_t count, int64_t row,          \
                                      int64_t ahead, void* target) {                              \
      lpfs::concat_row<T, N>(sources, count, row, ahead, static_cast<T*>(target));                \
    }                                                                                             \
    ATTRIBUTES static double scale_and_dot(Rows grad, Rows source, double factor, int64_t rows,   \
                                           int64_t width, int64_t ahead, void* target,            \
                                           int64_t target_stride) {                               \
      return lpfs::scale_and_dot<T, N>(grad, source, factor, rows, width, ahead,                  \
                                       static_cast<T*>(target), target_stride);                   \
    }                                                                                             \
    ATTRIBUTES static void stream_concat(const Source* sources, int64_t count, int64_t row,       \
                                         int64_t rows, int64_t ahead, void* target,               \
                                         int64_t target_stride) {                                 \
      lpfs::stream_concat<T, N>(sources, count, row, rows, ahead, static_cast<T*>(target),        \
                                target_stride);                                                   \
    }                                                                                             \
    ATTRIBUTES static void stream_backward(const Flow* flows, int64_t count, int64_t row,         \
                                           int64_t rows, int64_t ahead, void* sums) {             \
      lpfs::stream_backward<T, N>(flows, count, row, rows, ahead,                                 \
                                  static_cast<Compute<T>*>(sums));                                \
    }                                                                                             \
    static constexpr Loops kLoops{concat_row, scale_and_dot, stream_concat, stream_backward};     \
  };

LPFS_DEFINE_LOOPS(Baseline, 16, )
#if defined(__x86_64__)
LPFS_DEFINE_LOOPS(Avx2, 32, __attribute__((target("avx2,fma,f16c"))))
LPFS_DEFINE_LOOPS(Avx512, 64, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))))
#endif

template <template <class> class Set>
const Loops& loops_of(Dtype dtype) {
  static constexpr Loops kLoops[] = {Set<double>::kLoops, Set<float>::kLoops, Set<Half>::kLoops,
                                     Set<BFloat16>::kLoops};
  return kLoops[static_cast<int>(dtype)];
}

}  // namespace

const Loops& loops_for(Dtype dtype) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return loops_of<Avx512>(dtype);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return loops_of<Avx2>(dtype);
  }
#endif
  return loops_of<Baseline>(dtype);
}

void stream(void* target, const void* source, int64_t bytes) {
#if defined(__x86_64__)
  auto* to = static_cast<char*>(target);
  auto* from = static_cast<const char*>(source);
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & 63);
  std::memcpy(to, from, head);
  to += head, from += head, bytes -= head;
  for (; bytes >= 64; to += 64, from += 64, bytes -= 64) {
    for (int i = 0; i < 64; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
  }
  std::memcpy(to, from, bytes);
#else
  std::memcpy(target, source, bytes);
#endif
}

void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace lpfs
