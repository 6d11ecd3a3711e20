// Row products ⟨∂L/∂y, e⟩ as backward forms them: a vector of partial sums, the lanes, for each row of
// a source. For files without a torch header.
#pragma once

#include <algorithm>
#include <utility>

#include "moments.h"
#include "vectors.h"

namespace lpfs {
namespace {

// Of two vectors, the elements at even places, or, with kOdd, those beside them: within 16 bytes, or,
// with kApart, in pieces of 16 bytes.
template <class C, int N, bool kApart>
constexpr int even_place(int k) {
  constexpr int kPiece = 16 / sizeof(C), kBlock = kApart ? N : kPiece, kUnit = kApart ? kPiece : 1;
  const int block = k / kBlock * kBlock, at = k % kBlock;
  const int from = at < kBlock / 2 ? block : N + block;
  const int unit = at % (kBlock / 2) / kUnit;
  return from + 2 * unit * kUnit + at % kUnit;
}

template <class C, int N, bool kApart, int kNext, int... K>
LPFS_INLINE void take(const Vector<C, N>& a, const Vector<C, N>& b, Vector<C, N>& taken,
                      std::integer_sequence<int, K...>) {
#if defined(__clang__)
  taken = __builtin_shufflevector(a, b, (even_place<C, N, kApart>(K) + kNext)...);
#else
  using Index = std::conditional_t<sizeof(C) == 8, int64_t, int32_t>;
  taken = __builtin_shuffle(a, b, Vector<Index, N>{(even_place<C, N, kApart>(K) + kNext)...});
#endif
}

// Of 2N / kLevel vectors, half of them folded to `a` and half to `b`.
template <class C, int N, int kLevel>
LPFS_INLINE void join(Vector<C, N>& a, const Vector<C, N>& b) {
  constexpr int kPiece = 16 / sizeof(C);
  constexpr bool kApart = kLevel <= N / kPiece;
  Vector<C, N> even, odd;
  const std::make_integer_sequence<int, N> places;
  take<C, N, kApart, 0>(a, b, even, places);
  take<C, N, kApart, kApart ? kPiece : 1>(a, b, odd, places);
  a = even + odd;
}

// The sums of kCount = N vectors, as one vector: of those that `next(i, vectors)` gives, K at a time,
// which it is asked for in order, so that few of them wait in registers.
template <class C, int N, int K, int kCount = N, class Next>
LPFS_INLINE void fold(const Next& next, int64_t first, Vector<C, N>* folded) {
  if constexpr (kCount == 1) {
    next(first, folded);
  } else {
    Vector<C, N> other[K];
    fold<C, N, K, kCount / 2>(next, first, folded);
    fold<C, N, K, kCount / 2>(next, first + kCount / 2, other);
    for (int k = 0; k < K; ++k) join<C, N, 2 * N / kCount>(folded[k], other[k]);
  }
}

// The same of N vectors that lie one after the other.
template <class C, int N>
LPFS_INLINE void fold(const C* lanes, Vector<C, N>& folded) {
  const auto next = [lanes](int64_t i, Vector<C, N>* vector)
                        LPFS_INLINE_LAMBDA { load<N>(lanes + i * N, *vector); };
  fold<C, N, 1>(next, 0, &folded);
}

template <class C, int N>
LPFS_INLINE C total(const Vector<C, N>& vector) {
  if constexpr (N == 1) {
    return vector[0];
  } else {
    Vector<C, N / 2> halves[2];
    reinterpret(vector, halves);
    return total<C, N / 2>(halves[0] + halves[1]);
  }
}

// Row products of one source, a vector of them at a time. Squares count `scales` times, if there are
// any.
template <class C, int N>
struct RowProducts {
  Vector<C, N> sums{}, squares{};

  // `count` of them, up to N, of which the others are zero; also into `products`, if any.
  LPFS_INLINE void add(const Vector<C, N>& folded, int64_t count, const C* scales, C* products) {
    if (products) std::memcpy(products, &folded, count * sizeof(C));
    sums += folded;
    Vector<C, N> scaled = folded;
    if (scales) {
      Vector<C, N> scale{};
      std::memcpy(&scale, scales, count * sizeof(C));
      scaled *= scale;
    }
    squares += folded * scaled;
  }

  LPFS_INLINE Moments moments() const { return {total<C, N>(sums), total<C, N>(squares)}; }
};

// What a narrower vector takes, to the first lanes.
template <class C, int N>
LPFS_INLINE void add_narrow(const Vector<C, N / 2>& narrow, Vector<C, N>& lanes) {
  Vector<C, N> wide{};
  std::memcpy(&wide, &narrow, sizeof narrow);
  lanes += wide;
}

// Zeroes all elements but the first.
template <class C, int N>
LPFS_INLINE void keep_first(int64_t count, Vector<C, N>& vector) {
  using Index = std::conditional_t<sizeof(C) == 8, int64_t, int32_t>;
  Vector<Index, N> place, bits;
  for (int k = 0; k < N; ++k) place[k] = k;
  reinterpret(vector, bits);
  bits &= (Vector<Index, N>)(place < static_cast<Index>(count));
  reinterpret(bits, vector);
}

// Row products of many sources, one row after the other.
template <class C, int N>
struct ProductsOfRows {
  // How many wait for each other: few enough that their lanes stay in the nearest cache.
  static constexpr int64_t kTogether = 4 * N;

  const RowSums& into;
  int64_t row = 0;
  C scale = 1;
  alignas(64) C lanes[kTogether * N]{};

  LPFS_INLINE ProductsOfRows(const RowSums& into) : into(into) {}

  LPFS_INLINE void begin(int64_t r) {
    row = into.row + r;
    if (into.row_scale) scale = static_cast<const C*>(into.row_scale)[row];
  }

  // Those of `count` sources from the `first` on: the sums of their `lanes`.
  LPFS_INLINE void add(int64_t first, int64_t count) {
    C *const sums = static_cast<C*>(into.sums) + first;
    C *const squares = static_cast<C*>(into.squares) + first;
    for (int64_t k = 0; k < count; k += N) {
      Vector<C, N> folded, sum, square;
      fold<C, N>(lanes + k * N, folded);
      keep_first<C, N>(count - k, folded);
      load<N>(sums + k, sum);
      load<N>(squares + k, square);
      store<N>(sums + k, sum + folded);
      store<N>(squares + k, square + folded * folded * scale);
      if (!into.products) continue;
      C products[N];
      store<N>(products, folded);
      for (int64_t i = 0; i < std::min<int64_t>(N, count - k); ++i) {
        C* const target = static_cast<C*>(into.products[first + k + i]);
        if (target) target[row] = products[i];
      }
    }
  }
};

}  // namespace
}  // namespace lpfs
