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

template <class T, int N, bool kScale, bool kDot>
LPFS_INLINE void stream_flow(const Flow& flow, int64_t row, int64_t rows, int64_t ahead,
                             Compute<T>* sums) {
  const int64_t width = flow.source.width, stride = flow.source.rows.row_stride;
  const int64_t ahead_bytes = ahead * sizeof(T), grad_stride = flow.grad.row_stride;
  const T *grad = at<T>(flow.grad, row), *source = at<T>(flow.source.rows, row);
  T* target = static_cast<T*>(flow.target) + row * flow.target_stride;
  const Compute<T> factor = flow.source.factor;
  for (int64_t j = 0; j < width; j += N) {
    Vector<Compute<T>, N> upstream, value, sum;
    load<N>(sums + j, sum);
    for (int64_t r = 0; r < rows; ++r) {
      fetch(grad + r * grad_stride + j, ahead_bytes * grad_stride);
      load<N>(grad + r * grad_stride + j, upstream);
      if constexpr (kDot) {
        fetch(source + r * stride + j, ahead_bytes * stride);
        load<N>(source + r * stride + j, value);
        sum += upstream * value;
      }
      if constexpr (kScale) put_row<T, N>(target + r * flow.target_stride + j, upstream * factor);
    }
    store<N>(sums + j, sum);
  }
}

template <class T, int N>
LPFS_INLINE void stream_backward(const Flow* flows, int64_t count, int64_t row, int64_t rows,
                                 int64_t ahead, Compute<T>* sums) {
  for (const Flow* flow = flows; flow != flows + count; ++flow) {
    if (flow->source.dead) {
      T* target = static_cast<T*>(flow->target) + row * flow->target_stride;
      put_zeros<T, N>(target, rows, flow->target_stride, flow->source.width);
      if (flow->learns) stream_flow<T, N, false, true>(*flow, row, rows, ahead, sums);
    } else if (flow->learns) {
      stream_flow<T, N, true, true>(*flow, row, rows, ahead, sums);
    } else {
      stream_flow<T, N, true, false>(*flow, row, rows, ahead, sums);
    }
    sums += flow->source.width;
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
