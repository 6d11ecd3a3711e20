#include "gated_cross_loops.h"

#include <algorithm>

#include "row_products.h"
#include "vectors.h"

namespace lpfs {
namespace {

template <class T, int N>
LPFS_INLINE void scale_field(const T* row, Compute<T> factor, int64_t width, Compute<T>* values) {
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> value;
    load<N>(row + j, value);
    store<N>(values + j, value * factor);
  }
  if constexpr (N > 1) {
    if (j < width) scale_field<T, N / 2>(row + j, factor, width - j, values + j);
  }
}

template <class T, int N>
LPFS_INLINE void gather(const T* row, int64_t field_stride, int64_t column_stride,
                        const CrossField* fields, int64_t count, int64_t width, int64_t stride,
                        Compute<T>* values) {
  for (int64_t i = 0; i < count; ++i, row += field_stride, values += stride) {
    const auto factor = static_cast<Compute<T>>(fields[i].factor);
    if (fields[i].dead) {
      std::fill_n(values, width, Compute<T>(0));
    } else if (column_stride == 1) {
      scale_field<T, N>(row, factor, width, values);
    } else {
      for (int64_t j = 0; j < width; ++j) {
        Vector<Compute<T>, 1> value;
        load<1>(row + j * column_stride, value);
        values[j] = value[0] * factor;
      }
    }
  }
}

template <class T, int N>
LPFS_INLINE void forward_term(const Compute<T>* first, const Compute<T>* second,
                              Compute<T> factor, int64_t width, T* target) {
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> product;
    load<N>(first + j, product);
    if (second) {
      Vector<Compute<T>, N> other;
      load<N>(second + j, other);
      product *= other;
    }
    store<N>(target + j, product * factor);
  }
  if constexpr (N > 1) {
    if (j < width) {
      forward_term<T, N / 2>(first + j, second ? second + j : nullptr, factor, width - j,
                             target + j);
    }
  }
}

template <class T, int N>
LPFS_INLINE void forward(const Term* terms, int64_t count, const Compute<T>* values,
                         int64_t width, int64_t stride, T* target) {
  for (const Term* term = terms; term != terms + count; ++term, target += width) {
    if (!term->alive) {
      if (width) std::memset(target, 0, width * sizeof(T));
      continue;
    }
    const Compute<T>* second = term->second < 0 ? nullptr : values + term->second * stride;
    forward_term<T, N>(values + term->first * stride, second, term->factor, width, target);
  }
}

// Columns j to j + N of a run: what belongs to the first field stays in registers. The lanes of row
// products, L per term, begin in the first columns.
template <class T, int N, int L>
LPFS_INLINE void backward_columns(const Term* terms, Run run, const T* grad, int64_t ahead,
                                  const Compute<T>* values, int64_t j, int64_t width,
                                  int64_t stride, Compute<T>* gradients, Compute<T>* lanes) {
  using C = Compute<T>;
  const int64_t first = terms[run.begin].first;
  Vector<C, N> mine, gradient{};
  load<N>(values + first * stride + j, mine);
  for (int64_t m = run.begin; m < run.end; ++m, lanes += L) {
    const Term& term = terms[m];
    if (term.fetches) fetch(grad + m * width + j, ahead);
    Vector<C, N> products{};
    if (term.is_read()) {
      Vector<C, N> upstream;
      load<N>(grad + m * width + j, upstream);
      const Vector<C, N> scaled = upstream * static_cast<C>(term.factor);
      Vector<C, N> cross = mine;
      if (term.second < 0) {
        if (term.to_first) gradient += scaled;
      } else {
        Vector<C, N> other;
        load<N>(values + term.second * stride + j, other);
        if (term.to_first) gradient += scaled * other;
        if (term.to_second) {
          C* const target = gradients + term.second * stride + j;
          Vector<C, N> sum;
          load<N>(target, sum);
          store<N>(target, sum + scaled * mine);
        }
        cross *= other;
      }
      if (term.learns) products = upstream * cross;
    }
    if (j > 0) {
      Vector<C, N> before;
      load<N>(lanes, before);
      products += before;
    }
    store<N>(lanes, products);
  }
  Vector<C, N> sum;
  load<N>(gradients + first * stride + j, sum);
  store<N>(gradients + first * stride + j, sum + gradient);
}

template <class T, int N, int L>
LPFS_INLINE void backward_from(const Term* terms, Run run, const T* grad, int64_t ahead,
                               const Compute<T>* values, int64_t j, int64_t width,
                               int64_t stride, Compute<T>* gradients, Compute<T>* lanes) {
  for (; j + N <= width; j += N) {
    backward_columns<T, N, L>(terms, run, grad, ahead, values, j, width, stride, gradients, lanes);
  }
  if constexpr (N > 1) {
    if (j < width) {
      backward_from<T, N / 2, L>(terms, run, grad, ahead, values, j, width, stride, gradients,
                                 lanes);
    }
  }
}

template <class T, int N>
LPFS_INLINE void backward(const Term* terms, const Run* runs, int64_t count, const T* grad,
                          int64_t ahead, const Compute<T>* values, int64_t width, int64_t stride,
                          Compute<T>* gradients, bool gated, const RowSums& into) {
  ProductsOfRows<Compute<T>, N> products(into);
  products.begin(0);
  int64_t begun = 0;
  for (const Run* run = runs; run != runs + count; ++run) {
    for (Run left = *run; left.begin < left.end;) {
      const Run piece{left.begin, std::min(left.end, begun + products.kTogether)};
      backward_from<T, N, N>(terms, piece, grad, ahead, values, 0, width, stride, gradients,
                             products.lanes + (piece.begin - begun) * N);
      left.begin = piece.end;
      if (piece.end < begun + products.kTogether) continue;
      if (gated) products.add(begun, products.kTogether);
      begun = piece.end;
    }
  }
  if (gated && count) products.add(begun, runs[count - 1].end - begun);
}

template <class T, int N>
LPFS_INLINE void finish_field(const T* row, Compute<T> factor, const Compute<T>* gradient,
                              int64_t width, T* target, Vector<Compute<T>, N>& lanes) {
  int64_t j = 0;
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> value;
    load<N>(gradient + j, value);
    if (target) store<N>(target + j, value * factor);
    if (row) {
      Vector<Compute<T>, N> embedding;
      load<N>(row + j, embedding);
      lanes += value * embedding;
    }
  }
  if constexpr (N > 1) {
    if (j < width) {
      Vector<Compute<T>, N / 2> rest{};
      finish_field<T, N / 2>(row ? row + j : nullptr, factor, gradient + j, width - j,
                             target ? target + j : nullptr, rest);
      add_narrow<Compute<T>, N>(rest, lanes);
    }
  }
}

template <class T, int N>
LPFS_INLINE void finish(const T* row, int64_t field_stride, int64_t column_stride,
                        const CrossField* fields, const Compute<T>* gradients, int64_t count,
                        int64_t width, int64_t stride, T* target, bool gated, const RowSums& into) {
  using C = Compute<T>;
  ProductsOfRows<C, N> products(into);
  products.begin(0);
  for (int64_t i = 0; i < count; ++i, gradients += stride, target += width) {
    const T* own = fields[i].learns ? row + i * field_stride : nullptr;
    const bool dead = fields[i].dead;
    const auto factor = static_cast<C>(fields[i].factor);
    Vector<C, N> lanes{};
    // An empty tensor has no address, and memset takes none, of 0 bytes either.
    if (dead && width) std::memset(target, 0, width * sizeof(T));
    if (own && column_stride != 1) {
      for (int64_t j = 0; j < width; ++j) {
        Vector<C, 1> product{};
        finish_field<T, 1>(own + j * column_stride, factor, gradients + j, 1,
                           dead ? nullptr : target + j, product);
        lanes[j % N] += product[0];
      }
    } else if (own || !dead) {
      finish_field<T, N>(own, factor, gradients, width, dead ? nullptr : target, lanes);
    }
    if (!gated) continue;
    const int64_t at = i % products.kTogether;
    store<N>(products.lanes + at * N, lanes);
    if (at + 1 == products.kTogether || i + 1 == count) products.add(i - at, at + 1);
  }
}

#define LPFS_DEFINE_CROSS_LOOPS(NAME, VECTOR_BYTES, ATTRIBUTES)                                   \
  template <class T>                                                                              \
  struct NAME {                                                                                   \
    using C = Compute<T>;                                                                         \
    static constexpr int N = VECTOR_BYTES / sizeof(C);                                            \
    ATTRIBUTES static void gather(const void* row, int64_t field_stride, int64_t column_stride,   \
                                  const CrossField* fields, int64_t count, int64_t width,         \
                                  int64_t stride, void* values) {                                 \
      lpfs::gather<T, N>(static_cast<const T*>(row), field_stride, column_stride, fields, count,  \
                         width, stride, static_cast<C*>(values));                                 \
    }                                                                                             \
    ATTRIBUTES static void forward(const Term* terms, int64_t count, const void* values,          \
                                   int64_t width, int64_t stride, void* target) {                 \
      lpfs::forward<T, N>(terms, count, static_cast<const C*>(values), width, stride,             \
                          static_cast<T*>(target));                                               \
    }                                                                                             \
    ATTRIBUTES static void backward(const Term* terms, const Run* runs, int64_t count,            \
                                    const void* grad, int64_t ahead, const void* values,          \
                                    int64_t width, int64_t stride, void* gradients, bool gated,   \
                                    RowSums into) {                                               \
      lpfs::backward<T, N>(terms, runs, count, static_cast<const T*>(grad), ahead,                \
                           static_cast<const C*>(values), width, stride,                          \
                           static_cast<C*>(gradients), gated, into);                              \
    }                                                                                             \
    ATTRIBUTES static void finish(const void* row, int64_t field_stride, int64_t column_stride,   \
                                  const CrossField* fields, const void* gradients, int64_t count, \
                                  int64_t width, int64_t stride, void* target, bool gated,        \
                                  RowSums into) {                                                 \
      lpfs::finish<T, N>(static_cast<const T*>(row), field_stride, column_stride, fields,         \
                         static_cast<const C*>(gradients), count, width, stride,                  \
                         static_cast<T*>(target), gated, into);                                   \
    }                                                                                             \
    static constexpr CrossLoops kLoops{gather, forward, backward, finish};                        \
  };

LPFS_DEFINE_CROSS_LOOPS(CrossBaseline, 16, )
#if defined(__x86_64__)
LPFS_DEFINE_CROSS_LOOPS(CrossAvx2, 32, __attribute__((target("avx2,fma,f16c"))))
LPFS_DEFINE_CROSS_LOOPS(CrossAvx512, 64,
                        __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))))
#endif

template <template <class> class Set>
const CrossLoops& loops_of(Dtype dtype) {
  static constexpr CrossLoops kLoops[] = {Set<double>::kLoops, Set<float>::kLoops,
                                          Set<Half>::kLoops, Set<BFloat16>::kLoops};
  return kLoops[static_cast<int>(dtype)];
}

}  // namespace

const CrossLoops& cross_loops_for(Dtype dtype) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return loops_of<CrossAvx512>(dtype);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return loops_of<CrossAvx2>(dtype);
  }
#endif
  return loops_of<CrossBaseline>(dtype);
}

}  // namespace lpfs
