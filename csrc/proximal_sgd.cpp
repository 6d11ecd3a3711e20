// lpfs::proximal_sgd_ on the CPU; lpfs_kernels/reference.py is its definition.
#include <cmath>
#include <memory>
#include <optional>
#include <tuple>
#include <type_traits>

#include "step_targets.h"

namespace lpfs {
namespace {

constexpr Checks kChecks{"proximal_sgd_"};

void check(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
           const Tensor& lr, const Tensor& lam, const std::optional<Tensor>& budget) {
  check_lengths(kChecks, "params", params,
                {{"grads", &grads}, {"momentum_buffers", &momentum_buffers}});
  const ScalarType dtype = params[0].scalar_type();
  if (dtype != ScalarType::Double && dtype != ScalarType::Float) {
    kChecks.fault({"params", 0}, "be float32 or float64", name_of(dtype));
  }
  for (int64_t i = 0; i < static_cast<int64_t>(params.size()); ++i) {
    const Name param{"params", i};
    kChecks.dtype(param, params[i], dtype, " like params[0]");
    for (const auto& [argument, tensors] :
         {std::make_pair("grads", &grads), std::make_pair("momentum_buffers", &momentum_buffers)}) {
      kChecks.dtype({argument, i}, (*tensors)[i], dtype, " like ", param);
      kChecks.shape({argument, i}, (*tensors)[i], params[i].sizes(), " like ", param);
    }
  }
  check_targets(kChecks, {{"params", &params}, {"momentum_buffers", &momentum_buffers}});
  kChecks.dtype({"lr"}, lr, dtype, " like params[0]");
  kChecks.shape({"lr"}, lr, Shape{});
  kChecks.dtype({"lam"}, lam, dtype, " like params[0]");
  kChecks.shape({"lam"}, lam, Shape{});
  if (budget) {
    kChecks.dtype({"budget"}, *budget, ScalarType::Long);
    kChecks.shape({"budget"}, *budget, Shape{});
  }
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// The offset of element i, in the order in which a contiguous tensor holds it.
int64_t offset(const Tensor& tensor, int64_t i) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  int64_t items = 0;
  for (size_t d = sizes.size(); d-- > 0; i /= sizes[d]) items += i % sizes[d] * strides[d];
  return items;
}

// A momentum step of neighbouring elements, before the threshold; into `stepped`. Loops of this kind
// the compiler turns into vectors.
template <bool kNesterov, bool kNonnegative, class T>
void descend(const T* param, const T* grad, T* buffer, int64_t count, T lr, T momentum, T share,
             T sign, T* stepped) {
  for (int64_t i = 0; i < count; ++i) {
    const T descent = sign * grad[i];
    const T velocity = buffer[i] * momentum + descent * share;
    const T v = param[i] - lr * (kNesterov ? descent + momentum * velocity : velocity);
    const bool stops = kNonnegative && v < 0;
    buffer[i] = stops ? T(0) : velocity;
    stepped[i] = stops ? T(0) : v;
  }
}

// Soft thresholding. Returns how many differ from zero.
template <class T>
int64_t shrink(const T* stepped, int64_t count, T threshold, T* param) {
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  constexpr int64_t kCounted = 1 << 30;
  int64_t live = 0;
  for (int64_t first = 0; first < count; first += kCounted) {
    Integer some = 0;
    for (int64_t i = first, end = std::min(first + kCounted, count); i < end; ++i) {
      const T v = stepped[i], shrunk = v - std::copysign(threshold, v);
      param[i] = std::abs(v) <= threshold ? T(0) : shrunk;
      some += param[i] != 0;
    }
    live += some;
  }
  return live;
}

template <class T>
std::tuple<Tensor, Tensor> step(const Tensors& params, const Tensors& grads,
                                const Tensors& momentum_buffers, const Tensor& lr_tensor,
                                const Tensor& lam_tensor, const std::optional<Tensor>& budget,
                                T momentum, T dampening, bool nesterov, bool maximize,
                                bool nonnegative) {
  const T lr = *data<T>(lr_tensor), lam = *data<T>(lam_tensor);
  if (!(lr >= 0 && std::isfinite(lr))) kChecks.fault({"lr"}, "be at least 0 and finite", lr);
  if (!(lam >= 0)) kChecks.fault({"lam"}, "be at least 0", lam);
  const int64_t allowed = budget ? *data<int64_t>(*budget) : 0;
  if (allowed < 0) kChecks.fault({"budget"}, "be at least 0", allowed);

  int64_t total = 0;
  for (const Tensor& param : params) total += param.numel();
  const std::unique_ptr<T[]> all(new T[total]);
  T* stepped = all.get();
  const auto descent = nonnegative ? (nesterov ? descend<true, true, T> : descend<false, true, T>)
                                   : (nesterov ? descend<true, false, T> : descend<false, false, T>);
  for (size_t k = 0; k < params.size(); ++k) {
    const int64_t count = params[k].numel();
    const T* grad = data<T>(grads[k]);
    if (!grads[k].is_contiguous()) {
      for (int64_t i = 0; i < count; ++i) stepped[i] = grad[offset(grads[k], i)];
      grad = stepped;
    }
    descent(data<T>(params[k]), grad, data<T>(momentum_buffers[k]), count, lr, momentum,
            1 - dampening, T(maximize ? -1 : 1), stepped);
    stepped += count;
  }

  T threshold = lr == 0 ? T(0) : 2 * lam * lr;
  if (budget && allowed >= total) {
    threshold = 0;
  } else if (budget) {
    std::vector<T> magnitudes(all.get(), all.get() + total);
    for (T& v : magnitudes) v = std::abs(v);
    // NaN counts as the largest, as torch sorts it: `>` alone would not be an order.
    std::nth_element(magnitudes.begin(), magnitudes.begin() + allowed, magnitudes.end(),
                     [](T a, T b) { return a > b || (std::isnan(a) && !std::isnan(b)); });
    threshold = magnitudes[allowed] < threshold ? magnitudes[allowed] : threshold;
  }

  int64_t live = 0;
  stepped = all.get();
  for (const Tensor& param : params) {
    live += shrink(stepped, param.numel(), threshold, data<T>(param));
    stepped += param.numel();
  }

  Tensor live_tensor = empty(Shape{}, ScalarType::Long);
  *data<int64_t>(live_tensor) = live;
  Tensor lam_used = empty(Shape{}, lam_tensor.scalar_type());
  *data<T>(lam_used) = lr == 0 ? T(0) : threshold / (2 * lr);
  return {live_tensor, lam_used};
}

std::tuple<Tensor, Tensor> proximal_sgd_(const Tensors& params, const Tensors& grads,
                                         const Tensors& momentum_buffers, const Tensor& lr,
                                         const Tensor& lam, const std::optional<Tensor>& budget,
                                         double momentum, double dampening, bool nesterov,
                                         bool maximize, bool nonnegative) {
  check(params, grads, momentum_buffers, lr, lam, budget);
  if (params[0].scalar_type() == ScalarType::Double) {
    return step<double>(params, grads, momentum_buffers, lr, lam, budget, momentum, dampening,
                        nesterov, maximize, nonnegative);
  }
  return step<float>(params, grads, momentum_buffers, lr, lam, budget,
                     static_cast<float>(momentum), static_cast<float>(dampening), nesterov,
                     maximize, nonnegative);
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("proximal_sgd_", TORCH_BOX(&lpfs::proximal_sgd_));
}
