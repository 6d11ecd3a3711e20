// lpfs::removal_costs_ and removal_pull_ on the CPU; lpfs_kernels/reference.py defines them.
#include <cmath>
#include <tuple>

#include "gate_arguments.h"
#include "step_targets.h"

namespace lpfs {
namespace {

constexpr int64_t kSums = 8;
constexpr double kRecent = 0.95;

// What a step's loss is of those of its rows.
struct Loss {
  bool mean;
  double scale, per_row;
};

// Places of `count` things, one for each of some others.
void check_places(const Checks& checks, const char* name, const Tensor& places, int64_t size,
                  int64_t count, const char* things) {
  checks.dtype({name}, places, ScalarType::Long);
  checks.shape({name}, places, Shape{size});
  for (int64_t i = 0; i < size; ++i) {
    const int64_t place = at<int64_t>(places, i);
    if (place < 0 || place >= count) {
      checks.fault({name}, text("name one of the ", count, " ", things),
                   text(place, " at position ", i));
    }
  }
}

void check_floats(const Checks& checks, const Tensor& x) {
  const ScalarType type = x.scalar_type();
  if (type != ScalarType::Double && type != ScalarType::Float) {
    checks.fault({"x"}, "be float32 or float64", name_of(type));
  }
  if (x.sizes().size() != 1) {
    checks.fault({"x"}, "have 1 dimension", text("shape ", list(x.sizes())));
  }
}

void check_contiguous(const Checks& checks, const char* name, const Tensor& tensor) {
  if (!tensor.is_contiguous()) {
    checks.fault({name}, "be contiguous", "strides " + list(tensor.strides()));
  }
}

// Returns the number of units.
int64_t check(const Checks& checks, const Tensor& known, const Tensor& moments, int64_t fields,
              ScalarType type, const MaybeTensor& field_of_unit, const Loss& loss,
              double horizon) {
  const int64_t units = field_of_unit ? field_of_unit->numel() : fields;
  if (field_of_unit) {
    check_places(checks, "field_of_unit", *field_of_unit, units, fields, "fields");
  }
  checks.dtype({"known"}, known, type, " like x");
  checks.shape({"known"}, known, Shape{kSums, units}, ", one column per unit");
  checks.dtype({"moments"}, moments, type, " like x");
  checks.shape({"moments"}, moments, Shape{3, units}, ", one column per unit");
  check_contiguous(checks, "known", known);
  if (!(horizon >= 1)) checks.fault({"horizon"}, "be at least 1", horizon);
  if (!(loss.scale > 0 && std::isfinite(loss.scale))) {
    checks.fault({"loss_scale"}, "be positive and finite", loss.scale);
  }
  if (!(loss.per_row > 0 && std::isfinite(loss.per_row))) {
    checks.fault({"per_row"}, "be positive and finite", loss.per_row);
  }
  return units;
}

// The moments of a step, as they lie in a tensor.
template <class T>
struct Left {
  const T* data;
  int64_t of_sum, of_unit;

  explicit Left(const Tensor& moments)
      : data(static_cast<const T*>(moments.const_data_ptr())),
        of_sum(moments.strides()[0]),
        of_unit(moments.strides()[1]) {}

  T operator()(int64_t k, int64_t u) const { return data[k * of_sum + u * of_unit]; }
};

// The same as if those that yield to their stand-ins had gone.
template <class T>
struct StoodIn {
  Left<T> left;
  const Tensors& stand_ins;

  T operator()(int64_t k, int64_t u) const {
    const T grown = at<T>(stand_ins[3], u);
    if (k == 0) {
      const int64_t by = at<int64_t>(stand_ins[0], u);
      return grown * (left(0, u) - at<T>(stand_ins[1], u) * left(0, by));
    }
    return k == 1 ? grown * grown * at<T>(stand_ins[2], u) * left(1, u) : left(2, u);
  }
};

template <class T, class OfUnit>
Tensor take(const Tensor& known_tensor, const OfUnit& of_unit, const std::vector<GateValue>& gates,
            const MaybeTensor& field_of_unit, const Loss& loss, T keep) {
  const int64_t units = known_tensor.sizes()[1];
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
  constexpr Checks kChecks{"removal_costs_"};
  const Loss loss{mean, loss_scale, per_row};
  check_floats(kChecks, x);
  check(kChecks, known, moments, x.numel(), x.scalar_type(), field_of_unit, loss, horizon);
  const GateArguments gates{x, epsilon, scale, ungated, kind, alpha, tau};
  const auto values = gates.evaluate(kChecks, x, x.numel(), "field");
  const double keep = 1 - 1 / horizon;
  return x.scalar_type() == ScalarType::Double
             ? take<double>(known, Left<double>(moments), values, field_of_unit, loss, keep)
             : take<float>(known, Left<float>(moments), values, field_of_unit, loss,
                           static_cast<float>(keep));
}

// How gates move: by what their removal costs, and within which bounds.
struct Rule {
  double largest_move, amplification, least, most;
};

// std::clamp is undefined between bounds that are not in order.
void check_rule(const Checks& checks, const Rule& rule) {
  if (!(rule.largest_move > 0)) checks.fault({"largest_move"}, "be positive", rule.largest_move);
  if (!(rule.amplification >= 0 && std::isfinite(rule.amplification))) {
    checks.fault({"amplification"}, "be at least 0 and finite", rule.amplification);
  }
  if (!(rule.least > 0 && rule.least <= rule.most)) {
    checks.fault({"bounds"}, "be positive and in order",
                 text("(", rule.least, ", ", rule.most, ")"));
  }
}

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// x[gate_of_field], or x itself.
template <class T>
Tensor of_fields(const Tensor& x, const MaybeTensor& gate_of_field) {
  if (!gate_of_field) return x;
  Tensor found = empty(Shape{gate_of_field->numel()}, x.scalar_type());
  for (int64_t i = 0; i < found.numel(); ++i) {
    data<T>(found)[i] = data<T>(x)[at<int64_t>(*gate_of_field, i)];
  }
  return found;
}

// Of the gates among the units, the first ones: what moves x. x itself forgets, without a rate.
template <class T>
Tensor pull(const Tensor& found, const Tensor& alone, Tensor& x_tensor, const MaybeTensor& prices,
            const MaybeTensor& rate, double horizon, const Rule& rule) {
  const int64_t gates = x_tensor.numel(), units = found.sizes()[1];
  Tensor result = empty(Shape{gates}, x_tensor.scalar_type());
  T *const pulls = data<T>(result), *const x = data<T>(x_tensor);
  const T *const costs = data<T>(found), *const recent = data<T>(alone) + units;
  const auto price = [&](int64_t i) { return prices ? at<T>(*prices, i) : T(1); };
  if (rate) {
    const T step = *data<T>(*rate), largest = T(rule.largest_move);
    for (int64_t i = 0; i < gates; ++i) {
      const T move = std::clamp(step * (costs[units + i] - price(i)), -largest, largest);
      pulls[i] = -(std::min(move, 1 - x[i]) / step);
    }
    return result;
  }
  double squares = 0;
  for (int64_t i = 0; i < gates; ++i) {
    const double each = recent[i] / price(i);
    squares += each * each;
  }
  const T size = std::max(T(std::sqrt(squares / static_cast<double>(gates))), T(1e-12));
  const T keep = T(1 - 1 / horizon);
  for (int64_t i = 0; i < gates; ++i) {
    pulls[i] = -(costs[i] / price(i) / size);
    x[i] *= keep;
  }
  return result;
}

template <class T>
void amplify(const Tensor& newton, const Tensor& x, Tensor& amplitude_tensor, Tensor& scale,
             const Tensor& unamplified, const MaybeTensor& gate_of_field,
             const MaybeTensor& ungated, const Rule& rule) {
  const T* const steps = data<T>(newton) + 2 * newton.sizes()[1];
  T* const amplitude = data<T>(amplitude_tensor);
  for (int64_t i = 0; i < x.numel(); ++i) {
    const T rate = data<T>(x)[i] > 0 ? T(rule.amplification) : T(0);
    const T larger = amplitude[i] * std::exp(rate * steps[i]);
    amplitude[i] = std::clamp(larger, T(rule.least), T(rule.most));
  }
  for (int64_t f = 0; f < scale.numel(); ++f) {
    const bool stays = ungated && at<bool>(*ungated, f);
    const int64_t gate = gate_of_field ? at<int64_t>(*gate_of_field, f) : f;
    data<T>(scale)[f] = stays ? T(1) : at<T>(unamplified, f) * amplitude[gate];
  }
}

std::tuple<Tensor, Tensor, Tensor> removal_pull_(
    Tensor known, const MaybeTensor& alone, const Tensor& moments, Tensor x, Tensor amplitude,
    Tensor scale, const Tensor& unamplified, const Tensor& epsilon, const MaybeTensor& ungated,
    const MaybeTensor& gate_of_field, const MaybeTensor& field_of_unit, const Tensors& stand_ins,
    const MaybeTensor& prices, const MaybeTensor& rate, double horizon, bool mean,
    double loss_scale, double per_row, double largest_move, double amplification, double least,
    double most, int64_t kind, double alpha, double tau) {
  constexpr Checks kChecks{"removal_pull_"};
  check_floats(kChecks, x);
  const ScalarType type = x.scalar_type();
  const int64_t gates = x.numel(), fields = gate_of_field ? gate_of_field->numel() : gates;
  if (gate_of_field) {
    check_places(kChecks, "gate_of_field", *gate_of_field, fields, gates, "gates");
  }
  const Loss loss{mean, loss_scale, per_row};
  const Rule rule{largest_move, amplification, least, most};
  const int64_t units =
      check(kChecks, known, moments, fields, type, field_of_unit, loss, horizon);
  check_rule(kChecks, rule);
  if (units < gates) kChecks.fault({"field_of_unit"}, text("begin with ", gates, " gates"), units);
  if (alone.has_value() == stand_ins.empty()) {
    kChecks.fault({"alone"}, "be given with stand-ins, and not without",
                  alone ? "a tensor" : "none");
  }
  if (alone) {
    kChecks.dtype({"alone"}, *alone, type, " like x");
    kChecks.shape({"alone"}, *alone, Shape{kSums, units}, " like known");
    check_contiguous(kChecks, "alone", *alone);
    if (stand_ins.size() != 4) {
      kChecks.fault({"stand_ins"}, "hold 4 tensors", stand_ins.size());
    }
    check_places(kChecks, "stand_ins[0]", stand_ins[0], units, units, "units");
    for (int64_t i = 1; i < 4; ++i) {
      kChecks.dtype({"stand_ins", i}, stand_ins[i], type, " like x");
      kChecks.shape({"stand_ins", i}, stand_ins[i], Shape{units}, ", one element per unit");
    }
  }
  const auto check_vector = [&](const char* name, const Tensor& tensor, int64_t size) {
    kChecks.dtype({name}, tensor, type, " like x");
    kChecks.shape({name}, tensor, Shape{size});
  };
  check_vector("amplitude", amplitude, gates);
  check_vector("scale", scale, fields);
  check_vector("unamplified", unamplified, fields);
  if (prices) check_vector("prices", *prices, gates);
  if (rate) {
    kChecks.dtype({"rate"}, *rate, type, " like x");
    kChecks.shape({"rate"}, *rate, Shape{});
    const double value = type == ScalarType::Double ? at<double>(*rate, 0) : at<float>(*rate, 0);
    if (!(value > 0 && std::isfinite(value))) {
      kChecks.fault({"rate"}, "be positive and finite", value);
    }
  }
  const Tensors changed{x, amplitude, scale};
  check_targets(kChecks, {{"x, amplitude, scale", &changed}});

  const auto with = [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using T = decltype(zero);
    const Tensor own = of_fields<T>(x, gate_of_field);
    const MaybeTensor scales = scale;
    const GateArguments arguments{own, epsilon, scales, ungated, kind, alpha, tau};
    const auto values = arguments.evaluate(kChecks, own, fields, "field");
    const Left<T> left(moments);
    const T keep = T(1 - 1 / horizon);
    const Tensor apart =
        take<T>(alone ? *alone : known, left, values, field_of_unit, loss, keep);
    Tensor found = apart;
    if (alone) {
      found = take<T>(known, StoodIn<T>{left, stand_ins}, values, field_of_unit, loss, keep);
    } else {
      // A result of its own, as the fake says.
      found = empty(apart.sizes(), type);
      std::copy_n(data<T>(apart), apart.numel(), data<T>(found));
    }
    Tensor pulls = pull<T>(found, apart, x, prices, rate, horizon, rule);
    amplify<T>(apart, x, amplitude, scale, unamplified, gate_of_field, ungated, rule);
    return {found, apart, pulls};
  };
  return type == ScalarType::Double ? with(double()) : with(float());
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("removal_costs_", TORCH_BOX(&lpfs::removal_costs_));
  library.impl("removal_pull_", TORCH_BOX(&lpfs::removal_pull_));
}
