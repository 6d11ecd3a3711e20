// What every gated operator takes beside its data: x, ε, scale, ungated, kind, α and τ.
#pragma once

#include <optional>
#include <vector>

#include "gated_concat_loops.h"
#include "launch.h"

namespace lpfs {

using MaybeTensor = std::optional<Tensor>;

// What one gate does to what it multiplies.
struct GateValue {
  double factor, slope;
  bool dead;
  bool learns;  // it has a gradient that depends on the data
};

struct GateArguments {
  const Tensor &x, &epsilon;
  const MaybeTensor &scale, &ungated;
  int64_t kind;
  double alpha, tau;

  // The gates of `embeddings`, a tensor or an element of a list; `each` is what has one. Faults what
  // is wrong with any argument.
  std::vector<GateValue> evaluate(const Checks& checks, const Tensor& embeddings, int64_t count,
                                  const char* each) const;
};

// Faults embeddings that are not of a type that has loops.
Dtype dtype_of(const Checks& checks, const Name& name, const Tensor& embeddings);

// From Σ ∂L/∂y ⊙ e of every gate.
Tensor grad_of_x(const Tensor& x, const std::vector<GateValue>& gates,
                 const std::vector<double>& sums);

}  // namespace lpfs
