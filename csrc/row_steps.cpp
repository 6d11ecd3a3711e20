// lpfs::rows_adagrad_, rows_adam_ and rows_sgd_ on the CPU; lpfs_kernels/reference.py defines them.
//
// The entries of a sparse gradient are sorted by their row, those of one row in their order. Then each
// row is taken once, by one thread: its entries are added up, and it and its state step. So nothing
// depends on how many threads there are.
#include <array>
#include <cmath>
#include <cstring>

#include "gate_arguments.h"
#include "row_steps_loops.h"
#include "step_targets.h"

namespace lpfs {
namespace {

// Below this a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 19;
constexpr int kDigitBits = 11;

struct Sorted {
  std::unique_ptr<Entry[]> entries;
  int64_t count;
};

// Entry after entry, and whether they are in the order of their rows already.
template <class Index>
bool read(const Checks& checks, const Name& name, const Tensor& rows, uint64_t limit,
          Entry* entries) {
  const auto* data = static_cast<const Index*>(rows.const_data_ptr());
  const int64_t count = rows.sizes()[0], stride = rows.strides()[0];
  bool wrong = false, ordered = true;
  uint32_t before = 0;
  for (int64_t e = 0; e < count; ++e) {
    const auto row = static_cast<uint64_t>(static_cast<int64_t>(data[e * stride]));
    wrong |= row >= limit;
    entries[e] = {static_cast<uint32_t>(row), static_cast<uint32_t>(e)};
    ordered &= entries[e].row >= before;
    before = entries[e].row;
  }
  for (int64_t e = 0; wrong && e < count; ++e) {
    const int64_t row = data[e * stride];
    if (static_cast<uint64_t>(row) >= limit) {
      checks.fault(name, text("be at least 0 and below ", limit, ", the rows of its weight"),
                   text(row, " at position ", e));
    }
  }
  return ordered;
}

// By digits from the lowest on, each time in the order so far.
Sorted sort(const Checks& checks, const Name& name, const Tensor& rows, uint64_t limit) {
  const int64_t count = rows.sizes()[0], padded = count + kEntriesAhead;
  Sorted sorted{std::unique_ptr<Entry[]>(new Entry[padded]), count};
  const bool ordered =
      rows.scalar_type() == ScalarType::Long
          ? read<int64_t>(checks, name, rows, limit, sorted.entries.get())
          : read<int32_t>(checks, name, rows, limit, sorted.entries.get());
  std::fill(sorted.entries.get() + count, sorted.entries.get() + padded, Entry{kNoRow, 0});
  if (ordered) return sorted;

  int bits = 1;
  while (bits < 32 && ((limit - 1) >> bits)) ++bits;
  const int passes = (bits + kDigitBits - 1) / kDigitBits, digit = (bits + passes - 1) / passes;
  std::unique_ptr<Entry[]> other(new Entry[padded]);
  std::copy_n(sorted.entries.get() + count, kEntriesAhead, other.get() + count);
  std::array<uint32_t, 1 << kDigitBits> ends;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * digit;
    const uint32_t mask = (1u << digit) - 1;
    const Entry* from = sorted.entries.get();
    std::fill_n(ends.begin(), mask + 1, 0);
    for (int64_t e = 0; e < count; ++e) ++ends[(from[e].row >> shift) & mask];
    uint32_t begin = 0;
    for (uint32_t i = 0; i <= mask; ++i) begin += std::exchange(ends[i], begin);
    for (int64_t e = 0; e < count; ++e) other[ends[(from[e].row >> shift) & mask]++] = from[e];
    sorted.entries.swap(other);
  }
  return sorted;
}

// The arguments that all of them have.
struct Arguments {
  const Checks checks;
  const Tensors &weights, &rows, &grads;
  const Tensor& lr;
  double weight_decay;

  int64_t count() const { return weights.size(); }
  int64_t sparse() const { return rows.size(); }
  bool is_sparse(int64_t i) const { return i < sparse(); }

  ScalarType compute() const {
    return weights[0].scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }

  double rate() const {
    return compute() == ScalarType::Double ? *static_cast<const double*>(lr.const_data_ptr())
                                           : *static_cast<const float*>(lr.const_data_ptr());
  }

  Dtype check() const {
    const Dtype dtype = dtype_of(checks, {"weights", 0}, weights[0]);
    if (sparse() > count()) {
      checks.fault({"rows"}, text("hold at most ", count(), " tensors like weights"), sparse());
    }
    for (int64_t i = 0; i < count(); ++i) {
      const Name name{"weights", i};
      checks.dtype(name, weights[i], weights[0].scalar_type(), " like weights[0]");
      checks.dtype({"grads", i}, grads[i], weights[0].scalar_type(), " like weights[0]");
      if (is_sparse(i)) {
        check_rows(i);
      } else {
        checks.shape({"grads", i}, grads[i], weights[i].sizes(), " like ", name);
        if (!grads[i].is_contiguous()) {
          checks.fault({"grads", i}, "be contiguous", "strides " + list(grads[i].strides()));
        }
      }
    }
    if (sparse() && weight_decay != 0) {
      checks.fault({"weight_decay"}, "be 0 beside rows", weight_decay);
    }
    checks.dtype({"lr"}, lr, compute(), " for ", name_of(weights[0].scalar_type()), " weights");
    checks.shape({"lr"}, lr, Shape{});
    if (!(rate() >= 0 && std::isfinite(rate()))) {
      checks.fault({"lr"}, "be at least 0 and finite", rate());
    }
    return dtype;
  }

  void check_rows(int64_t i) const {
    const auto sizes = weights[i].sizes();
    if (sizes.size() != 2) {
      checks.fault({"weights", i}, "have 2 dimensions beside rows", "shape " + list(sizes));
    }
    if (static_cast<uint64_t>(sizes[0]) > kNoRow) {
      checks.fault({"weights", i}, text("have at most ", kNoRow, " rows"), sizes[0]);
    }
    if (rows[i].scalar_type() != ScalarType::Long && rows[i].scalar_type() != ScalarType::Int) {
      checks.fault({"rows", i}, "be int64 or int32", name_of(rows[i].scalar_type()));
    }
    const auto shape = rows[i].sizes();
    if (shape.size() != 1) {
      checks.fault({"rows", i}, "have 1 dimension", "shape " + list(shape));
    }
    checks.shape({"grads", i}, grads[i], Shape{shape[0], sizes[1]}, ", a row for each of ",
                 Name{"rows", i});
  }

  void check_state(const char* list_name, const Tensors& state, bool rowwise = false) const {
    for (int64_t i = 0; i < count(); ++i) {
      const Name name{list_name, i};
      checks.dtype(name, state[i], compute(), " for ", name_of(weights[i].scalar_type()),
                   " weights");
      if (!(rowwise && is_rowwise(i, state[i]))) {
        checks.shape(name, state[i], weights[i].sizes(), " like ", Name{"weights", i});
      }
    }
  }

  // Whether a state has one number for each row: the weight's shape with ones behind the first.
  bool is_rowwise(int64_t i, const Tensor& state) const {
    const auto own = state.sizes(), sizes = weights[i].sizes();
    if (own.size() != sizes.size() || sizes.size() < 2 || own[0] != sizes[0]) return false;
    return std::all_of(own.begin() + 1, own.end(), [](int64_t size) { return size == 1; }) &&
           own.size() > 1 && weights[i].numel() != state.numel();
  }

  void check_steps(const Tensors& steps) const {
    for (int64_t i = 0; i < count(); ++i) {
      if (steps[i].scalar_type() != ScalarType::Float &&
          steps[i].scalar_type() != ScalarType::Double) {
        checks.fault({"steps", i}, "be float32 or float64", name_of(steps[i].scalar_type()));
      }
      checks.shape({"steps", i}, steps[i], Shape{});
    }
  }

  std::vector<Sorted> sorted() const {
    std::vector<Sorted> all;
    for (int64_t i = 0; i < sparse(); ++i) {
      all.push_back(sort(checks, {"rows", i}, rows[i], weights[i].sizes()[0]));
    }
    return all;
  }
};

// Counts a step, and tells which it is.
double advance(const Tensor& step) {
  void* const data = step.mutable_data_ptr();
  if (step.scalar_type() == ScalarType::Double) return *static_cast<double*>(data) += 1;
  return *static_cast<float*>(data) += 1;
}

// One weight's step, in threads.
void take(const Arguments& arguments, int64_t i, const RowStepLoops& loops,
          const StepNumbers& numbers, void* first, void* second, const Sorted* sorted) {
  const Tensor& weight = arguments.weights[i];
  const Tensor& grad = arguments.grads[i];
  if (weight.numel() == 0) return;
  const auto sizes = weight.sizes();
  const int64_t rows = sizes.size() ? sizes[0] : 1, width = weight.numel() / rows;
  void* const data = weight.mutable_data_ptr();
  const StepTarget target{data, first ? first : data, second ? second : data, width};
  const int64_t bytes = std::max<int64_t>(1, width * weight.element_size());
  const int64_t grain = std::max<int64_t>(1, kGrainBytes / bytes);
  if (!sorted) {
    torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
      loops.dense(numbers, target, grad.const_data_ptr(), begin, end);
    });
    return;
  }
  const auto strides = grad.strides();
  const Rows from{grad.const_data_ptr(), strides[0], strides[1]};
  torch::stable::parallel_for(0, sorted->count, grain, [&](int64_t begin, int64_t end) {
    const Scratch totals(width * static_cast<int64_t>(sizeof(double)));
    loops.rows(numbers, target, from, sorted->entries.get(), begin, end, totals.aligned);
  });
}

void rows_adagrad_(const Tensors& weights, const Tensors& sums, const Tensors& steps,
                   const Tensors& rows, const Tensors& grads, const Tensor& lr, double lr_decay,
                   double eps, double weight_decay, bool maximize) {
  const Checks checks{"rows_adagrad_"};
  check_lengths(checks, "weights", weights,
                {{"sums", &sums}, {"steps", &steps}, {"grads", &grads}});
  const Arguments arguments{checks, weights, rows, grads, lr, weight_decay};
  const Dtype dtype = arguments.check();
  arguments.check_state("sums", sums, true);
  arguments.check_steps(steps);
  check_targets(checks, {{"weights", &weights}, {"sums", &sums}, {"steps", &steps}});
  const std::vector<Sorted> sorted = arguments.sorted();
  for (int64_t i = 0; i < arguments.count(); ++i) {
    StepNumbers numbers{arguments.rate() / (1 + (advance(steps[i]) - 1) * lr_decay), eps,
                        weight_decay};
    numbers.maximize = maximize;
    const Rule rule =
        arguments.is_rowwise(i, sums[i]) ? Rule::rowwise_adagrad : Rule::adagrad;
    take(arguments, i, row_step_loops_for(rule, dtype), numbers, sums[i].mutable_data_ptr(),
         nullptr, arguments.is_sparse(i) ? &sorted[i] : nullptr);
  }
}

void rows_adam_(const Tensors& weights, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                const Tensors& steps, const Tensors& rows, const Tensors& grads, const Tensor& lr,
                double beta1, double beta2, double eps, double weight_decay, bool maximize) {
  const Checks checks{"rows_adam_"};
  check_lengths(checks, "weights", weights,
                {{"exp_avgs", &exp_avgs},
                 {"exp_avg_sqs", &exp_avg_sqs},
                 {"steps", &steps},
                 {"grads", &grads}});
  const Arguments arguments{checks, weights, rows, grads, lr, weight_decay};
  const Dtype dtype = arguments.check();
  arguments.check_state("exp_avgs", exp_avgs);
  arguments.check_state("exp_avg_sqs", exp_avg_sqs);
  arguments.check_steps(steps);
  check_targets(checks, {{"weights", &weights},
                         {"exp_avgs", &exp_avgs},
                         {"exp_avg_sqs", &exp_avg_sqs},
                         {"steps", &steps}});
  const std::vector<Sorted> sorted = arguments.sorted();
  for (int64_t i = 0; i < arguments.count(); ++i) {
    // ε is added to the root before its bias is corrected where the gradient is sparse, after it where
    // it is dense: so PyTorch's two do.
    const double step = advance(steps[i]), whole = std::sqrt(1 - std::pow(beta2, step));
    StepNumbers numbers{arguments.rate() * whole / (1 - std::pow(beta1, step)),
                        arguments.is_sparse(i) ? eps : eps * whole, weight_decay, beta1, beta2};
    numbers.maximize = maximize;
    take(arguments, i, row_step_loops_for(Rule::adam, dtype), numbers,
         exp_avgs[i].mutable_data_ptr(), exp_avg_sqs[i].mutable_data_ptr(),
         arguments.is_sparse(i) ? &sorted[i] : nullptr);
  }
}

void rows_sgd_(const Tensors& weights, const Tensors& momentum_buffers, const Tensors& rows,
               const Tensors& grads, const Tensor& lr, double momentum, double dampening,
               double weight_decay, bool nesterov, bool maximize) {
  const Checks checks{"rows_sgd_"};
  check_lengths(checks, "weights", weights, {{"grads", &grads}});
  const bool moves = momentum != 0;
  if (moves) check_lengths(checks, "weights", weights, {{"momentum_buffers", &momentum_buffers}});
  if (!moves && !momentum_buffers.empty()) {
    checks.fault({"momentum_buffers"}, "hold none without momentum", momentum_buffers.size());
  }
  const Arguments arguments{checks, weights, rows, grads, lr, weight_decay};
  const Dtype dtype = arguments.check();
  if (moves && arguments.sparse()) checks.fault({"momentum"}, "be 0 beside rows", momentum);
  if (moves) arguments.check_state("momentum_buffers", momentum_buffers);
  check_targets(checks, {{"weights", &weights}, {"momentum_buffers", &momentum_buffers}});
  const std::vector<Sorted> sorted = arguments.sorted();
  StepNumbers numbers{arguments.rate(), 0, weight_decay, 0, 0, momentum, dampening};
  numbers.maximize = maximize;
  numbers.nesterov = nesterov;
  const RowStepLoops& loops = row_step_loops_for(moves ? Rule::momentum : Rule::sgd, dtype);
  for (int64_t i = 0; i < arguments.count(); ++i) {
    take(arguments, i, loops, numbers, moves ? momentum_buffers[i].mutable_data_ptr() : nullptr,
         nullptr, arguments.is_sparse(i) ? &sorted[i] : nullptr);
  }
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("rows_adagrad_", TORCH_BOX(&lpfs::rows_adagrad_));
  library.impl("rows_adam_", TORCH_BOX(&lpfs::rows_adam_));
  library.impl("rows_sgd_", TORCH_BOX(&lpfs::rows_sgd_));
}
