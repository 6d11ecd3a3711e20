#include "gated_concat_loops.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "row_products.h"
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

// With kLanes, also the row's products, as N sums; what a narrower vector takes is added to the first
// of them.
template <class T, int N, bool kScale, bool kDot, bool kLanes, bool kAdds = false>
LPFS_INLINE void backward_row(const T* grad, const T* source, Compute<T> factor, int64_t width,
                              int64_t grad_ahead, int64_t source_ahead, T* target,
                              Sums<Compute<T>, N>& sums, Compute<T>* lanes) {
  Vector<Compute<T>, N> products{};
  if constexpr (kAdds) load<N>(lanes, products);
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> upstream, value;
    fetch(grad + j, grad_ahead);
    load<N>(grad + j, upstream);
    if constexpr (kDot) {
      fetch(source + j, source_ahead);
      load<N>(source + j, value);
      sums.lanes += upstream * value;
      if constexpr (kLanes) products += upstream * value;
    }
    if constexpr (kScale) store<N>(target + j, upstream * factor);
  }
  if constexpr (kLanes) store<N>(lanes, products);
  if constexpr (N > 1) {
    if (j < width) {
      backward_row<T, N / 2, kScale, kDot, kLanes, kLanes>(grad + j, source + j, factor, width - j,
                                                           grad_ahead, source_ahead, target + j,
                                                           sums.rest, lanes);
    }
  }
}

template <class T, int N, bool kScale, bool kDot, bool kWatch>
LPFS_INLINE double backward_rows(const Rows& grad, const Rows& source, Compute<T> factor,
                                 int64_t rows, int64_t width, int64_t ahead, T* target,
                                 int64_t target_stride, int64_t watched, Compute<T>* products,
                                 Moments* moments) {
  using C = Compute<T>;
  T grad_buffer[kSourceBytes / sizeof(T)], source_buffer[kSourceBytes / sizeof(T)];
  const int64_t ahead_bytes = ahead * sizeof(T);
  Sums<C, N> sums;
  const auto pass = [&](int64_t r, C* lanes, auto with_lanes) LPFS_INLINE_LAMBDA {
    backward_row<T, N, kScale, kDot, decltype(with_lanes)::value>(
        row_of(grad, r, width, grad_buffer),
        kDot ? row_of(source, r, width, source_buffer) : nullptr, factor, width,
        ahead_bytes * grad.row_stride, ahead_bytes * source.row_stride,
        kScale ? target + r * target_stride : nullptr, sums, lanes);
  };
  int64_t r = 0;
  if constexpr (kWatch) {
    alignas(64) C lanes[N * N];
    RowProducts<C, N> row_products;
    while (r < watched) {
      const int64_t count = std::min<int64_t>(N, watched - r);
      if (count < N) std::fill_n(lanes + count * N, (N - count) * N, C(0));
      for (int64_t k = 0; k < count; ++k) pass(r + k, lanes + k * N, std::true_type{});
      row_products.add(lanes, count, products ? products + r : nullptr);
      r += count;
    }
    row_products.add_to(*moments);
  }
  for (; r < rows; ++r) pass(r, nullptr, std::false_type{});
  return sums.total();
}

template <class T, int N, bool kWatch>
LPFS_INLINE double scale_and_dot(const Rows& grad, const Rows& source, Compute<T> factor,
                                 int64_t rows, int64_t width, int64_t ahead, T* target,
                                 int64_t target_stride, int64_t watched = 0,
                                 Compute<T>* products = nullptr, Moments* moments = nullptr) {
  if (!target) {
    return backward_rows<T, N, false, true, kWatch>(grad, source, factor, rows, width, ahead,
                                                    target, target_stride, watched, products,
                                                    moments);
  }
  if (!source.data) {
    return backward_rows<T, N, true, false, false>(grad, source, factor, rows, width, ahead,
                                                   target, target_stride, 0, nullptr, nullptr);
  }
  return backward_rows<T, N, true, true, kWatch>(grad, source, factor, rows, width, ahead, target,
                                                 target_stride, watched, products, moments);
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

// One vector of columns of a flow, from some row on. What `adds` to the lanes of its flow is not the
// first to write them.
template <class T>
struct Column {
  const T *grad, *source;
  T* target;
  int64_t grad_stride, source_stride, target_stride;
  Compute<T> factor, *sums, *lanes;
  bool adds;
};

// Down the rows of C neighbours at a time: lines that lie side by side are read together.
template <class T, int N, bool kScale, bool kDot, bool kLanes, int C>
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
        if constexpr (kLanes) {
          Vector<Compute<T>, N> products{};
          if (column.adds) load<N>(column.lanes + r * N, products);
          store<N>(column.lanes + r * N, products + upstream * value);
        }
      }
      if constexpr (kScale) {
        put_row<T, N>(column.target + r * column.target_stride, upstream * column.factor);
      }
    }
  }
  for (int c = 0; c < C; ++c) store<N>(columns[c].sums, sums[c]);
}

// With kLanes, `rows` vectors of lanes for each flow.
template <class T, int N, bool kScale, bool kDot, bool kLanes>
LPFS_INLINE void stream_flows(const Flow* flows, const Flow* end, int64_t row, int64_t rows,
                              int64_t ahead, Compute<T>* sums, Compute<T>* lanes) {
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
                          sums,
                          lanes,
                          j > 0};
      if (count < kTogether) continue;
      stream_columns<T, N, kScale, kDot, kLanes, kTogether>(columns, rows, ahead);
      count = 0;
    }
    if constexpr (kLanes) lanes += rows * N;
  }
  for (int c = 0; c < count; ++c) {
    stream_columns<T, N, kScale, kDot, kLanes, 1>(columns + c, rows, ahead);
  }
}

// Vectors of lanes that wait in the nearest cache to be folded.
constexpr int64_t kWaiting = kRowsWatched;

// Row products of `count` flows from `rows` vectors of lanes for each; up to kWaiting in all.
template <class T, int N>
LPFS_INLINE void fold_flows(const Flow* flows, int64_t count, int64_t row, int64_t rows,
                            Compute<T>* lanes, Moments* moments) {
  using C = Compute<T>;
  if (rows >= N) {
    for (int64_t i = 0; i < count; ++i, lanes += rows * N) {
      C* const products = static_cast<C*>(flows[i].products);
      RowProducts<C, N> row_products;
      int64_t r = 0;
      for (; r + N <= rows; r += N) {
        row_products.add(lanes + r * N, N, products ? products + row + r : nullptr);
      }
      if (r < rows) {
        C rest[N * N]{};
        std::memcpy(rest, lanes + r * N, (rows - r) * N * sizeof(C));
        row_products.add(rest, rows - r, products ? products + row + r : nullptr);
      }
      row_products.add_to(moments[i]);
    }
    return;
  }
  C folded[kWaiting];
  const int64_t vectors = count * rows, whole = (vectors + N - 1) / N * N;
  std::fill_n(lanes + vectors * N, (whole - vectors) * N, C(0));
  for (int64_t k = 0; k < vectors; k += N) {
    Vector<C, N> sums;
    fold<C, N>(lanes + k * N, sums);
    store<N>(folded + k, sums);
  }
  const C* next = folded;
  for (int64_t i = 0; i < count; ++i, next += rows) {
    for (int64_t r = 0; r < rows; ++r) {
      const double product = next[r];
      moments[i].sum += product, moments[i].square += product * product;
    }
    if (flows[i].products) {
      std::memcpy(static_cast<C*>(flows[i].products) + row, next, rows * sizeof(C));
    }
  }
}

template <class T, int N, bool kWatch>
LPFS_INLINE void stream_backward(const Flow* flows, int64_t count, int64_t row, int64_t rows,
                                 int64_t ahead, Compute<T>* sums, Watch watch = {}) {
  using C = Compute<T>;
  alignas(64) C lanes[kWatch ? kWaiting * N : 1];
  const int64_t at_once = kWatch ? std::max<int64_t>(1, kWaiting / rows) : count;
  for (const Flow *flow = flows, *next; flow != flows + count; flow = next) {
    int64_t width = 0;
    for (next = flow; next != flows + count && next->source.dead == flow->source.dead &&
                      next->learns == flow->learns && next - flow < at_once;
         ++next) {
      width += next->source.width;
      if (!next->source.dead) continue;
      T* target = static_cast<T*>(next->target) + row * next->target_stride;
      put_zeros<T, N>(target, rows, next->target_stride, next->source.width);
    }
    const bool dead = flow->source.dead;
    int64_t watched = 0;
    if constexpr (kWatch) {
      watched = dead ? std::clamp<int64_t>(watch.dead_rows - row, 0, rows) : rows;
      if (watched && dead) {
        stream_flows<T, N, false, true, true>(flow, next, row, watched, ahead, sums, lanes);
      } else if (watched) {
        stream_flows<T, N, true, true, true>(flow, next, row, watched, ahead, sums, lanes);
      }
      if (watched) {
        fold_flows<T, N>(flow, next - flow, row, watched, lanes, watch.moments + (flow - flows));
      }
    }
    const int64_t first = row + watched, left = rows - watched;
    if (left && dead) {
      if (flow->learns) {
        stream_flows<T, N, false, true, false>(flow, next, first, left, ahead, sums, lanes);
      }
    } else if (left && flow->learns) {
      stream_flows<T, N, true, true, false>(flow, next, first, left, ahead, sums, lanes);
    } else if (left) {
      stream_flows<T, N, true, false, false>(flow, next, first, left, ahead, sums, lanes);
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
      return lpfs::scale_and_dot<T, N, false>(grad, source, factor, rows, width, ahead,           \
                                              static_cast<T*>(target), target_stride);            \
    }                                                                                             \
    ATTRIBUTES static double watch_and_dot(Rows grad, Rows source, double factor, int64_t rows,   \
                                           int64_t width, int64_t ahead, void* target,            \
                                           int64_t target_stride, int64_t watched,                \
                                           void* products, Moments* moments) {                    \
      return lpfs::scale_and_dot<T, N, true>(grad, source, factor, rows, width, ahead,            \
                                             static_cast<T*>(target), target_stride, watched,     \
                                             static_cast<Compute<T>*>(products), moments);        \
    }                                                                                             \
    ATTRIBUTES static void stream_concat(const Source* sources, int64_t count, int64_t row,       \
                                         int64_t rows, int64_t ahead, void* target,               \
                                         int64_t target_stride) {                                 \
      lpfs::stream_concat<T, N>(sources, count, row, rows, ahead, static_cast<T*>(target),        \
                                target_stride);                                                   \
    }                                                                                             \
    ATTRIBUTES static void stream_backward(const Flow* flows, int64_t count, int64_t row,         \
                                           int64_t rows, int64_t ahead, void* sums) {             \
      lpfs::stream_backward<T, N, false>(flows, count, row, rows, ahead,                          \
                                         static_cast<Compute<T>*>(sums));                         \
    }                                                                                             \
    ATTRIBUTES static void stream_and_watch(const Flow* flows, int64_t count, int64_t row,        \
                                            int64_t rows, int64_t ahead, void* sums,              \
                                            Watch watch) {                                        \
      lpfs::stream_backward<T, N, true>(flows, count, row, rows, ahead,                           \
                                        static_cast<Compute<T>*>(sums), watch);                   \
    }                                                                                             \
    static constexpr Loops kLoops{concat_row,    scale_and_dot,   watch_and_dot,                  \
                                  stream_concat, stream_backward, stream_and_watch};              \
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
