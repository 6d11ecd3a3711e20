// lpfs::gated_cross_concat on the CPU; lpfs_kernels/reference.py is its definition.
//
// Row by row: the fields of a row and their gradients stay in the nearest cache while the terms, some
// ten times as large, pass by once.
#include <cstring>
#include <memory>
#include <tuple>

#include "gate_arguments.h"
#include "gated_cross_loops.h"
#include "launch.h"

namespace lpfs {
namespace {

// What is assembled in the cache before it is written past it.
constexpr int64_t kBufferBytes = 1 << 14;
// What a thread takes at a time. What one partial sum of backward covers depends on the shapes alone,
// so the sums do not depend on the threads.
constexpr int64_t kBlockRows = 128;
// A lane adds up no more of these than a sum of gated_concat does.
constexpr int64_t kBlockElements = 16'384;
// Below this a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 18;
// From here on a gradient comes from memory, where the processor does not fetch far enough ahead by
// itself; in the cache, fetching costs more than it gives.
constexpr int64_t kFetchedBytes = 1 << 25;
constexpr int64_t kAheadBytes = 2048;
// A smaller output may still be in the cache when it is read next.
constexpr int64_t kStreamedBytes = 1 << 23;

struct Call {
  ScalarType type;
  Dtype dtype;
  int64_t item_bytes, batch, width;
  std::vector<GateValue> gates;
  std::vector<CrossField> fields;
  std::vector<Term> terms;

  int64_t columns() const { return static_cast<int64_t>(terms.size()) * width; }
};

// Faults the first pair that is like an earlier one.
void check_distinct(const Checks& checks, const std::vector<Term>& terms) {
  using Key = std::pair<int64_t, int64_t>;
  const auto key = [&](const Term& term) -> Key {
    return std::minmax(term.first, term.second);
  };
  bool increasing = true;
  for (size_t m = 1; m < terms.size() && increasing; ++m) {
    increasing = key(terms[m - 1]) < key(terms[m]);
  }
  if (increasing) return;
  std::vector<std::pair<Key, int64_t>> sorted;
  sorted.reserve(terms.size());
  for (size_t m = 0; m < terms.size(); ++m) sorted.emplace_back(key(terms[m]), m);
  std::sort(sorted.begin(), sorted.end());
  int64_t again = -1, before = -1;
  for (size_t k = 1; k < sorted.size(); ++k) {
    if (sorted[k].first == sorted[k - 1].first && (again < 0 || sorted[k].second < again)) {
      again = sorted[k].second, before = sorted[k - 1].second;
    }
  }
  if (again < 0) return;
  const auto pair = [&](int64_t m) { return list(Shape{terms[m].first, terms[m].second}); };
  checks.fault({"pairs"}, text("differ from each other"),
               text(pair(again), " at position ", again, " after ", pair(before), " at position ",
                    before));
}

// What fields and terms do; what is `watched` has a product in every row, whether it learns or not.
void resolve(Call& call, bool before, const std::vector<bool>& watched) {
  const auto learns = [&](int64_t i) { return call.gates[i].learns || watched[i]; };
  if (before) {
    for (size_t i = 0; i < call.fields.size(); ++i) {
      call.fields[i] = {call.gates[i].factor, call.gates[i].dead, learns(i)};
    }
  }
  for (size_t m = 0; m < call.terms.size(); ++m) {
    Term& term = call.terms[m];
    if (before) {
      const auto alive = [&](int64_t i) { return i < 0 || !call.fields[i].dead; };
      // A dead field that learns sees the living ones beside it.
      const auto wants = [&](int64_t i) { return i >= 0 && (alive(i) || call.fields[i].learns); };
      term.alive = alive(term.first) && alive(term.second);
      term.to_first = wants(term.first) && alive(term.second);
      term.to_second = wants(term.second) && alive(term.first);
    } else {
      const GateValue& gate = call.gates[m];
      term.factor = gate.factor;
      term.alive = term.to_first = term.to_second = !gate.dead;
      term.learns = learns(m);
    }
  }
}

Call check(const Checks& checks, const Tensor* grad, const Tensor& embeddings, const Tensor& pairs,
           bool before, const GateArguments& gates) {
  Call call;
  call.type = embeddings.scalar_type();
  call.dtype = dtype_of(checks, {"embeddings"}, embeddings);
  call.item_bytes = embeddings.element_size();
  const auto sizes = embeddings.sizes();
  if (sizes.size() != 3) {
    checks.fault({"embeddings"}, "have 3 dimensions", "shape " + list(sizes));
  }
  call.batch = sizes[0], call.width = sizes[2];
  const int64_t fields = sizes[1];

  checks.dtype({"pairs"}, pairs, ScalarType::Long);
  const auto pair_sizes = pairs.sizes();
  if (pair_sizes.size() != 2 || pair_sizes[1] != 2) {
    checks.fault({"pairs"}, "have shape [P, 2]", list(pair_sizes));
  }
  const int64_t count = pair_sizes[0];
  const auto* pair = static_cast<const int64_t*>(pairs.const_data_ptr());
  const auto strides = pairs.strides();
  call.terms.reserve(count);
  for (int64_t m = 0; m < count; ++m, pair += strides[0]) {
    const int64_t first = pair[0], second = pair[strides[1]];
    if (first < 0 || first >= fields || second < -1 || second >= fields) {
      checks.fault({"pairs"}, text("name two of the ", fields, " fields, or one and -1"),
                   text(list(Shape{first, second}), " at position ", m));
    }
    call.terms.push_back({first, second, 1, true, true, true, false});
  }
  if (!grad) check_distinct(checks, call.terms);

  call.gates = gates.evaluate(checks, embeddings, before ? fields : count,
                              before ? "field" : "pair");
  if (grad) {
    checks.dtype({"grad"}, *grad, call.type, " like embeddings");
    checks.shape({"grad"}, *grad, Shape{call.batch, call.columns()}, " like the output");
  }
  call.fields.assign(fields, {1, false, false});
  resolve(call, before, std::vector<bool>(call.gates.size()));
  return call;
}

int64_t padded(int64_t items) { return (items + 15) / 16 * 16; }

int64_t compute_bytes(const Call& call) { return call.dtype == Dtype::float64 ? 8 : 4; }

// body(block, first_row, end_row), in threads.
template <class Body>
void for_each_block(const Call& call, int64_t rows, const Body& body) {
  const int64_t blocks = (call.batch + rows - 1) / rows;
  const int64_t bytes = std::max<int64_t>(1, call.batch * call.columns() * call.item_bytes);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes * blocks / bytes);
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t first, int64_t end) {
    body(first, end, [&](int64_t block) {
      return std::pair(block * rows, std::min((block + 1) * rows, call.batch));
    });
  });
}

const char* row_of(const Tensor& tensor, int64_t row, int64_t item_bytes) {
  const auto* data = static_cast<const char*>(tensor.const_data_ptr());
  return data + row * tensor.strides()[0] * item_bytes;
}

Tensor gated_cross_concat(const Tensor& embeddings, const Tensor& pairs, const Tensor& x,
                          const Tensor& epsilon, const MaybeTensor& scale,
                          const MaybeTensor& ungated, bool before, int64_t kind, double alpha,
                          double tau) {
  const Call call = check({"gated_cross_concat"}, nullptr, embeddings, pairs, before,
                          {x, epsilon, scale, ungated, kind, alpha, tau});
  const int64_t columns = call.columns(), item = call.item_bytes;
  Tensor output = empty(Shape{call.batch, columns}, call.type);
  if (call.batch * columns == 0) return output;
  auto* const data = static_cast<char*>(output.mutable_data_ptr());
  const CrossLoops& loops = cross_loops_for(call.dtype);
  const bool streamed = call.batch * columns * item >= kStreamedBytes;
  const int64_t count = call.terms.size(), fields = call.fields.size();
  const int64_t stride = padded(call.width), term_bytes = call.width * item;
  const int64_t at_once = streamed ? std::max<int64_t>(1, kBufferBytes / term_bytes) : count;
  const auto strides = embeddings.strides();
  for_each_block(call, kBlockRows, [&](int64_t first, int64_t end, const auto& rows_of) {
    const Scratch values(fields * stride * compute_bytes(call));
    const Scratch buffer(streamed ? at_once * term_bytes : 0);
    const auto [row, end_row] = std::pair(rows_of(first).first, rows_of(end - 1).second);
    for (int64_t r = row; r < end_row; ++r) {
      loops.gather(row_of(embeddings, r, item), strides[1], strides[2], call.fields.data(), fields,
                   call.width, stride, values.aligned);
      char* target = data + r * columns * item;
      for (int64_t m = 0; m < count; m += at_once) {
        const int64_t now = std::min(at_once, count - m);
        loops.forward(&call.terms[m], now, values.aligned, call.width, stride,
                      streamed ? buffer.aligned : target);
        if (streamed) stream(target, buffer.aligned, now * term_bytes);
        target += now * term_bytes;
      }
    }
    fence();
  });
  return output;
}

// Of adjacent columns: a row of `grad` itself, or a copy.
const char* adjacent(const Tensor& grad, int64_t row, int64_t columns, int64_t item, char* buffer) {
  const char* source = row_of(grad, row, item);
  const int64_t step = grad.strides()[1] * item;
  if (step == item) return source;
  for (int64_t j = 0; j < columns; ++j) std::memcpy(buffer + j * item, source + j * step, item);
  return buffer;
}

// From where on each row's terms say what the gradient that lies ahead will be read for.
void mark_fetches(Call& call, int64_t ahead) {
  const int64_t count = call.terms.size();
  for (int64_t m = 0; m < count; ++m) {
    call.terms[m].fetches = call.terms[(m + ahead) % count].is_read();
  }
}

struct Gradients {
  Tensor embeddings, x;
  std::optional<Tensor> moments;
};

Gradients backward(const Checks& checks, const Tensor& grad, const Tensor& embeddings,
                   const Tensor& pairs, bool before, const GateArguments& arguments,
                   const MomentArguments* moment_arguments) {
  Call call = check(checks, &grad, embeddings, pairs, before, arguments);
  const int64_t columns = call.columns(), item = call.item_bytes;
  const int64_t count = call.terms.size(), fields = call.fields.size();
  const int64_t gates = call.gates.size(), stride = padded(call.width);
  std::optional<MomentPlan> plan;
  // The call as the rows have it in which dead gates are watched; and as the others have it.
  Call sampled = call;
  std::vector<int64_t> parts, field_of_part;
  if (moment_arguments) {
    plan.emplace(checks, *moment_arguments, arguments.x, call.gates, call.batch,
                 before ? "field" : "pair");
    std::vector<bool> living;
    for (const GateValue& gate : call.gates) living.push_back(!gate.dead);
    resolve(call, before, living);
    resolve(sampled, before, std::vector<bool>(gates, true));
    parts = plan->parts();
    for (int64_t i = 0; i < gates; ++i) {
      if (parts[i] >= 0) field_of_part.push_back(i);
    }
  }
  Tensor grad_embeddings = empty(embeddings.sizes(), call.type);
  auto* const data = static_cast<char*>(grad_embeddings.mutable_data_ptr());
  const CrossLoops& loops = cross_loops_for(call.dtype);

  const int64_t term_bytes = std::max<int64_t>(1, call.width * item);
  const int64_t terms_ahead = std::max<int64_t>(1, kAheadBytes / term_bytes);
  if (call.batch * columns * item >= kFetchedBytes) {
    mark_fetches(call, terms_ahead);
    mark_fetches(sampled, terms_ahead);
  }
  std::vector<Run> runs;
  for (int64_t m = 0; m < count; ++m) {
    if (m == 0 || call.terms[m].first != call.terms[m - 1].first) runs.push_back({m, m});
    runs.back().end = m + 1;
  }
  const int64_t rows = std::clamp<int64_t>(kBlockElements / std::max<int64_t>(call.width, 1), 1,
                                           kBlockRows);
  const int64_t blocks = (call.batch + rows - 1) / rows;
  const std::unique_ptr<double[]> partial(new double[blocks * gates]);
  const std::unique_ptr<Moments[]> partial_moments(plan ? new Moments[blocks * gates] : nullptr);
  const int64_t bytes = compute_bytes(call), row_bytes = fields * stride * bytes;
  const Scratch shared(field_of_part.size() * call.batch * bytes);
  const auto products = plan ? plan->places(parts, shared.aligned, bytes) : std::vector<void*>{};
  const bool copies = grad.strides()[1] != 1;
  const auto strides = embeddings.strides();
  for_each_block(call, rows, [&](int64_t first, int64_t end, const auto& rows_of) {
    const Scratch values(row_bytes), gradients(row_bytes);
    const Scratch buffer(copies ? columns * item : 0);
    BlockSums sums(plan ? &*plan : nullptr, products, gates, bytes);
    for (int64_t block = first; block < end; ++block) {
      const auto [row, end_row] = rows_of(block);
      for (int64_t r = row; r < end_row; ++r) {
        const Call& now = plan && r < plan->dead_rows() ? sampled : call;
        const char* const source = row_of(embeddings, r, item);
        const RowSums into = sums.from(r);
        loops.gather(source, strides[1], strides[2], now.fields.data(), fields, call.width, stride,
                     values.aligned);
        std::memset(gradients.aligned, 0, row_bytes);
        loops.backward(now.terms.data(), runs.data(), runs.size(),
                       adjacent(grad, r, columns, item, buffer.aligned), terms_ahead * term_bytes,
                       values.aligned, call.width, stride, gradients.aligned, !before, into);
        loops.finish(source, strides[1], strides[2], now.fields.data(), gradients.aligned, fields,
                     call.width, stride, data + r * fields * call.width * item, before, into);
      }
      sums.finish(call.gates, &partial[block * gates],
                  plan ? &partial_moments[block * gates] : nullptr);
    }
  });

  std::vector<double> sums(gates);
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < gates; ++i) sums[i] += partial[block * gates + i];
  }
  Gradients gradients{grad_embeddings, grad_of_x(arguments.x, call.gates, sums), std::nullopt};
  if (plan) {
    gradients.moments = plan->collect(partial_moments.get(), blocks, parts, shared.aligned);
  }
  return gradients;
}

std::tuple<Tensor, Tensor> gated_cross_concat_backward(
    const Tensor& grad, const Tensor& embeddings, const Tensor& pairs, const Tensor& x,
    const Tensor& epsilon, const MaybeTensor& scale, const MaybeTensor& ungated, bool before,
    int64_t kind, double alpha, double tau) {
  const Gradients gradients =
      backward({"gated_cross_concat_backward"}, grad, embeddings, pairs, before,
               {x, epsilon, scale, ungated, kind, alpha, tau}, nullptr);
  return {gradients.embeddings, gradients.x};
}

std::tuple<Tensor, Tensor, Tensor> gated_cross_concat_backward_moments(
    const Tensor& grad, const Tensor& embeddings, const Tensor& pairs, const Tensor& x,
    const Tensor& epsilon, const MaybeTensor& scale, const MaybeTensor& ungated, bool before,
    const Tensor& moments, const std::optional<Shape>& gate_of_field, const MaybeTensor& dead_rows,
    const MaybeTensor& row_scale, int64_t kind, double alpha, double tau) {
  const MomentArguments moment_arguments{moments, gate_of_field, dead_rows, row_scale};
  const Gradients gradients =
      backward({"gated_cross_concat_backward"}, grad, embeddings, pairs, before,
               {x, epsilon, scale, ungated, kind, alpha, tau}, &moment_arguments);
  return {gradients.embeddings, gradients.x, *gradients.moments};
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("gated_cross_concat", TORCH_BOX(&lpfs::gated_cross_concat));
  library.impl("gated_cross_concat_backward", TORCH_BOX(&lpfs::gated_cross_concat_backward));
  library.impl("gated_cross_concat_backward.moments",
               TORCH_BOX(&lpfs::gated_cross_concat_backward_moments));
}
