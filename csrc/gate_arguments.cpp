#include "gate_arguments.h"

#include <cmath>

#include "gates.h"

namespace lpfs {
namespace {

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

// Of what every row counts.
template <class T>
Scratch copy_of(const Checks& checks, const Tensor& row_scale) {
  const int64_t rows = row_scale.sizes()[0];
  Scratch copy(rows * sizeof(T));
  auto* const data = reinterpret_cast<T*>(copy.aligned);
  for (int64_t r = 0; r < rows; ++r) {
    data[r] = at<T>(row_scale, r);
    if (!(data[r] >= 0 && std::isfinite(data[r]))) {
      checks.fault({"row_scale"}, "be finite and at least 0", text(data[r], " at position ", r));
    }
  }
  return copy;
}

template <class T>
void fill(const std::vector<GateValue>& gates, const std::vector<double>& sums, Tensor& grad_x) {
  auto* data = static_cast<T*>(grad_x.mutable_data_ptr());
  for (size_t i = 0; i < gates.size(); ++i) {
    data[i] = gates[i].learns ? static_cast<T>(gates[i].slope * sums[i]) : 0;
  }
}

template <class C>
void add_parts_of(const std::vector<std::vector<int64_t>>& parts_of_gate,
                         const std::vector<int64_t>& rows_of_part, const C* products,
                         const C* row_scale, int64_t batch, std::vector<Moments>& moments) {
  constexpr int64_t kBlockRows = 256;
  torch::stable::parallel_for(0, parts_of_gate.size(), 1, [&](int64_t first, int64_t end) {
    for (int64_t gate = first; gate < end; ++gate) {
      if (parts_of_gate[gate].empty()) continue;
      Moments total;
      for (int64_t row = 0; row < batch; row += kBlockRows) {
        C sums[kBlockRows]{};
        for (const int64_t part : parts_of_gate[gate]) {
          const C* const own = products + part * batch + row;
          const int64_t count = std::min(kBlockRows, rows_of_part[part] - row);
          for (int64_t r = 0; r < count; ++r) sums[r] += own[r];
        }
        const int64_t rows = std::min(kBlockRows, batch - row);
        for (int64_t r = 0; r < rows; ++r) {
          const double sum = sums[r], scale = row_scale ? row_scale[row + r] : 1;
          total += {sum, sum * sum * scale};
        }
      }
      moments[gate] += total;
    }
  });
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

MomentPlan::MomentPlan(const Checks& checks, const MomentArguments& arguments, const Tensor& x,
                       const std::vector<GateValue>& gates, int64_t batch, const char* each)
    : batch_(batch), dead_rows_(batch), type_(x.scalar_type()) {
  const auto& [moments, gate_of_field, dead_rows, row_scale] = arguments;
  const int64_t fields = gates.size();
  checks.dtype({"moments"}, moments, type_, " like x");
  const auto sizes = moments.sizes();
  const bool own = !gate_of_field.has_value();
  if (sizes.size() != 2 || sizes[0] != 3 || (own && sizes[1] != fields)) {
    checks.fault({"moments"},
                 own ? text("have shape ", list(Shape{3, fields}), ", one column per ", each)
                     : std::string("have shape [3, G]"),
                 list(sizes));
  }
  gates_ = sizes[1];
  if (own) {
    for (int64_t i = 0; i < fields; ++i) gate_of_.push_back(i);
  } else {
    gate_of_ = *gate_of_field;
    if (static_cast<int64_t>(gate_of_.size()) != fields) {
      checks.fault({"gate_of_field"}, text("hold ", fields, " numbers like x"), gate_of_.size());
    }
    for (int64_t i = 0; i < fields; ++i) {
      if (gate_of_[i] < 0 || gate_of_[i] >= gates_) {
        checks.fault({"gate_of_field", i}, text("name one of the ", gates_, " columns of moments"),
                     gate_of_[i]);
      }
    }
  }
  if (dead_rows) {
    checks.dtype({"dead_rows"}, *dead_rows, ScalarType::Long);
    checks.shape({"dead_rows"}, *dead_rows, Shape{});
    const int64_t rows = *static_cast<const int64_t*>(dead_rows->const_data_ptr());
    if (rows < 0) checks.fault({"dead_rows"}, "be at least 0", rows);
    dead_rows_ = std::min(rows, batch);
  }
  if (row_scale) {
    checks.dtype({"row_scale"}, *row_scale, type_, " like x");
    checks.shape({"row_scale"}, *row_scale, Shape{batch}, ", one element per row");
    row_scale_ = type_ == ScalarType::Double ? copy_of<double>(checks, *row_scale)
                                             : copy_of<float>(checks, *row_scale);
  }
  for (const GateValue& gate : gates) rows_.push_back(gate.dead ? dead_rows_ : batch);
}

double MomentPlan::row_scale(int64_t row) const {
  if (!row_scale_) return 1;
  return type_ == ScalarType::Double ? static_cast<const double*>(row_scale())[row]
                                     : static_cast<const float*>(row_scale())[row];
}

void MomentPlan::add_parts(const std::vector<int64_t>& field_of_part, const char* products,
                           std::vector<Moments>& moments) const {
  std::vector<std::vector<int64_t>> parts_of_gate(gates_);
  std::vector<int64_t> rows_of_part;
  for (size_t part = 0; part < field_of_part.size(); ++part) {
    parts_of_gate[gate_of(field_of_part[part])].push_back(part);
    rows_of_part.push_back(rows_of(field_of_part[part]));
  }
  if (type_ == ScalarType::Double) {
    add_parts_of(parts_of_gate, rows_of_part, reinterpret_cast<const double*>(products),
                 static_cast<const double*>(row_scale()), batch_, moments);
  } else {
    add_parts_of(parts_of_gate, rows_of_part, reinterpret_cast<const float*>(products),
                 static_cast<const float*>(row_scale()), batch_, moments);
  }
}

Tensor MomentPlan::collect(const Moments* moments, int64_t blocks, const std::vector<int64_t>& parts,
                           const char* products) const {
  const int64_t fields = gate_of_.size();
  std::vector<int64_t> field_of_part;
  std::vector<Moments> of_gates(gates_);
  for (int64_t i = 0; i < fields; ++i) {
    if (parts[i] >= 0) field_of_part.push_back(i);
  }
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < fields; ++i) {
      if (parts[i] < 0) of_gates[gate_of_[i]] += moments[block * fields + i];
    }
  }
  add_parts(field_of_part, products, of_gates);
  return result(of_gates);
}

Tensor MomentPlan::result(const std::vector<Moments>& moments) const {
  Tensor result = empty(Shape{3, gates_}, type_);
  std::vector<int64_t> rows(gates_);
  for (size_t i = 0; i < gate_of_.size(); ++i) {
    rows[gate_of_[i]] = std::max(rows[gate_of_[i]], rows_[i]);
  }
  const auto write = [&](auto* data) {
    for (int64_t gate = 0; gate < gates_; ++gate) {
      data[gate] = moments[gate].sum;
      data[gates_ + gate] = moments[gate].square;
      data[2 * gates_ + gate] = rows[gate];
    }
  };
  if (type_ == ScalarType::Double) {
    write(static_cast<double*>(result.mutable_data_ptr()));
  } else {
    write(static_cast<float*>(result.mutable_data_ptr()));
  }
  return result;
}

std::vector<int64_t> MomentPlan::parts() const {
  std::vector<int64_t> fields(gates_), parts;
  for (const int64_t gate : gate_of_) ++fields[gate];
  int64_t next = 0;
  for (const int64_t gate : gate_of_) parts.push_back(fields[gate] > 1 ? next++ : -1);
  return parts;
}

std::vector<void*> MomentPlan::places(const std::vector<int64_t>& parts, char* memory,
                                      int64_t bytes) const {
  std::vector<void*> places;
  if (std::all_of(parts.begin(), parts.end(), [](int64_t part) { return part < 0; })) return places;
  for (const int64_t part : parts) {
    places.push_back(part < 0 ? nullptr : memory + part * batch_ * bytes);
  }
  return places;
}

BlockSums::BlockSums(const MomentPlan* plan, const std::vector<void*>& products, int64_t gates,
                     int64_t bytes)
    : plan_(plan),
      products_(products.empty() ? nullptr : products.data()),
      bytes_(bytes),
      padded_((gates / kWhole + 2) * kWhole),
      watched_(2 * padded_ * bytes),
      others_(2 * padded_ * bytes) {
  clear();
}

RowSums BlockSums::from(int64_t row) const {
  char* const sums = (watches(row) ? watched_ : others_).aligned;
  return {row, plan_ ? plan_->row_scale() : nullptr, products_, sums, sums + padded_ * bytes_};
}

double BlockSums::at(const Scratch& scratch, int64_t i) const {
  return bytes_ == 8 ? reinterpret_cast<const double*>(scratch.aligned)[i]
                     : reinterpret_cast<const float*>(scratch.aligned)[i];
}

void BlockSums::finish(const std::vector<GateValue>& gates, double* sums, Moments* moments) {
  for (int64_t i = 0; i < static_cast<int64_t>(gates.size()); ++i) {
    sums[i] = at(watched_, i) + at(others_, i);
    if (!plan_) continue;
    moments[i] = {at(watched_, i), at(watched_, padded_ + i)};
    if (!gates[i].dead) moments[i] += {at(others_, i), at(others_, padded_ + i)};
  }
  clear();
}

void BlockSums::clear() {
  for (const Scratch* scratch : {&watched_, &others_}) {
    std::memset(scratch->aligned, 0, 2 * padded_ * bytes_);
  }
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
