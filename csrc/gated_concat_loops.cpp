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
      if (source->width) std::memset(target, 0, source->width * sizeof(T));
    } else {
      scale_row<T, N>(row_of(rows, row, source->width, buffer), source->factor, source->width,
                      ahead * rows.row_stride * sizeof(T), target);
    }
    target += source->width;
  }
}

// Products grad ⊙ source are added to `sums`, or, with kApart, to `products`: what a narrower vector
// takes to the first of them.
template <class T, int N, bool kScale, bool kDot, bool kApart>
LPFS_INLINE void backward_row(const T* grad, const T* source, Compute<T> factor, int64_t width,
                              int64_t grad_ahead, int64_t source_ahead, T* target,
                              Sums<Compute<T>, N>& sums, Vector<Compute<T>, N>& products) {
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> upstream, value;
    fetch(grad + j, grad_ahead);
    load<N>(grad + j, upstream);
    if constexpr (kDot) {
      fetch(source + j, source_ahead);
      load<N>(source + j, value);
      (kApart ? products : sums.lanes) += upstream * value;
    }
    if constexpr (kScale) store<N>(target + j, upstream * factor);
  }
  if constexpr (N > 1) {
    if (j < width) {
      Vector<Compute<T>, N / 2> rest{};
      backward_row<T, N / 2, kScale, kDot, kApart>(grad + j, source + j, factor, width - j,
                                                   grad_ahead, source_ahead, target + j, sums.rest,
                                                   rest);
      if constexpr (kApart) {
        Vector<Compute<T>, N> wide{};
        std::memcpy(&wide, &rest, sizeof rest);
        products += wide;
      }
    }
  }
}

template <class T, int N, bool kScale, bool kDot, bool kWatch>
LPFS_INLINE double backward_rows(const Rows& grad, const Rows& source, Compute<T> factor,
                                 int64_t rows, int64_t width, int64_t ahead, T* target,
                                 int64_t target_stride, int64_t watched, const Compute<T>* row_scale,
                                 Compute<T>* products, Moments* moments) {
  using C = Compute<T>;
  T grad_buffer[kSourceBytes / sizeof(T)], source_buffer[kSourceBytes / sizeof(T)];
  const int64_t ahead_bytes = ahead * sizeof(T);
  Sums<C, N> sums;
  const auto pass = [&](int64_t r, Vector<C, N>& own, auto apart) LPFS_INLINE_LAMBDA {
    backward_row<T, N, kScale, kDot, decltype(apart)::value>(
        row_of(grad, r, width, grad_buffer),
        kDot ? row_of(source, r, width, source_buffer) : nullptr, factor, width,
        ahead_bytes * grad.row_stride, ahead_bytes * source.row_stride,
        kScale ? target + r * target_stride : nullptr, sums, own);
  };
  double watched_sum = 0;
  int64_t r = 0;
  if constexpr (kWatch) {
    alignas(64) C lanes[N * N];
    RowProducts<C, N> row_products;
    while (r < watched) {
      const int64_t count = std::min<int64_t>(N, watched - r);
      if (count < N) std::fill_n(lanes + count * N, (N - count) * N, C(0));
      for (int64_t k = 0; k < count; ++k) {
        Vector<C, N> own{};
        pass(r + k, own, std::true_type{});
        store<N>(lanes + k * N, own);
      }
      Vector<C, N> folded;
      fold<C, N>(lanes, folded);
      row_products.add(folded, count, row_scale ? row_scale + r : nullptr,
                       products ? products + r : nullptr);
      r += count;
    }
    const Moments own = row_products.moments();
    *moments += own;
    watched_sum = own.sum;
  }
  Vector<C, N> none;
  for (; r < rows; ++r) pass(r, none, std::false_type{});
  return watched_sum + sums.total();
}

template <class T>
LPFS_INLINE const T* at(const Rows& rows, int64_t row) {
  return static_cast<const T*>(rows.data) + row * rows.row_stride;
}


// One vector of columns, or several side by side, at some row.
template <class T>
struct Column {
  const T *grad, *source;
  T* target;
  int64_t grad_stride, source_stride, target_stride;
  Compute<T> factor;

  LPFS_INLINE void step() {
    grad += grad_stride, source += source_stride, target += target_stride;
  }
};

template <class T>
LPFS_INLINE Column<T> column_of(const Flow& flow, int64_t row, int64_t j) {
  return {at<T>(flow.grad, row) + j,
          at<T>(flow.source.rows, row) + j,
          static_cast<T*>(flow.target) + row * flow.target_stride + j,
          flow.grad.row_stride,
          flow.source.rows.row_stride,
          flow.target_stride,
          static_cast<Compute<T>>(flow.source.factor)};
}

// The row at which a column is, from its j-th element on; kPast the cache.
template <class T, int N, bool kScale, bool kDot, bool kPast = true>
LPFS_INLINE void column_row(const Column<T>& column, int64_t j, int64_t ahead,
                            Vector<Compute<T>, N>& sum) {
  Vector<Compute<T>, N> upstream, value;
  fetch(column.grad + j, ahead * column.grad_stride * sizeof(T));
  load<N>(column.grad + j, upstream);
  if constexpr (kDot) {
    fetch(column.source + j, ahead * column.source_stride * sizeof(T));
    load<N>(column.source + j, value);
    sum += upstream * value;
  }
  if constexpr (kScale && kPast) {
    put_row<T, N>(column.target + j, upstream * column.factor);
  } else if constexpr (kScale) {
    store<N>(column.target + j, upstream * column.factor);
  }
}

// Down the rows of K flows, of `width` columns each; N rows are folded as they come.
template <class T, int N, bool kScale, bool kPast, int K>
LPFS_INLINE void watch_rows(Column<T>* columns, int64_t width, int64_t rows, int64_t ahead,
                            const Compute<T>* row_scale, Compute<T>* const* products,
                            RowProducts<Compute<T>, N>* row_products) {
  using C = Compute<T>;
  const auto pass = [&](int64_t, Vector<C, N>* own) LPFS_INLINE_LAMBDA {
    for (int k = 0; k < K; ++k) {
      own[k] = Vector<C, N>{};
      for (int64_t j = 0; j < width; j += N) {
        column_row<T, N, kScale, true, kPast>(columns[k], j, ahead, own[k]);
      }
      columns[k].step();
    }
  };
  const auto add = [&](int64_t r, int64_t count, const Vector<C, N>* folded) LPFS_INLINE_LAMBDA {
    for (int k = 0; k < K; ++k) {
      row_products[k].add(folded[k], count, row_scale ? row_scale + r : nullptr,
                          products[k] ? products[k] + r : nullptr);
    }
  };
  int64_t r = 0;
  Vector<C, N> folded[K];
  for (; r + N <= rows; r += N) {
    fold<C, N, K>(pass, r, folded);
    add(r, N, folded);
  }
  if (r + N / 2 <= rows) {
    fold<C, N, K, N / 2>(pass, r, folded);
    for (int k = 0; k < K; ++k) join<C, N, 2>(folded[k], Vector<C, N>{});
    add(r, N / 2, folded);
    r += N / 2;
  }
  if (r < rows) {
    const auto pass_rest = [&](int64_t at, Vector<C, N>* own) LPFS_INLINE_LAMBDA {
      if (at < rows) return pass(at, own);
      for (int k = 0; k < K; ++k) own[k] = Vector<C, N>{};
    };
    fold<C, N, K>(pass_rest, r, folded);
    add(r, rows - r, folded);
  }
}

template <class T, int N, bool kWatch>
LPFS_INLINE double scale_and_dot(const Rows& grad, const Rows& source, Compute<T> factor,
                                 int64_t rows, int64_t width, int64_t ahead, T* target,
                                 int64_t target_stride, int64_t watched = 0,
                                 const Compute<T>* row_scale = nullptr,
                                 Compute<T>* products = nullptr, Moments* moments = nullptr) {
  if (!target) {
    return backward_rows<T, N, false, true, kWatch>(grad, source, factor, rows, width, ahead,
                                                    target, target_stride, watched, row_scale,
                                                    products, moments);
  }
  if (!source.data) {
    return backward_rows<T, N, true, false, false>(grad, source, factor, rows, width, ahead, target,
                                                   target_stride, 0, nullptr, nullptr, nullptr);
  }
  if constexpr (kWatch) {
    if (width % N == 0 && watched == rows && grad.column_stride == 1 && source.column_stride == 1) {
      Column<T> column{at<T>(grad, 0), at<T>(source, 0), target, grad.row_stride, source.row_stride,
                       target_stride,  static_cast<Compute<T>>(factor)};
      RowProducts<Compute<T>, N> own;
      watch_rows<T, N, true, false, 1>(&column, width, rows, ahead, row_scale, &products, &own);
      const Moments added = own.moments();
      *moments += added;
      return added.sum;
    }
  }
  return backward_rows<T, N, true, true, kWatch>(grad, source, factor, rows, width, ahead, target,
                                                 target_stride, watched, row_scale, products,
                                                 moments);
}

template <class T, int N>
LPFS_INLINE void put_zeros(T* target, int64_t rows, int64_t stride, int64_t width) {
  const Vector<Compute<T>, N> zero{};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < width; j += N) put_row<T, N>(target + r * stride + j, zero);
  }
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

// As many as are gone through together: lines that lie side by side are read together.
constexpr int kTogether = 2;

// Down the rows of what has no gate to learn.
template <class T, int N>
LPFS_INLINE void scale_flows(const Flow* flows, const Flow* end, int64_t row, int64_t rows,
                             int64_t ahead) {
  Vector<Compute<T>, N> none;
  for (const Flow* flow = flows; flow != end; ++flow) {
    for (int64_t j = 0; j < flow->source.width; j += N) {
      Column<T> column = column_of<T>(*flow, row, j);
      for (int64_t r = 0; r < rows; ++r, column.step()) {
        column_row<T, N, true, false>(column, 0, ahead, none);
      }
    }
  }
}

// Across the flows of one row, N of which are folded as they come.
template <class T, int N, bool kScale>
LPFS_INLINE void watch_row(const Flow* flows, int64_t count, int64_t row, int64_t ahead,
                           bool shared, Compute<T> scale, Compute<T>* sums, Compute<T>* squares) {
  using C = Compute<T>;
  const auto pass = [&](int64_t i, Vector<C, N>* products) LPFS_INLINE_LAMBDA {
    *products = Vector<C, N>{};
    const Column<T> column = column_of<T>(flows[i], row, 0);
    for (int64_t j = 0; j < flows[i].source.width; j += N) {
      column_row<T, N, kScale, true>(column, j, ahead, *products);
    }
  };
  const auto add = [&](int64_t first, int64_t size, const Vector<C, N>& folded) LPFS_INLINE_LAMBDA {
    Vector<C, N> sum, square;
    load<N>(sums + first, sum);
    load<N>(squares + first, square);
    store<N>(sums + first, sum + folded);
    store<N>(squares + first, square + folded * folded * scale);
    if (!shared) return;
    C products[N];
    store<N>(products, folded);
    for (int64_t i = 0; i < size; ++i) {
      C* const own = static_cast<C*>(flows[first + i].products);
      if (own) own[row] = products[i];
    }
  };
  int64_t i = 0;
  Vector<C, N> folded;
  for (; i + N <= count; i += N) {
    fold<C, N, 1>(pass, i, &folded);
    add(i, N, folded);
  }
  if (i < count) {
    const auto pass_rest = [&](int64_t at, Vector<C, N>* products) LPFS_INLINE_LAMBDA {
      if (at < count) return pass(at, products);
      *products = Vector<C, N>{};
    };
    fold<C, N, 1>(pass_rest, i, &folded);
    add(i, count - i, folded);
  }
}

template <class T, int N, bool kScale>
LPFS_INLINE void watch_flows(const Flow* flows, const Flow* end, int64_t row, int64_t rows,
                             int64_t ahead, const Watch& watch, Compute<T>* sums,
                             Compute<T>* squares) {
  using C = Compute<T>;
  const auto* const row_scale = static_cast<const C*>(watch.row_scale);
  if (rows < N / 2) {
    for (int64_t r = row; r < row + rows; ++r) {
      watch_row<T, N, kScale>(flows, end - flows, r, ahead, watch.shared,
                              row_scale ? row_scale[r] : C(1), sums, squares);
    }
    return;
  }
  const auto down = [&](auto together) LPFS_INLINE_LAMBDA {
    constexpr int K = decltype(together)::value;
    Column<T> columns[K];
    C* products[K];
    RowProducts<C, N> row_products[K];
    for (int k = 0; k < K; ++k) {
      columns[k] = column_of<T>(flows[k], row, 0);
      C* const own = static_cast<C*>(flows[k].products);
      products[k] = own ? own + row : nullptr;
    }
    // A constant where there are several.
    const int64_t width = K == 1 ? flows->source.width : N;
    watch_rows<T, N, kScale, true, K>(columns, width, rows, ahead,
                                      row_scale ? row_scale + row : nullptr, products,
                                      row_products);
    for (int k = 0; k < K; ++k) {
      *sums++ += total<C, N>(row_products[k].sums);
      *squares++ += total<C, N>(row_products[k].squares);
    }
    flows += K;
  };
  const auto narrow = [](const Flow& flow) { return flow.source.width == N; };
  while (flows != end) {
    if (end - flows >= kTogether && std::all_of(flows, flows + kTogether, narrow)) {
      down(std::integral_constant<int, kTogether>{});
    } else {
      down(std::integral_constant<int, 1>{});
    }
  }
}

template <class T, int N>
LPFS_INLINE void stream_backward(const Flow* flows, int64_t count, int64_t row, int64_t rows,
                                 int64_t ahead, const Watch& watch) {
  using C = Compute<T>;
  for (const Flow *flow = flows, *next; flow != flows + count; flow = next) {
    for (next = flow; next != flows + count && next->source.dead == flow->source.dead &&
                      next->learns == flow->learns;
         ++next) {
      if (!next->source.dead) continue;
      T* target = static_cast<T*>(next->target) + row * next->target_stride;
      put_zeros<T, N>(target, rows, next->target_stride, next->source.width);
    }
    const int64_t at = flow - flows;
    const auto products = [&](auto scale, int64_t first, int64_t size, void* sums,
                              void* squares) LPFS_INLINE_LAMBDA {
      watch_flows<T, N, decltype(scale)::value>(flow, next, first, size, ahead, watch,
                                                static_cast<C*>(sums) + at,
                                                static_cast<C*>(squares) + at);
    };
    if (flow->source.dead) {
      const int64_t watched = std::clamp<int64_t>(watch.dead_rows - row, 0, rows);
      for (const bool in : {true, false}) {
        const int64_t size = in ? watched : flow->learns ? rows - watched : 0;
        if (size == 0) continue;
        products(std::false_type{}, in ? row : row + watched, size,
                 in ? watch.sums : watch.other_sums, in ? watch.squares : watch.other_squares);
      }
    } else if (flow->learns || watch.everything) {
      products(std::true_type{}, row, rows, watch.sums, watch.squares);
    } else {
      scale_flows<T, N>(flow, next, row, rows, ahead);
    }
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
                                           const void* row_scale, void* products,                 \
                                           Moments* moments) {                                    \
      return lpfs::scale_and_dot<T, N, true>(grad, source, factor, rows, width, ahead,            \
                                             static_cast<T*>(target), target_stride, watched,     \
                                             static_cast<const Compute<T>*>(row_scale),           \
                                             static_cast<Compute<T>*>(products), moments);        \
    }                                                                                             \
    ATTRIBUTES static void stream_concat(const Source* sources, int64_t count, int64_t row,       \
                                         int64_t rows, int64_t ahead, void* target,               \
                                         int64_t target_stride) {                                 \
      lpfs::stream_concat<T, N>(sources, count, row, rows, ahead, static_cast<T*>(target),        \
                                target_stride);                                                   \
    }                                                                                             \
    ATTRIBUTES static void stream_backward(const Flow* flows, int64_t count, int64_t row,         \
                                           int64_t rows, int64_t ahead, Watch watch) {            \
      lpfs::stream_backward<T, N>(flows, count, row, rows, ahead, watch);                         \
    }                                                                                             \
    static constexpr Loops kLoops{concat_row, scale_and_dot, watch_and_dot, stream_concat,        \
                                  stream_backward};                                               \
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
  if (bytes == 0) return;  // an empty tensor has no address, and memcpy takes none
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
