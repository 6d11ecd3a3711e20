#include "gate_arguments.h"

#include <cmath>

#include "gates.h"

namespace lpfs {
namespace {

template <class T>
T at(const Tensor& vector, int64_t i) {
  return static_cast<const T*>(vector.const_data_ptr())[i * vector.strides()[0]];
}

template <class T>
std::vector<GateValue> values_of(const Checks& checks, const GateArguments& call, int64_t count) {
  const Gate<T> gate{static_cast<Kind>(call.kind),
                     *static_cast<const T*>(call.epsilon.const_data_ptr()), T(call.alpha),
                     T(call.tau)};
  if (!(gate.epsilon > 0 && std::isfinite(gate.epsilon))) {
    checks.fault({"epsilon"}, "be positive and finite", gate.epsilon);
  }
  std::vector<GateValue> values(count);
  for (int64_t i = 0; i < count; ++i) {
    const T xi = at<T>(call.x, i);
    if (std::isnan(xi)) checks.fault({"x"}, "not be NaN", text("nan at position ", i));
    const T si = call.scale ? at<T>(*call.scale, i) : T(1);
    GateValue& own = values[i];
    const bool gated = !(call.ungated && at<bool>(*call.ungated, i));
    own.dead = gated && xi == 0;
    own.learns = gated && (!own.dead || gate.revives());
    own.factor = gated ? gate.value(xi) * si : si;
    own.slope = own.learns ? gate.derivative(xi) * si : 0;
  }
  return values;
}

template <class T>
void fill(const std::vector<GateValue>& gates, const std::vector<double>& sums, Tensor& grad_x) {
  auto* data = static_cast<T*>(grad_x.mutable_data_ptr());
  for (size_t i = 0; i < gates.size(); ++i) {
    data[i] = gates[i].learns ? static_cast<T>(gates[i].slope * sums[i]) : 0;
  }
}

}  // namespace

std::vector<GateValue> GateArguments::evaluate(const Checks& checks, const Tensor& embeddings,
                                               int64_t count, const char* each) const {
  if (kind < 0 || kind >= kKinds) {
    checks.fault({"kind"}, text("be an index from 0 to ", kKinds - 1), kind);
  }
  if (!(alpha >= 0)) checks.fault({"alpha"}, "be at least 0", alpha);
  if (!(tau > 0)) checks.fault({"tau"}, "be positive", tau);
  const Shape shape{count};
  const ScalarType of = embeddings.scalar_type();
  const ScalarType type = of == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  checks.dtype({"x"}, x, type, " for ", name_of(of), " embeddings");
  checks.shape({"x"}, x, shape, ", one element per ", each);
  checks.dtype({"epsilon"}, epsilon, type, " like x");
  checks.shape({"epsilon"}, epsilon, Shape{});
  if (scale) {
    checks.dtype({"scale"}, *scale, type, " like x");
    checks.shape({"scale"}, *scale, shape, " like x");
  }
  if (ungated) {
    checks.dtype({"ungated"}, *ungated, ScalarType::Bool);
    checks.shape({"ungated"}, *ungated, shape, " like x");
  }
  return type == ScalarType::Double ? values_of<double>(checks, *this, count)
                                    : values_of<float>(checks, *this, count);
}

Dtype dtype_of(const Checks& checks, const Name& name, const Tensor& embeddings) {
  switch (embeddings.scalar_type()) {
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Half: return Dtype::float16;
    case ScalarType::BFloat16: return Dtype::bfloat16;
    default:
      checks.fault(name, "be float64, float32, float16 or bfloat16",
                   name_of(embeddings.scalar_type()));
  }
}

Tensor grad_of_x(const Tensor& x, const std::vector<GateValue>& gates,
                 const std::vector<double>& sums) {
  Tensor grad_x = empty(x.sizes(), x.scalar_type());
  (x.scalar_type() == ScalarType::Double ? fill<double> : fill<float>)(gates, sums, grad_x);
  return grad_x;
}

}  // namespace lpfs
