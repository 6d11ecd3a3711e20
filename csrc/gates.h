// g(x; ε) and g′(x; ε) of every gate kind, in the order of operations of lpfs_kernels/reference.py.
#pragma once

#include <cmath>
#include <cstdint>

namespace lpfs {

enum class Kind : int64_t { lpfs, lpfs_plus_plus, gaussian, sinarctan, tanh };
constexpr int64_t kKinds = 5;

template <class T>
struct Gate {
  Kind kind;
  T epsilon, alpha, tau;

  T value(T x) const {
    const T square = x * x, ratio = x / epsilon;
    switch (kind) {
      case Kind::lpfs:
        return square / (square + epsilon);
      case Kind::lpfs_plus_plus:
        return std::copysign(square / (square + epsilon), x) + slope_at_zero() * std::atan(x);
      case Kind::gaussian:
        return -std::expm1(T(-0.5) * ratio * ratio);
      case Kind::sinarctan:
        return std::abs(x) / std::sqrt(square + epsilon * epsilon);
      case Kind::tanh:
        return std::tanh(T(0.5) * ratio * ratio);
    }
    return NAN;
  }

  T derivative(T x) const {
    const T square = x * x, sum = square + epsilon, ratio = x / epsilon;
    switch (kind) {
      case Kind::lpfs:
        return 2 * x * epsilon / (sum * sum);
      case Kind::lpfs_plus_plus:
        return 2 * std::abs(x) * epsilon / (sum * sum) + slope_at_zero() / (1 + square);
      case Kind::gaussian:
        return x / (epsilon * epsilon) * std::exp(T(-0.5) * ratio * ratio);
      case Kind::sinarctan:
        // The kink: one-sided slopes are ±1/ε, and 0 is the convention.
        return x == 0 ? T(0)
                      : std::copysign(epsilon * epsilon, x) /
                            std::pow(square + epsilon * epsilon, T(1.5));
      case Kind::tanh: {
        const T tanh = std::tanh(T(0.5) * ratio * ratio);
        return x / (epsilon * epsilon) * (1 - tanh * tanh);
      }
    }
    return NAN;
  }

  // Whether the gradient can bring a dead field back.
  bool revives() const { return kind == Kind::lpfs_plus_plus && alpha > 0; }

 private:
  T slope_at_zero() const { return alpha * std::pow(epsilon, 1 / tau); }
};

}  // namespace lpfs
