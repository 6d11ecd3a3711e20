// lpfs::proximal_sgd_ on the CPU; lpfs_kernels/reference.py is its definition.
#include <cmath>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>

#include "launch.h"

namespace lpfs {
namespace {

using Tensors = std::vector<Tensor>;

constexpr Checks kChecks{"proximal_sgd_"};

struct Span {
  const char *begin, *end;
  Name name;
};

void check_targets(const Tensors& params, const Tensors& momentum_buffers) {
  std::vector<Span> spans;
  const auto add = [&spans](const char* list_name, const Tensors& tensors) {
    for (size_t i = 0; i < tensors.size(); ++i) {
      const Name name{list_name, static_cast<int64_t>(i)};
      if (!tensors[i].is_contiguous()) {
        kChecks.fault(name, "be contiguous", "strides " + list(tensors[i].strides()));
      }
      const auto* begin = static_cast<const char*>(tensors[i].const_data_ptr());
      const int64_t bytes = tensors[i].numel() * tensors[i].element_size();
      if (bytes) spans.push_back({begin, begin + bytes, name});
    }
  };
  add("params", params);
  add("momentum_buffers", momentum_buffers);
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return std::less<>()(a.begin, b.begin); });
  for (size_t i = 1; i < spans.size(); ++i) {
    if (std::less<>()(spans[i].begin, spans[i - 1].end)) {
      throw std::runtime_error(text("proximal_sgd_: ", spans[i - 1].name, " and ", spans[i].name,
                                    " must not overlap in memory"));
    }
  }
}

void check(const Tensors& params, const Tensors& grads, const Tensors& momentum_buffers,
           const Tensor& lr, const Tensor& lam, const std::optional<Tensor>& budget) {
  if (params.empty()) kChecks.fault({"params"}, "hold at least one tensor", "none");
  for (const auto& [argument, tensors] :
       {std::make_pair("grads", &grads), std::make_pair("momentum_buffers", &momentum_buffers)}) {
    if (tensors->size() != params.size()) {
      kChecks.fault({argument}, text("hold ", params.size(), " tensors like params"),
                    tensors->size());
    }
  }
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
  check_targets(params, momentum_buffers);
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

template <class T>
std::tuple<Tensor, Tensor> step(const Tensors& params, const Tensors& grads,
                                const Tensors& momentum_buffers, const Tensor& lr_tensor,
                                const Tensor& lam_tensor, const std::optional<Tensor>& budget,
                                T momentum, T dampening, bool nesterov, bool maximize) {
  const T lr = *data<T>(lr_tensor), lam = *data<T>(lam_tensor);
  if (!(lr >= 0 && std::isfinite(lr))) kChecks.fault({"lr"}, "be at least 0 and finite", lr);
  if (!(lam >= 0)) kChecks.fault({"lam"}, "be at least 0", lam);
  const int64_t allowed = budget ? *data<int64_t>(*budget) : 0;
  if (allowed < 0) kChecks.fault({"budget"}, "be at least 0", allowed);

  int64_t total = 0;
  for (const Tensor& param : params) total += param.numel();
  std::vector<T> stepped;
  stepped.reserve(total);
  for (size_t k = 0; k < params.size(); ++k) {
    const T *param = data<T>(params[k]), *grad = data<T>(grads[k]);
    T* buffer = data<T>(momentum_buffers[k]);
    const bool contiguous = grads[k].is_contiguous();
    for (int64_t i = 0, n = params[k].numel(); i < n; ++i) {
      const T gradient = grad[contiguous ? i : offset(grads[k], i)];
      const T descent = maximize ? -gradient : gradient;
      buffer[i] = buffer[i] * momentum + descent * (1 - dampening);
      stepped.push_back(param[i] -
                        lr * (nesterov ? descent + momentum * buffer[i] : buffer[i]));
    }
  }

  T threshold = lr == 0 ? T(0) : 2 * lam * lr;
  if (budget && allowed >= total) {
    threshold = 0;
  } else if (budget) {
    std::vector<T> magnitudes(stepped);
    for (T& v : magnitudes) v = std::abs(v);
    // NaN counts as the largest, as torch sorts it: `>` alone would not be an order.
    std::nth_element(magnitudes.begin(), magnitudes.begin() + allowed, magnitudes.end(),
                     [](T a, T b) { return a > b || (std::isnan(a) && !std::isnan(b)); });
    threshold = magnitudes[allowed] < threshold ? magnitudes[allowed] : threshold;
  }

  int64_t live = 0;
  auto v = stepped.begin();
  for (const Tensor& tensor : params) {
    T* param = data<T>(tensor);
    for (int64_t i = 0, n = tensor.numel(); i < n; ++i, ++v) {
      param[i] = std::abs(*v) <= threshold ? T(0) : *v - std::copysign(threshold, *v);
      live += param[i] != 0;
    }
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
                                         bool maximize) {
  check(params, grads, momentum_buffers, lr, lam, budget);
  if (params[0].scalar_type() == ScalarType::Double) {
    return step<double>(params, grads, momentum_buffers, lr, lam, budget, momentum, dampening,
                        nesterov, maximize);
  }
  return step<float>(params, grads, momentum_buffers, lr, lam, budget,
                     static_cast<float>(momentum), static_cast<float>(dampening), nesterov,
                     maximize);
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("proximal_sgd_", TORCH_BOX(&lpfs::proximal_sgd_));
}
