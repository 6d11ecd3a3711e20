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

template <class C, int N, int kLeft>
LPFS_INLINE void fold_level(Vector<C, N>* vectors) {
  if constexpr (kLeft > 1) {
    constexpr int kPiece = 16 / sizeof(C);
    constexpr bool kApart = kLeft <= N / kPiece;
    constexpr int kNext = kApart ? kPiece : 1;
    for (int i = 0; i < kLeft / 2; ++i) {
      Vector<C, N> even, odd;
      const std::make_integer_sequence<int, N> places;
      take<C, N, kApart, 0>(vectors[2 * i], vectors[2 * i + 1], even, places);
      take<C, N, kApart, kNext>(vectors[2 * i], vectors[2 * i + 1], odd, places);
      vectors[i] = even + odd;
    }
    fold_level<C, N, kLeft / 2>(vectors);
  }
}

// The sums of N vectors that lie one after the other, as one vector.
template <class C, int N>
LPFS_INLINE void fold(const C* lanes, Vector<C, N>& sums) {
  Vector<C, N> vectors[N];
  for (int i = 0; i < N; ++i) load<N>(lanes + i * N, vectors[i]);
  fold_level<C, N, N>(vectors);
  sums = vectors[0];
}

// Row products of one source, a vector of them at a time.
template <class C, int N>
struct RowProducts {
  Vector<C, N> sums{}, squares{};

  // `count` of them, up to N, from lanes of which the others are zero; also into `products`, if any.
  LPFS_INLINE void add(const C* lanes, int64_t count, C* products) {
    Vector<C, N> folded;
    fold<C, N>(lanes, folded);
    if (products) std::memcpy(products, &folded, count * sizeof(C));
    sums += folded;
    squares += folded * folded;
  }

  LPFS_INLINE void add_to(Moments& moments) const {
    for (int i = 0; i < N; ++i) moments.sum += sums[i], moments.square += squares[i];
  }
};

// Row products of many sources in one row, from lanes that lie side by side; added to `sums`, and
// squared to `squares`. All of them have as many elements as whole vectors take.
template <class C, int N>
LPFS_INLINE void fold_row(const C* lanes, int64_t count, C* products, C* sums, C* squares) {
  for (int64_t k = 0; k < count; k += N) {
    Vector<C, N> folded, sum, square;
    fold<C, N>(lanes + k * N, folded);
    load<N>(sums + k, sum);
    load<N>(squares + k, square);
    store<N>(products + k, folded);
    store<N>(sums + k, sum + folded);
    store<N>(squares + k, square + folded * folded);
  }
}

}  // namespace
}  // namespace lpfs
