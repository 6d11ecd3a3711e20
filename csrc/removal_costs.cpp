// lpfs::removal_costs_ on the CPU; lpfs_kernels/reference.py is its definition.
#include <cmath>

#include "gate_arguments.h"

namespace lpfs {
namespace {

constexpr Checks kChecks{"removal_costs_"};
constexpr int64_t kSums = 8;
constexpr double kRecent = 0.95;

// What a step's loss is of those of its rows.
struct Loss {
  bool mean;
  double scale, per_row;
};

void check(const Tensor& known, const Tensor& moments, const Tensor& x,
           const MaybeTensor& field_of_unit, const Loss& loss, double horizon) {
  const ScalarType type = x.scalar_type();
  if (type != ScalarType::Double && type != ScalarType::Float) {
    kChecks.fault({"x"}, "be float32 or float64", name_of(type));
  }
  if (x.sizes().size() != 1) {
    kChecks.fault({"x"}, "have 1 dimension", text("shape ", list(x.sizes())));
  }
  const int64_t units = field_of_unit ? field_of_unit->numel() : x.numel();
  if (field_of_unit) {
    kChecks.dtype({"field_of_unit"}, *field_of_unit, ScalarType::Long);
    kChecks.shape({"field_of_unit"}, *field_of_unit, Shape{units});
    for (int64_t u = 0; u < units; ++u) {
      const int64_t field = at<int64_t>(*field_of_unit, u);
      if (field < 0 || field >= x.numel()) {
        kChecks.fault({"field_of_unit"}, text("name one of the ", x.numel(), " fields"),
                      text(field, " at position ", u));
      }
    }
  }
  kChecks.dtype({"known"}, known, type, " like x");
  kChecks.shape({"known"}, known, Shape{kSums, units}, ", one column per unit");
  kChecks.dtype({"moments"}, moments, type, " like x");
  kChecks.shape({"moments"}, moments, Shape{3, units}, ", one column per unit");
  if (!known.is_contiguous()) {
    kChecks.fault({"known"}, "be contiguous", "strides " + list(known.strides()));
  }
  if (!(horizon >= 1)) kChecks.fault({"horizon"}, "be at least 1", horizon);
  if (!(loss.scale > 0 && std::isfinite(loss.scale))) {
    kChecks.fault({"loss_scale"}, "be positive and finite", loss.scale);
  }
  if (!(loss.per_row > 0 && std::isfinite(loss.per_row))) {
    kChecks.fault({"per_row"}, "be positive and finite", loss.per_row);
  }
}

template <class T>
Tensor take(Tensor& known_tensor, const Tensor& moments, const std::vector<GateValue>& gates,
            const MaybeTensor& field_of_unit, const Loss& loss, T keep) {
  const int64_t units = known_tensor.sizes()[1];
  const auto* const left = static_cast<const T*>(moments.const_data_ptr());
  const auto of_unit = [&](int64_t k, int64_t u) {
    return left[k * moments.strides()[0] + u * moments.strides()[1]];
  };
  T most = 0;
  for (int64_t u = 0; u < units; ++u) most = std::max(most, of_unit(2, u));
  const T of_row = loss.mean ? most / T(loss.scale) : T(1 / loss.scale);

  Tensor result = empty(Shape{3, units}, known_tensor.scalar_type());
  auto* const results = static_cast<T*>(result.mutable_data_ptr());
  auto* const known = static_cast<T*>(known_tensor.mutable_data_ptr());
  const T forget[kSums] = {kRecent, kRecent, kRecent, kRecent, keep, keep * keep, keep, keep};
  for (int64_t u = 0; u < units; ++u) {
    const T rows = of_unit(2, u);
    const T slope = of_row * (of_unit(0, u) / rows);
    const T curvature = of_row * of_row * (of_unit(1, u) / rows);
    const T factor = gates[field_of_unit ? at<int64_t>(*field_of_unit, u) : u].factor;
    const T whole = factor < 1 ? T(1) : factor;
    const T cost = T(loss.per_row) * whole * ((factor - whole / 2) * curvature - slope);
    T* const sums = known + u;
    if (std::isfinite(cost)) {
      const T heard[kSums] = {1, cost, factor * slope, factor * factor * curvature,
                              1, 1,    cost,           cost * cost};
      for (int64_t k = 0; k < kSums; ++k) sums[k * units] = sums[k * units] * forget[k] + heard[k];
    }
    const T recent = sums[units] / std::max(sums[0], T(1));
    const T step = sums[2 * units] / std::max(sums[3 * units], T(1e-30));
    results[u] = std::isfinite(cost) ? cost : recent;
    results[units + u] = recent;
    results[2 * units + u] = -std::clamp(step, T(-1), T(1));
  }
  return result;
}

Tensor removal_costs_(Tensor known, const Tensor& moments, const Tensor& x, const Tensor& epsilon,
                      const MaybeTensor& scale, const MaybeTensor& ungated,
                      const MaybeTensor& field_of_unit, double horizon, bool mean,
                      double loss_scale, double per_row, int64_t kind, double alpha, double tau) {
  const Loss loss{mean, loss_scale, per_row};
  check(known, moments, x, field_of_unit, loss, horizon);
  const GateArguments gates{x, epsilon, scale, ungated, kind, alpha, tau};
  const auto values = gates.evaluate(kChecks, x, x.numel(), "field");
  const double keep = 1 - 1 / horizon;
  return x.scalar_type() == ScalarType::Double
             ? take<double>(known, moments, values, field_of_unit, loss, keep)
             : take<float>(known, moments, values, field_of_unit, loss, static_cast<float>(keep));
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("removal_costs_", TORCH_BOX(&lpfs::removal_costs_));
}
