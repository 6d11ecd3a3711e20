#include "row_steps_loops.h"

#include <algorithm>
#include <cmath>

#include "row_access.h"
#include "vectors.h"

namespace lpfs {
namespace {

template <class C, int N>
LPFS_INLINE void root(Vector<C, N>& value) {
  C items[N];
  std::memcpy(items, &value, sizeof value);
  for (int i = 0; i < N; ++i) items[i] = std::sqrt(items[i]);
  std::memcpy(&value, items, sizeof value);
}

// The numbers of a step, in the type that is computed in.
template <class C>
struct Step {
  C rate, eps, decay, share1, share2, momentum, undamped;
  bool maximize, nesterov;

  explicit Step(const StepNumbers& n)
      : rate(static_cast<C>(n.rate)),
        eps(static_cast<C>(n.eps)),
        decay(static_cast<C>(n.weight_decay)),
        share1(static_cast<C>(1 - n.beta1)),
        share2(static_cast<C>(1 - n.beta2)),
        momentum(static_cast<C>(n.momentum)),
        undamped(static_cast<C>(1 - n.dampening)),
        maximize(n.maximize),
        nesterov(n.nesterov) {}
};

// What every rule shares: the direction of the gradient, and weight decay.
template <class C, int N>
LPFS_INLINE void descend(const Step<C>& step, const Vector<C, N>& weight, Vector<C, N>& grad) {
  if (step.maximize) grad = -grad;
  if (step.decay != 0) grad += weight * step.decay;
}

// Each rule takes neighbouring elements of a weight and moves them and its state.
struct Adagrad {
  template <class C, int N>
  LPFS_INLINE static void move(const Step<C>& step, const Vector<C, N>& grad, C* first, C*,
                               Vector<C, N>& weight) {
    Vector<C, N> sum;
    load<N>(first, sum);
    sum += grad * grad;
    store<N>(first, sum);
    root<C, N>(sum);
    weight -= step.rate * (grad / (sum + step.eps));
  }
};

struct Adam {
  template <class C, int N>
  LPFS_INLINE static void move(const Step<C>& step, const Vector<C, N>& grad, C* first, C* second,
                               Vector<C, N>& weight) {
    Vector<C, N> mean, square;
    load<N>(first, mean);
    load<N>(second, square);
    mean += (grad - mean) * step.share1;
    square += (grad * grad - square) * step.share2;
    store<N>(first, mean);
    store<N>(second, square);
    root<C, N>(square);
    weight -= step.rate * (mean / (square + step.eps));
  }
};

struct Sgd {
  template <class C, int N>
  LPFS_INLINE static void move(const Step<C>& step, const Vector<C, N>& grad, C*, C*,
                               Vector<C, N>& weight) {
    weight -= step.rate * grad;
  }
};

struct Momentum {
  template <class C, int N>
  LPFS_INLINE static void move(const Step<C>& step, const Vector<C, N>& grad, C* first, C*,
                               Vector<C, N>& weight) {
    Vector<C, N> velocity;
    load<N>(first, velocity);
    velocity = velocity * step.momentum + grad * step.undamped;
    store<N>(first, velocity);
    weight -= step.rate * (step.nesterov ? grad + velocity * step.momentum : velocity);
  }
};

// `G` is the gradient's type: the weight's, or that of sums.
template <class R, class T, class G, int N>
LPFS_INLINE void move(const Step<Compute<T>>& step, const G* grad, int64_t j, int64_t count,
                      T* weight, Compute<T>* first, Compute<T>* second) {
  for (; j + N <= count; j += N) {
    Vector<Compute<T>, N> own, value;
    load<N>(grad + j, own);
    load<N>(weight + j, value);
    descend<Compute<T>, N>(step, value, own);
    R::template move<Compute<T>, N>(step, own, first + j, second + j, value);
    store<N>(weight + j, value);
  }
  if constexpr (N > 1) {
    if (j < count) move<R, T, G, N / 2>(step, grad, j, count, weight, first, second);
  }
}

// A row after the other, of one sum each.
template <class T, class G, int N>
LPFS_INLINE void add_squares(const Step<Compute<T>>& step, const G* grad, int64_t j, int64_t count,
                             const T* weight, Sums<Compute<T>, N>& squares) {
  for (; j + N <= count; j += N) {
    Vector<Compute<T>, N> own, value;
    load<N>(grad + j, own);
    load<N>(weight + j, value);
    descend<Compute<T>, N>(step, value, own);
    squares.lanes += own * own;
  }
  if constexpr (N > 1) {
    if (j < count) add_squares<T, G, N / 2>(step, grad, j, count, weight, squares.rest);
  }
}

template <class T, class G, int N>
LPFS_INLINE void move_rowwise(const Step<Compute<T>>& step, const G* grad, int64_t width, T* weight,
                              Compute<T>* sum) {
  using C = Compute<T>;
  Sums<C, N> squares;
  add_squares<T, G, N>(step, grad, 0, width, weight, squares);
  *sum += static_cast<C>(squares.total() / std::max<int64_t>(width, 1));
  Step<C> own = step;
  own.rate = step.rate / (std::sqrt(*sum) + step.eps);
  move<Sgd, T, G, N>(own, grad, 0, width, weight, sum, sum);
}

struct RowwiseAdagrad {};

template <class R, class T, class G, int N>
LPFS_INLINE void move_row(const Step<Compute<T>>& step, const StepTarget& target, int64_t row,
                          const G* grad) {
  using C = Compute<T>;
  T* const weight = static_cast<T*>(target.weight) + row * target.width;
  C* const first = static_cast<C*>(target.first);
  if constexpr (std::is_same_v<R, RowwiseAdagrad>) {
    move_rowwise<T, G, N>(step, grad, target.width, weight, first + row);
  } else {
    const int64_t place = row * target.width;
    move<R, T, G, N>(step, grad, 0, target.width, weight, first + place,
                     static_cast<C*>(target.second) + place);
  }
}

template <class T, int N, bool kMore>
LPFS_INLINE void add_row(const Rows& grads, int64_t number, int64_t j, int64_t width,
                         Compute<T>* totals) {
  for (; j + N <= width; j += N) {
    Vector<Compute<T>, N> value;
    load_from<T, N>(grads, number, j, value);
    if constexpr (kMore) {
      Vector<Compute<T>, N> total;
      load<N>(totals + j, total);
      value = total + value;
    }
    store<N>(totals + j, value);
  }
  if constexpr (N > 1) {
    if (j < width) add_row<T, N / 2, kMore>(grads, number, j, width, totals);
  }
}

// The first lines of a row: the processor follows by itself from there.
LPFS_INLINE void fetch_row(const void* row, int64_t bytes) {
  constexpr int64_t kFetched = 256;
  for (int64_t at = 0; at < std::min(bytes, kFetched); at += 64) fetch(row, at);
}

template <class R, class T, int N>
LPFS_INLINE void step_rows(const StepNumbers& numbers, const StepTarget& target, const Rows& grads,
                           const Entry* entries, int64_t begin, int64_t end, Compute<T>* totals) {
  using C = Compute<T>;
  constexpr bool kRowwise = std::is_same_v<R, RowwiseAdagrad>;
  constexpr bool kState = !std::is_same_v<R, Sgd>;
  const Step<C> step(numbers);
  const int64_t width = target.width, items = width * static_cast<int64_t>(sizeof(C));
  if (begin > 0) {
    while (begin < end && entries[begin].row == entries[begin - 1].row) ++begin;
  }
  for (int64_t e = begin; e < end;) {
    const int64_t row = entries[e].row;
    add_row<T, N, false>(grads, entries[e].number, 0, width, totals);
    do {
      const Entry& later = entries[e + kEntriesAhead];
      fetch_row(row_at<T>(grads, later.number, 0), width * sizeof(T));
      if (later.row != entries[e + kEntriesAhead - 1].row) {
        fetch_row(static_cast<const T*>(target.weight) + later.row * width, width * sizeof(T));
        if (kState && !kRowwise) {
          fetch_row(static_cast<const C*>(target.first) + later.row * width, items);
        }
        if (kRowwise) fetch(static_cast<const C*>(target.first) + later.row, 0);
        if (std::is_same_v<R, Adam>) {
          fetch_row(static_cast<const C*>(target.second) + later.row * width, items);
        }
      }
      if (entries[++e].row != row) break;
      add_row<T, N, true>(grads, entries[e].number, 0, width, totals);
    } while (true);
    move_row<R, T, C, N>(step, target, row, totals);
  }
}

template <class R, class T, int N>
LPFS_INLINE void step_dense(const StepNumbers& numbers, const StepTarget& target, const T* grads,
                            int64_t begin, int64_t end) {
  using C = Compute<T>;
  const Step<C> step(numbers);
  if constexpr (std::is_same_v<R, RowwiseAdagrad>) {
    for (int64_t row = begin; row < end; ++row) {
      move_row<R, T, T, N>(step, target, row, grads + row * target.width);
    }
  } else {
    move<R, T, T, N>(step, grads, begin * target.width, end * target.width,
                     static_cast<T*>(target.weight), static_cast<C*>(target.first),
                     static_cast<C*>(target.second));
  }
}

#define LPFS_DEFINE_ROW_STEP_LOOPS(NAME, VECTOR_BYTES, ATTRIBUTES)                               \
  template <class R, class T>                                                                    \
  struct NAME {                                                                                  \
    using C = Compute<T>;                                                                        \
    static constexpr int N = VECTOR_BYTES / sizeof(C);                                           \
    ATTRIBUTES static void rows(const StepNumbers& numbers, const StepTarget& target,            \
                                Rows grads, const Entry* entries, int64_t begin, int64_t end,    \
                                void* totals) {                                                  \
      lpfs::step_rows<R, T, N>(numbers, target, grads, entries, begin, end,                      \
                               static_cast<C*>(totals));                                         \
    }                                                                                            \
    ATTRIBUTES static void dense(const StepNumbers& numbers, const StepTarget& target,           \
                                 const void* grads, int64_t begin, int64_t end) {                \
      lpfs::step_dense<R, T, N>(numbers, target, static_cast<const T*>(grads), begin, end);      \
    }                                                                                            \
    static constexpr RowStepLoops kLoops{rows, dense};                                           \
  };

LPFS_DEFINE_ROW_STEP_LOOPS(RowStepBaseline, 16, )
#if defined(__x86_64__)
LPFS_DEFINE_ROW_STEP_LOOPS(RowStepAvx2, 32, __attribute__((target("avx2,fma,f16c"))))
LPFS_DEFINE_ROW_STEP_LOOPS(RowStepAvx512, 64,
                           __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c"))))
#endif

template <template <class, class> class Set, class R>
const RowStepLoops& loops_of(Dtype dtype) {
  static constexpr RowStepLoops kLoops[] = {Set<R, double>::kLoops, Set<R, float>::kLoops,
                                            Set<R, Half>::kLoops, Set<R, BFloat16>::kLoops};
  return kLoops[static_cast<int>(dtype)];
}

template <template <class, class> class Set>
const RowStepLoops& loops_of(Rule rule, Dtype dtype) {
  switch (rule) {
    case Rule::adagrad: return loops_of<Set, Adagrad>(dtype);
    case Rule::rowwise_adagrad: return loops_of<Set, RowwiseAdagrad>(dtype);
    case Rule::adam: return loops_of<Set, Adam>(dtype);
    case Rule::sgd: return loops_of<Set, Sgd>(dtype);
    default: return loops_of<Set, Momentum>(dtype);
  }
}

}  // namespace

const RowStepLoops& row_step_loops_for(Rule rule, Dtype dtype) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
    return loops_of<RowStepAvx512>(rule, dtype);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c")) {
    return loops_of<RowStepAvx2>(rule, dtype);
  }
#endif
  return loops_of<RowStepBaseline>(rule, dtype);
}

}  // namespace lpfs
