// Vectors of the four types, loaded as and stored from the type that is computed in. For files without
// a torch header; of internal linkage, since each function becomes one with the loop that it is in.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// With the checks of sanitizers, what becomes one function is too large for a compiler to end with.
#if defined(LPFS_SANITIZED)
#define LPFS_INLINE inline
#define LPFS_INLINE_LAMBDA
#else
#define LPFS_INLINE inline __attribute__((always_inline))
#define LPFS_INLINE_LAMBDA __attribute__((always_inline))
#endif

// Vectors of 8 and more are those of AVX2 and AVX-512, and such processors convert fp16. Clang looks
// at the registers of an asm statement before it knows the instruction set of the caller.
#if defined(__x86_64__) && !defined(__clang__)
#define LPFS_F16C
#endif

namespace lpfs {
namespace {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T, int N>
struct VectorOf {
  typedef T type __attribute__((vector_size(N * sizeof(T))));
};
template <class T, int N>
using Vector = typename VectorOf<T, N>::type;

// Vectors travel by reference: their calling convention depends on the instruction set.
template <class To, class From>
LPFS_INLINE void reinterpret(const From& from, To& to) {
  static_assert(sizeof(To) == sizeof(From));
  std::memcpy(&to, &from, sizeof to);
}

template <int N>
LPFS_INLINE void load(const double* source, Vector<double, N>& value) {
  std::memcpy(&value, source, sizeof value);
}

template <int N>
LPFS_INLINE void load(const float* source, Vector<float, N>& value) {
  std::memcpy(&value, source, sizeof value);
}

template <int N>
LPFS_INLINE void load_bits(const void* source, Vector<uint32_t, N>& bits) {
  Vector<uint16_t, N> narrow;
  std::memcpy(&narrow, source, sizeof narrow);
  bits = __builtin_convertvector(narrow, Vector<uint32_t, N>);
}

template <int N>
LPFS_INLINE void load(const BFloat16* source, Vector<float, N>& value) {
  Vector<uint32_t, N> bits;
  load_bits<N>(source, bits);
  bits <<= 16;
  reinterpret(bits, value);
}

template <int N>
LPFS_INLINE void load(const Half* source, Vector<float, N>& value) {
#if defined(LPFS_F16C)
  if constexpr (N >= 8) {
    Vector<uint16_t, N> bits;
    std::memcpy(&bits, source, sizeof bits);
    asm("vcvtph2ps %1, %0" : "=v"(value) : "v"(bits));
    return;
  }
#endif
  Vector<uint32_t, N> half;
  load_bits<N>(source, half);
  const Vector<uint32_t, N> magnitude = half & 0x7fff;
  // The exponent's bias is 15 there and 127 here; infinity and NaN keep the largest exponent.
  Vector<uint32_t, N> bits = (magnitude << 13) + (112u << 23);
  bits += (Vector<uint32_t, N>)(magnitude > 0x7bff) & (112u << 23);
  const Vector<uint32_t, N> subnormal = (Vector<uint32_t, N>)(magnitude < 0x400);
  const Vector<float, N> small =
      __builtin_convertvector((Vector<int32_t, N>)magnitude, Vector<float, N>) * 0x1p-24f;
  Vector<uint32_t, N> small_bits;
  reinterpret(small, small_bits);
  bits = (bits & ~subnormal) | (small_bits & subnormal) | ((half & 0x8000) << 16);
  reinterpret(bits, value);
}

template <int N>
LPFS_INLINE void store(double* target, const Vector<double, N>& value) {
  std::memcpy(target, &value, sizeof value);
}

template <int N>
LPFS_INLINE void store(float* target, const Vector<float, N>& value) {
  std::memcpy(target, &value, sizeof value);
}

template <int N>
LPFS_INLINE void store_bits(void* target, const Vector<uint32_t, N>& bits) {
  const Vector<uint16_t, N> narrow = __builtin_convertvector(bits, Vector<uint16_t, N>);
  std::memcpy(target, &narrow, sizeof narrow);
}

template <int N>
LPFS_INLINE void store(BFloat16* target, const Vector<float, N>& value) {
  Vector<uint32_t, N> bits;
  reinterpret(value, bits);
  const Vector<uint32_t, N> nan = (Vector<uint32_t, N>)(value != value);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  store_bits<N>(target, (bits & ~nan) | (nan & 0x7fc0));
}

template <int N>
LPFS_INLINE void store(Half* target, const Vector<float, N>& value) {
#if defined(LPFS_F16C)
  if constexpr (N >= 8) {
    Vector<uint16_t, N> rounded;
    asm("vcvtps2ph $0, %1, %0" : "=v"(rounded) : "v"(value));
    std::memcpy(target, &rounded, sizeof rounded);
    return;
  }
#endif
  Vector<uint32_t, N> bits;
  reinterpret(value, bits);
  const Vector<uint32_t, N> sign = (bits >> 16) & 0x8000;
  const Vector<uint32_t, N> magnitude = bits & 0x7fffffff;
  const Vector<uint32_t, N> normal =
      (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2⁻¹⁴ the result is a multiple of 2⁻²⁴, which is the last place of 0.5: the addition rounds.
  Vector<float, N> shifted;
  reinterpret(magnitude, shifted);
  shifted += 0.5f;
  Vector<uint32_t, N> subnormal;
  reinterpret(shifted, subnormal);
  subnormal -= 0x3f000000;
  const Vector<uint32_t, N> small = (Vector<uint32_t, N>)(magnitude < 0x38800000);
  const Vector<uint32_t, N> large = (Vector<uint32_t, N>)(magnitude > 0x477fffff);
  const Vector<uint32_t, N> nan = (Vector<uint32_t, N>)(magnitude > 0x7f800000);
  Vector<uint32_t, N> half = (normal & ~small) | (subnormal & small);
  half = (half & ~large) | (large & 0x7c00) | (nan & 0x200);
  store_bits<N>(target, half | sign);
}

template <class T>
using Compute = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Harmless beyond the end of the data.
LPFS_INLINE void fetch(const void* row, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(row) + static_cast<uintptr_t>(bytes);
  __builtin_prefetch(reinterpret_cast<const void*>(address), 0, 2);
}

// Past the cache where the processor can; else as any other.
template <class V>
LPFS_INLINE void put(const V& value, void* target) {
#if defined(__clang__)
  __builtin_nontemporal_store(value, static_cast<V*>(target));
#else
#if defined(__x86_64__)
  if constexpr (sizeof(V) > 16) {
    asm("vmovntps %1, %0" : "=m"(*static_cast<V*>(target)) : "v"(value));
    return;
  } else if constexpr (sizeof(V) == 16) {
    asm("movntps %1, %0" : "=m"(*static_cast<V*>(target)) : "x"(value));
    return;
  }
#endif
  std::memcpy(target, &value, sizeof value);
#endif
}

template <class T, int N>
LPFS_INLINE void put_row(T* target, const Vector<Compute<T>, N>& value) {
  T items[N];
  store<N>(items, value);
  Vector<uint8_t, N * sizeof(T)> bytes;
  std::memcpy(&bytes, items, sizeof bytes);
  put(bytes, target);
}

// One vector of partial sums for each vector width that a row is cut into.
template <class C, int N>
struct Sums {
  Vector<C, N> lanes{};
  Sums<C, N / 2> rest;

  LPFS_INLINE double total() const {
    double sum = rest.total();
    for (int i = 0; i < N; ++i) sum += lanes[i];
    return sum;
  }
};
template <class C>
struct Sums<C, 0> {
  LPFS_INLINE double total() const { return 0; }
};

}  // namespace
}  // namespace lpfs
