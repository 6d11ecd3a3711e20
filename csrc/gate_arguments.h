// What every gated operator takes beside its data: x, ε, scale, ungated, kind, α and τ.
#pragma once

#include <cstring>
#include <optional>
#include <vector>

#include "gated_concat_loops.h"
#include "launch.h"
#include "moments.h"

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

// What is asked for beside the gradients: sums over rows of the row products of every gate, and of
// their squares.
struct MomentArguments {
  const Tensor& moments;
  const std::optional<Shape>& gate_of_field;
  const MaybeTensor &dead_rows, &row_scale;
};

// Whose row products are taken, from which rows, and where they go.
class MomentPlan {
 public:
  // Of `gates`, one for each field; or of pairs, or whatever else has one.
  MomentPlan(const Checks& checks, const MomentArguments& arguments, const Tensor& x,
             const std::vector<GateValue>& gates, int64_t batch, const char* each);

  // The rows from which row products of what is dead are taken: the first ones.
  int64_t dead_rows() const { return dead_rows_; }
  // What the squares of each row count, one after the other, of the type that is computed in; null
  // where each counts once.
  const void* row_scale() const { return row_scale_ ? row_scale_->aligned : nullptr; }
  double row_scale(int64_t row) const;
  int64_t rows_of(int64_t field) const { return rows_[field]; }
  int64_t gate_of(int64_t field) const { return gate_of_[field]; }
  int64_t gates() const { return gates_; }

  // `parts` are the fields, or pieces of them, whose row products are not whole; they lie in rows of
  // `batch` products each. Adds what comes of their sums to `moments`, one per gate.
  void add_parts(const std::vector<int64_t>& field_of_part, const char* products,
                 std::vector<Moments>& moments) const;

  // Those fields whose gate has others too leave their row products for later: the number of each
  // among them, or −1.
  std::vector<int64_t> parts() const;

  // Where those of each field go that are left in `memory`, rows of `batch` products of `bytes` each;
  // empty where none are.
  std::vector<void*> places(const std::vector<int64_t>& parts, char* memory, int64_t bytes) const;

  // The same of parts that are whole fields, beside the moments of `blocks` blocks, a row each, of all.
  Tensor collect(const Moments* moments, int64_t blocks, const std::vector<int64_t>& parts,
                 const char* products) const;

  // [3, G]: sums, sums of squares, rows.
  Tensor result(const std::vector<Moments>& moments) const;

 private:
  int64_t batch_, gates_, dead_rows_;
  ScalarType type_;
  std::optional<Scratch> row_scale_;
  std::vector<int64_t> gate_of_, rows_;
};

// What the row products of a block's rows add up to, for each gate: apart, those of the rows in which
// dead gates are watched.
class BlockSums {
 public:
  // No vector is longer; one may begin at any gate.
  static constexpr int64_t kWhole = 16;

  // Without a plan nothing is watched. Some gates' products are wanted themselves, see MomentPlan.
  BlockSums(const MomentPlan* plan, const std::vector<void*>& products, int64_t gates,
            int64_t bytes);

  // Where those of `row` and of what follows it on its side of the plan's `dead_rows` go.
  RowSums from(int64_t row) const;

  // Adds up, and begins anew: Σ over all rows for the gradients, and moments where there is a plan.
  void finish(const std::vector<GateValue>& gates, double* sums, Moments* moments);

 private:
  double at(const Scratch& scratch, int64_t i) const;
  bool watches(int64_t row) const { return plan_ && row < plan_->dead_rows(); }
  void clear();

  const MomentPlan* plan_;
  void* const* products_;
  const int64_t bytes_, padded_;
  Scratch watched_, others_;
};

// Faults embeddings that are not of a type that has loops.
Dtype dtype_of(const Checks& checks, const Name& name, const Tensor& embeddings);

// From Σ ∂L/∂y ⊙ e of every gate.
Tensor grad_of_x(const Tensor& x, const std::vector<GateValue>& gates,
                 const std::vector<double>& sums);

}  // namespace lpfs
