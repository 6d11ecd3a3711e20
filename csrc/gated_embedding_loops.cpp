#include "gated_embedding_loops.h"

#include <algorithm>

#include "row_access.h"
#include "row_products.h"
#include "vectors.h"

namespace lpfs {
namespace {

template <class Code>
LPFS_INLINE bool resolve(const Code* codes, int64_t stride, const int64_t* first,
                         const uint64_t* limits, int64_t count, int64_t* rows) {
  bool wrong = false;
  if (stride == 1) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t code = codes[i];
      rows[i] = first[i] + code;
      wrong |= static_cast<uint64_t>(code) >= limits[i];
    }
  } else {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t code = codes[i * stride];
      rows[i] = first[i] + code;
      wrong |= static_cast<uint64_t>(code) >= limits[i];
    }
  }
  return !wrong;
}

// The sum of a bag in columns j to j + N; what comes later is fetched meanwhile.
template <class T, int N>
LPFS_INLINE void pool(const Rows& weight, const int64_t* rows, int64_t size, int64_t j,
                      Vector<Compute<T>, N>& sum) {
  sum = Vector<Compute<T>, N>{};
  for (int64_t k = 0; k < size; ++k) {
    Vector<Compute<T>, N> value;
    fetch(row_at<T>(weight, rows[k + kRowsAhead], j), 0);
    load_from<T, N>(weight, rows[k], j, value);
    sum += value;
  }
}

template <class T, int N, bool kPast>
LPFS_INLINE void write(T* target, const Vector<Compute<T>, N>& value) {
  if constexpr (kPast) {
    put_row<T, N>(target, value);
  } else {
    store<N>(target, value);
  }
}

template <class T, int N, bool kPast>
LPFS_INLINE void concat_bag(const Rows& weight, const int64_t* rows, int64_t size,
                            Compute<T> factor, int64_t j, int64_t width, T* target) {
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> sum;
    pool<T, N>(weight, rows, size, j, sum);
    write<T, N, kPast>(target + j, sum * factor);
  }
  if constexpr (N > 1 && !kPast) {
    if (j < width) concat_bag<T, N / 2, kPast>(weight, rows, size, factor, j, width, target);
  }
}

template <class T, int N, bool kPast>
LPFS_INLINE void zero(T* target, int64_t width) {
  if constexpr (kPast) {
    const Vector<Compute<T>, N> none{};
    for (int64_t j = 0; j < width; j += N) put_row<T, N>(target + j, none);
  } else if (width) {  // an empty tensor has no address, and memset takes none
    std::memset(target, 0, width * sizeof(T));
  }
}

template <class T, int N, bool kBags, bool kPast>
LPFS_INLINE const int64_t* concat(const Rows& weight, int64_t width, const Lookup* fields,
                                  int64_t count, const Bags& bags, int64_t samples, T* target) {
  const int64_t *rows = bags.rows, *sizes = bags.sizes;
  for (int64_t s = 0; s < samples; ++s) {
    for (int64_t i = 0; i < count; ++i, target += width) {
      const int64_t size = kBags ? *sizes++ : 1;
      if (fields[i].dead || size == 0) {
        zero<T, N, kPast>(target, width);
        continue;
      }
      const double over = kBags && bags.mean ? size : 1;
      const auto factor = static_cast<Compute<T>>(fields[i].factor / over);
      concat_bag<T, N, kPast>(weight, rows, size, factor, 0, width, target);
      rows += size;
    }
  }
  return rows;
}

// The processor follows a gradient by itself, but not where fields are left out.
constexpr int64_t kSamplesAhead = 2;

// A bag of a field: its entries if there are `values`, and its row product's lanes if it learns.
template <class T, int N, bool kPast>
LPFS_INLINE void bag_entries(const Rows& weight, const int64_t* rows, int64_t size,
                             Compute<T> factor, Compute<T> over, const T* grad,
                             int64_t ahead_bytes, int64_t j, int64_t width, T* values, bool learns,
                             Vector<Compute<T>, N>& lanes) {
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> upstream;
    fetch(grad + j, ahead_bytes);
    load<N>(grad + j, upstream);
    if (learns) {
      Vector<Compute<T>, N> pooled;
      pool<T, N>(weight, rows, size, j, pooled);
      lanes += upstream * over * pooled;
    }
    if (values) {
      const Vector<Compute<T>, N> value = upstream * factor;
      for (int64_t k = 0; k < size; ++k) write<T, N, kPast>(values + k * width + j, value);
    }
  }
  if constexpr (N > 1 && !kPast) {
    if (j < width) {
      Vector<Compute<T>, N / 2> rest{};
      bag_entries<T, N / 2, kPast>(weight, rows, size, factor, over, grad, ahead_bytes, j, width,
                                   values, learns, rest);
      add_narrow<Compute<T>, N>(rest, lanes);
    }
  }
}

template <class T, int N, bool kBags, bool kPast>
LPFS_INLINE const int64_t* entries(const Rows& weight, int64_t width, const Lookup* fields,
                                   int64_t count, const Bags& bags, const T* grad,
                                   int64_t grad_stride, int64_t samples, T* values,
                                   const RowSums& into) {
  using C = Compute<T>;
  const int64_t *rows = bags.rows, *sizes = bags.sizes;
  const auto next = [&](int64_t i, Vector<C, N>& lanes) LPFS_INLINE_LAMBDA {
    const int64_t size = kBags ? *sizes++ : 1;
    const Lookup& field = fields[i];
    if ((field.dead && !field.learns) || size == 0) return;
    const double over = kBags && bags.mean ? size : 1;
    bag_entries<T, N, kPast>(weight, rows, size, static_cast<C>(field.factor / over),
                             static_cast<C>(1 / over), grad + i * width,
                             kSamplesAhead * grad_stride * sizeof(T), 0, width,
                             field.dead ? nullptr : values, field.learns, lanes);
    rows += size;
    if (!field.dead) values += size * width;
  };
  ProductsOfRows<C, N> products(into);
  for (int64_t s = 0; s < samples; ++s, grad += grad_stride) {
    products.begin(s);
    for (int64_t first = 0; first < count; first += products.kTogether) {
      const int64_t size = std::min<int64_t>(products.kTogether, count - first);
      for (int64_t k = 0; k < size; ++k) {
        Vector<C, N> lanes{};
        next(first + k, lanes);
        store<N>(products.lanes + k * N, lanes);
      }
      products.add(first, size);
    }
  }
  return rows;
}

template <class T, int N>
LPFS_INLINE void add_row(const Rows& weight, const Rows& grad, int64_t row, int64_t sample,
                         Compute<T> factor, Compute<T> scale, int64_t j, int64_t width,
                         Compute<T>* total, Vector<Compute<T>, N>& lanes) {
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> upstream;
    load_from<T, N>(grad, sample, j, upstream);
    if (total) {
      Vector<Compute<T>, N> sum;
      load<N>(total + j, sum);
      store<N>(total + j, sum + upstream * factor);
    }
    if (weight.data) {
      Vector<Compute<T>, N> value;
      load_from<T, N>(weight, row, j, value);
      lanes += upstream * scale * value;
    }
  }
  if constexpr (N > 1) {
    if (j < width) {
      Vector<Compute<T>, N / 2> rest{};
      add_row<T, N / 2>(weight, grad, row, sample, factor, scale, j, width, total, rest);
      add_narrow<Compute<T>, N>(rest, lanes);
    }
  }
}

template <class T, int N>
LPFS_INLINE Moments scatter(const Rows& weight, const Rows& grad, int64_t width, double factor,
                            const Additions& additions, Compute<T>* totals) {
  using C = Compute<T>;
  const auto* const row_scale = static_cast<const C*>(additions.row_scale);
  RowProducts<C, N> row_products;
  alignas(64) C lanes[N * N]{};
  for (int64_t first = 0; first < additions.count; first += N) {
    const int64_t size = std::min<int64_t>(N, additions.count - first);
    C scales[N]{}, products[N];
    for (int64_t k = 0; k < size; ++k) {
      const int64_t e = first + k, later = std::min(e + kRowsAhead, additions.count - 1);
      const int64_t row = additions.rows[e], ahead = additions.rows[later];
      fetch(row_at<T>(grad, additions.samples[later], 0), 0);
      if (totals) fetch(totals + (ahead - additions.first) * width, 0);
      if (weight.data) fetch(row_at<T>(weight, ahead, 0), 0);
      const double scale = additions.scales ? additions.scales[e] : 1;
      Vector<C, N> own{};
      add_row<T, N>(weight, grad, row, additions.samples[e], static_cast<C>(factor * scale),
                    static_cast<C>(scale), 0, width,
                    totals ? totals + (row - additions.first) * width : nullptr, own);
      if (additions.watched) {
        store<N>(lanes + k * N, own);
      } else {
        row_products.sums += own;
      }
      if (row_scale) scales[k] = row_scale[additions.samples[e]];
    }
    if (!additions.watched) continue;
    Vector<C, N> folded;
    fold<C, N>(lanes, folded);
    keep_first<C, N>(size, folded);
    row_products.add(folded, size, row_scale ? scales : nullptr, products);
    if (!additions.products) continue;
    C* const target = static_cast<C*>(additions.products);
    for (int64_t k = 0; k < size; ++k) target[additions.places[first + k]] = products[k];
  }
  return row_products.moments();
}

template <class T, int N>
LPFS_INLINE void round(const Compute<T>* totals, int64_t count, T* target) {
  int64_t j = 0;
  for (; j + N <= count; j += N) {
    Vector<Compute<T>, N> value;
    load<N>(totals + j, value);
    store<N>(target + j, value);
  }
  if constexpr (N > 1) {
    if (j < count) round<T, N / 2>(totals + j, count - j, target + j);
  }
}

#define LPFS_DEFINE_EMBEDDING_LOOPS(NAME, VECTOR_BYTES, ATTRIBUTES)                               \
  template <class T>                                                                              \
  struct NAME {                                                                                   \
    using C = Compute<T>;                                                                         \
    static constexpr int N = VECTOR_BYTES / sizeof(C);                                            \
    ATTRIBUTES static bool resolve(Codes codes, const int64_t* first, const uint64_t* limits,     \
                                   int64_t count, int64_t* rows) {                                \
      return codes.wide ? lpfs::resolve(static_cast<const int64_t*>(codes.data), codes.stride,    \
                                        first, limits, count, rows)                               \
                        : lpfs::resolve(static_cast<const int32_t*>(codes.data), codes.stride,    \
                                        first, limits, count, rows);                              \
    }                                                                                             \
    ATTRIBUTES static const int64_t* concat(Rows weight, int64_t width, const Lookup* fields,     \
                                            int64_t count, Bags bags, int64_t samples,            \
                                            void* target, bool past) {                            \
      T* const to = static_cast<T*>(target);                                                      \
      if (bags.sizes) {                                                                           \
        return past                                                                               \
                   ? lpfs::concat<T, N, true, true>(weight, width, fields, count, bags, samples,  \
                                                    to)                                           \
                   : lpfs::concat<T, N, true, false>(weight, width, fields, count, bags, samples, \
                                                     to);                                         \
      }                                                                                           \
      return past ? lpfs::concat<T, N, false, true>(weight, width, fields, count, bags, samples,  \
                                                    to)                                           \
                  : lpfs::concat<T, N, false, false>(weight, width, fields, count, bags, samples, \
                                                     to);                                         \
    }                                                                                             \
    ATTRIBUTES static const int64_t* entries(Rows weight, int64_t width, const Lookup* fields,    \
                                             int64_t count, Bags bags, const void* grad,          \
                                             int64_t grad_stride, int64_t samples, void* values,  \
                                             bool past, RowSums into) {                           \
      const T* const from = static_cast<const T*>(grad);                                          \
      T* const to = static_cast<T*>(values);                                                      \
      if (bags.sizes) {                                                                           \
        return past ? lpfs::entries<T, N, true, true>(weight, width, fields, count, bags, from,   \
                                                      grad_stride, samples, to, into)             \
                    : lpfs::entries<T, N, true, false>(weight, width, fields, count, bags, from,  \
                                                       grad_stride, samples, to, into);           \
      }                                                                                           \
      return past ? lpfs::entries<T, N, false, true>(weight, width, fields, count, bags, from,    \
                                                     grad_stride, samples, to, into)              \
                  : lpfs::entries<T, N, false, false>(weight, width, fields, count, bags, from,   \
                                                      grad_stride, samples, to, into);            \
    }                                                                                             \
    ATTRIBUTES static Moments scatter(Rows weight, Rows grad, int64_t width, double factor,       \
                                      Additions additions, void* totals) {                        \
      return lpfs::scatter<T, N>(weight, grad, width, factor, additions, static_cast<C*>(totals));\
    }                                                                                             \
    ATTRIBUTES static void round(const void* totals, int64_t count, void* target) {               \
      lpfs::round<T, N>(static_cast<const C*>(totals), count, static_cast<T*>(target));           \
    }                                                                                             \
    static constexpr EmbeddingLoops kLoops{resolve, concat, entries, scatter, round};             \
  };

LPFS_DEFINE_EMBEDDING_LOOPS(EmbeddingBaseline, 16, )
#if defined(__x86_64__)
LPFS_DEFINE_EMBEDDING_LOOPS(EmbeddingAvx2, 32, __attribute__((target("avx2,fma,f16c"))))
LPFS_DEFINE_EMBEDDING_LOOPS(EmbeddingAvx512, 64,
                            __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))))
#endif

template <template <class> class Set>
const EmbeddingLoops& loops_of(Dtype dtype) {
  static constexpr EmbeddingLoops kLoops[] = {Set<double>::kLoops, Set<float>::kLoops,
                                              Set<Half>::kLoops, Set<BFloat16>::kLoops};
  return kLoops[static_cast<int>(dtype)];
}

}  // namespace

const EmbeddingLoops& embedding_loops_for(Dtype dtype) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return loops_of<EmbeddingAvx512>(dtype);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return loops_of<EmbeddingAvx2>(dtype);
  }
#endif
  return loops_of<EmbeddingBaseline>(dtype);
}

}  // namespace lpfs
