// lpfs::gated_concat on the CPU; lpfs_kernels/reference.py is its definition.
//
// A thread takes a block of rows of neighbouring columns at a time. Memory is written once, in whole
// lines: fields that fill lines are streamed past the cache from the registers; what does not is
// assembled in a buffer that stays in the cache, if it is larger than the cache itself.
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>

#include "gate_arguments.h"
#include "gated_concat_loops.h"
#include "launch.h"

namespace lpfs {
namespace {

// Found by measurement. Forward goes down the rows of a group of neighbouring columns and assembles
// one row at a time; backward takes a tile of rows for one source after the other, which has to stay
// in the cache meanwhile.
constexpr int64_t kForwardGroupBytes = 1 << 14, kListGroupBytes = 1 << 12, kForwardAhead = 16;
constexpr int64_t kBackwardGroupBytes = kSourceBytes, kTileBytes = 1 << 16;
constexpr int64_t kBufferBytes = std::max(kForwardGroupBytes, kTileBytes);
// Row products are folded a vector at a time: of as many rows, or of half or a quarter as many.
constexpr int64_t kWholeRows = 16;
static_assert(kTileBytes / kBackwardGroupBytes >= kWholeRows);
// For streaming: `rows` of one field after the other, `ahead` rows below them fetched meanwhile. A list
// is read one field at a time; forward writes so little of it that the lines of a row come close one
// after the other, backward takes two fields along so that it reads lines of the gradient in pairs.
// Columns of one tensor the processor follows by itself, row by row, or rows wider than a page two at
// a time; unless there are gaps where fields are dead.
struct Tile {
  int64_t group_bytes, rows, ahead;
};
constexpr Tile kListForward{512, 16, 16}, kListBackward{128, 64, 32};
constexpr Tile kNarrow{1 << 15, 1, 0}, kWide{1 << 15, 2, 2}, kGaps{2048, 8, 8};
constexpr int64_t kWideBytes = 4096;
// What a thread takes at a time, and what one partial sum of backward covers: of few rows, such as
// those of a weight, little enough that there is something for every thread.
constexpr int64_t kBlockRows = 256, kFewRows = 1024, kSmallBlockRows = 64;
// Below this a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 18;
// A smaller output may still be in the cache when it is read next; to assemble one costs more.
constexpr int64_t kStreamedBytes = 1 << 22, kAssembledBytes = 1 << 23;

using Tensors = std::vector<Tensor>;
// No widths are given as none: AOTInductor cannot pass an empty list to an operator (torch 2.13).
using MaybeShape = std::optional<Shape>;

struct Field {
  Rows rows;
  int64_t width;
};

struct Call {
  ScalarType type;
  Dtype dtype;
  int64_t item_bytes, batch, columns;
  std::vector<Field> fields;
  std::vector<GateValue> gates;  // one per field
};

Rows advance(Rows rows, int64_t item_bytes, int64_t row, int64_t column) {
  const auto* data = static_cast<const char*>(rows.data);
  const int64_t items = row * rows.row_stride + column * rows.column_stride;
  return {data + items * item_bytes, rows.row_stride, rows.column_stride};
}

Rows rows_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.const_data_ptr(), strides[0], strides[1]};
}

Call check(const Checks& checks, const Tensor* grad, const Tensors& embeddings,
           const Shape& widths, const GateArguments& gates) {
  if (embeddings.empty()) checks.fault({"embeddings"}, "hold at least one tensor", "none");
  const bool packed = !widths.empty();
  if (packed && embeddings.size() != 1) {
    checks.fault({"embeddings"}, "hold one packed tensor when widths are given",
                 embeddings.size());
  }

  Call call;
  call.type = embeddings[0].scalar_type();
  call.dtype = dtype_of(checks, {"embeddings", 0}, embeddings[0]);
  call.item_bytes = embeddings[0].element_size();
  call.columns = 0;
  call.fields.reserve(std::max(widths.size(), embeddings.size()));
  for (size_t i = 0; i < embeddings.size(); ++i) {
    const Name name{"embeddings", static_cast<int64_t>(i)};
    checks.dtype(name, embeddings[i], call.type, " like embeddings[0]");
    const auto sizes = embeddings[i].sizes();
    if (sizes.size() != 2) checks.fault(name, "have 2 dimensions", "shape " + list(sizes));
    if (i == 0) call.batch = sizes[0];
    if (sizes[0] != call.batch) {
      checks.fault(name, text("have ", call.batch, " rows like embeddings[0]"), sizes[0]);
    }
    call.columns += sizes[1];
    if (!packed) call.fields.push_back({rows_of(embeddings[i]), sizes[1]});
  }
  if (packed) {
    for (size_t i = 0; i < widths.size(); ++i) {
      if (widths[i] < 0) {
        checks.fault({"widths", static_cast<int64_t>(i)}, "be at least 0", widths[i]);
      }
    }
    const int64_t total = std::accumulate(widths.begin(), widths.end(), int64_t{0});
    if (total != call.columns) {
      checks.fault({"widths"}, text("add up to the ", call.columns, " columns of embeddings[0]"),
                   total);
    }
    Rows rows = rows_of(embeddings[0]);
    for (const int64_t width : widths) {
      call.fields.push_back({rows, width});
      rows = advance(rows, call.item_bytes, 0, width);
    }
  }

  call.gates = gates.evaluate(checks, embeddings[0], call.fields.size(), "field");
  if (grad) {
    checks.dtype({"grad"}, *grad, call.type, " like embeddings[0]");
    checks.shape({"grad"}, *grad, Shape{call.batch, call.columns}, " like the output");
  }
  return call;
}

// Neighbouring sources, from column `column` of the output.
struct Group {
  int64_t first, end, column, width;
};

// The columns of all fields, cut so that no source is wider than kSourceBytes.
struct Layout {
  std::vector<Source> sources;
  std::vector<int64_t> field_of, column_in_field;
  std::vector<Group> groups;
};

Layout lay_out(const Call& call, int64_t group_bytes) {
  const int64_t widest = kSourceBytes / call.item_bytes;
  Layout layout;
  for (auto* list : {&layout.field_of, &layout.column_in_field}) list->reserve(call.fields.size());
  layout.sources.reserve(call.fields.size());
  int64_t column = 0;
  for (size_t i = 0; i < call.fields.size(); ++i) {
    const Field& field = call.fields[i];
    const GateValue& gate = call.gates[i];
    for (int64_t j = 0; j < field.width; j += widest) {
      const int64_t width = std::min(widest, field.width - j);
      const int64_t index = layout.sources.size();
      layout.sources.push_back(
          {advance(field.rows, call.item_bytes, 0, j), width, gate.factor, gate.dead});
      layout.field_of.push_back(i);
      layout.column_in_field.push_back(j);
      if (layout.groups.empty() ||
          (layout.groups.back().width + width) * call.item_bytes > group_bytes) {
        layout.groups.push_back({index, index, column, 0});
      }
      layout.groups.back().end = index + 1;
      layout.groups.back().width += width;
      column += width;
    }
  }
  return layout;
}

int64_t bytes_of(const Call& call) { return call.batch * call.columns * call.item_bytes; }

bool starts_line(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kLineBytes == 0;
}

// Whether each field has its columns side by side and fills whole cache lines.
bool fills_lines(const Call& call) {
  return std::all_of(call.fields.begin(), call.fields.end(), [&](const Field& field) {
    return field.rows.column_stride == 1 && field.width * call.item_bytes % kLineBytes == 0;
  });
}

Tile packed_tile(const Call& call) {
  const bool gaps = std::any_of(call.gates.begin(), call.gates.end(),
                                [](const GateValue& gate) { return gate.dead; });
  if (gaps) return kGaps;
  return call.columns * call.item_bytes >= kWideBytes ? kWide : kNarrow;
}

int64_t block_rows(const Call& call) {
  return call.batch <= kFewRows ? kSmallBlockRows : kBlockRows;
}

int64_t blocks_of(const Call& call) {
  return (call.batch + block_rows(call) - 1) / block_rows(call);
}

// body(block, first_row, end_row, group, buffer), in threads. One thread goes down the rows of a
// group before it turns to the next: what was fetched ahead is used.
template <class Body>
void for_each_block(const Call& call, const Layout& layout, const Body& body) {
  const int64_t bytes = bytes_of(call);
  if (bytes == 0) return;
  const int64_t blocks = blocks_of(call), rows = block_rows(call);
  const int64_t items = blocks * static_cast<int64_t>(layout.groups.size());
  const int64_t grain = std::max<int64_t>(1, kGrainBytes * items / bytes);
  torch::stable::parallel_for(0, items, grain, [&](int64_t first, int64_t end) {
    alignas(64) char buffer[kBufferBytes];
    for (int64_t item = first; item < end; ++item) {
      const int64_t block = item % blocks, row = block * rows;
      body(block, row, std::min(row + rows, call.batch), layout.groups[item / blocks],
           buffer);
    }
    fence();
  });
}

Tensor gated_concat(const Tensors& embeddings, const Tensor& x, const Tensor& epsilon,
                    const MaybeShape& maybe_widths, const MaybeTensor& scale,
                    const MaybeTensor& ungated, int64_t kind, double alpha, double tau) {
  const Shape widths = maybe_widths.value_or(Shape{});
  const Call call = check({"gated_concat"}, nullptr, embeddings, widths,
                          {x, epsilon, scale, ungated, kind, alpha, tau});
  const bool packed = !widths.empty();
  Tensor output = empty(Shape{call.batch, call.columns}, call.type);
  auto* const data = static_cast<char*>(output.mutable_data_ptr());
  const Loops& loops = loops_for(call.dtype);
  if (bytes_of(call) >= kStreamedBytes && fills_lines(call) && starts_line(output)) {
    const Tile tile = packed ? packed_tile(call) : kListForward;
    const Layout layout = lay_out(call, tile.group_bytes);
    for_each_block(call, layout, [&](int64_t, int64_t first, int64_t end, const Group& group,
                                     char*) {
      for (int64_t row = first; row < end; row += tile.rows) {
        loops.stream_concat(&layout.sources[group.first], group.end - group.first, row,
                            std::min(tile.rows, end - row), tile.ahead,
                            data + (row * call.columns + group.column) * call.item_bytes,
                            call.columns);
      }
    });
    return output;
  }
  const Layout layout = lay_out(call, packed ? kForwardGroupBytes : kListGroupBytes);
  const bool assembled = bytes_of(call) >= kAssembledBytes;
  for_each_block(call, layout, [&](int64_t, int64_t first, int64_t end, const Group& group,
                                   char* buffer) {
    for (int64_t row = first; row < end; ++row) {
      char* const target = data + (row * call.columns + group.column) * call.item_bytes;
      loops.concat_row(&layout.sources[group.first], group.end - group.first, row, kForwardAhead,
                       assembled ? buffer : target);
      if (assembled) stream(target, buffer, group.width * call.item_bytes);
    }
  });
  return output;
}

// Rows of bytes.
struct Target {
  char* data;
  int64_t stride;

  char* row(int64_t r) const { return data + r * stride; }
};

Target target_of(const Flow& flow, int64_t item_bytes, int64_t row) {
  const int64_t stride = flow.target_stride * item_bytes;
  return {static_cast<char*>(flow.target) + row * stride, stride};
}

void zero(Target target, int64_t rows, int64_t bytes) {
  // An empty tensor has no address, and memset takes none, of 0 bytes either.
  for (int64_t r = 0; bytes && r < rows; ++r) std::memset(target.row(r), 0, bytes);
}

// From a buffer that holds the rows without gaps.
void stream_rows(Target target, const char* buffer, int64_t rows, int64_t bytes) {
  if (target.stride == bytes) return stream(target.data, buffer, rows * bytes);
  for (int64_t r = 0; r < rows; ++r) stream(target.row(r), buffer + r * bytes, bytes);
}

// What the sources of a group bring, of the type that is computed in; apart, in the rows in which dead
// ones are not watched. Whole vectors are read and written from any of them on.
struct GroupSums {
  static constexpr int64_t kSources = 2 * kWide.group_bytes / kLineBytes, kRoom = kSources + 16;
  alignas(64) double sums[kRoom], squares[kRoom], other_sums[kRoom], other_squares[kRoom];

  explicit GroupSums(int64_t count) {
    for (double* each : {sums, squares, other_sums, other_squares}) {
      std::memset(each, 0, (count + 16) * sizeof(double));
    }
  }

  // Moments where they are wanted.
  template <class T>
  void add_to(int64_t count, double* totals, Moments* moments) const {
    const auto at = [](const double* each, int64_t i) {
      return double(reinterpret_cast<const T*>(each)[i]);
    };
    for (int64_t i = 0; i < count; ++i) {
      totals[i] += at(sums, i) + at(other_sums, i);
      if (moments) moments[i] += {at(sums, i), at(squares, i)};
    }
  }
};

// Which sources, pieces of fields, leave their row products for later, because there is more than one
// behind their gate: the number of each among those, or −1.
std::vector<int64_t> parts_of(const Layout& layout, const MomentPlan& plan) {
  std::vector<int64_t> sources(plan.gates()), parts;
  for (const int64_t field : layout.field_of) ++sources[plan.gate_of(field)];
  int64_t next = 0;
  for (const int64_t field : layout.field_of) {
    parts.push_back(sources[plan.gate_of(field)] > 1 ? next++ : -1);
  }
  return parts;
}

Tensors backward(const Checks& checks, const Tensor& grad, const Tensors& embeddings,
                 const MaybeShape& maybe_widths, const GateArguments& gates,
                 const MomentArguments* moment_arguments) {
  const Shape widths = maybe_widths.value_or(Shape{});
  const Call call = check(checks, &grad, embeddings, widths, gates);
  std::optional<MomentPlan> plan;
  if (moment_arguments) {
    plan.emplace(checks, *moment_arguments, gates.x, call.gates, call.batch, "field");
  }
  const bool packed = !widths.empty();
  Tensors gradients;
  gradients.reserve(embeddings.size() + 2);
  for (const Tensor& embedding : embeddings) {
    gradients.push_back(empty(embedding.sizes(), call.type));
  }
  const bool large = bytes_of(call) >= kStreamedBytes;
  const bool streamed = large && fills_lines(call) && rows_of(grad).column_stride == 1 &&
                        std::all_of(gradients.begin(), gradients.end(), starts_line);
  const Tile tile = packed ? packed_tile(call) : kListBackward;
  const Layout layout = lay_out(call, streamed ? tile.group_bytes : kBackwardGroupBytes);
  const int64_t item = call.item_bytes, count = layout.sources.size();

  std::vector<int64_t> parts, field_of_part;
  if (plan) {
    parts = parts_of(layout, *plan);
    for (int64_t i = 0; i < count; ++i) {
      if (parts[i] >= 0) field_of_part.push_back(layout.field_of[i]);
    }
  }
  const int64_t compute_bytes = call.dtype == Dtype::float64 ? 8 : 4;
  const Scratch products(field_of_part.size() * call.batch * compute_bytes);

  std::vector<Flow> flows;
  flows.reserve(count);
  int64_t column = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t f = layout.field_of[i];
    const Field& field = call.fields[f];
    auto* data = static_cast<char*>(gradients[packed ? 0 : f].mutable_data_ptr());
    flows.push_back({layout.sources[i], advance(rows_of(grad), item, 0, column), call.gates[f].learns,
                     data + (packed ? column : layout.column_in_field[i]) * item,
                     packed ? call.columns : field.width});
    if (plan && parts[i] >= 0) {
      flows.back().products = products.aligned + parts[i] * call.batch * compute_bytes;
    }
    column += layout.sources[i].width;
  }

  // Tiles and blocks depend on the call alone, so the sums do not depend on the threads.
  const int64_t blocks = blocks_of(call);
  const std::unique_ptr<double[]> partial(new double[blocks * count]());
  const std::unique_ptr<Moments[]> partial_moments(plan ? new Moments[blocks * count] : nullptr);
  const Loops& loops = loops_for(call.dtype);
  if (streamed) {
    const bool doubles = call.dtype == Dtype::float64;
    const auto add = doubles ? &GroupSums::add_to<double> : &GroupSums::add_to<float>;
    for_each_block(call, layout, [&](int64_t block, int64_t first, int64_t end, const Group& group,
                                     char*) {
      const int64_t size = group.end - group.first, own = block * count + group.first;
      GroupSums sums(size);
      const Watch watch{plan ? plan->dead_rows() : 0,
                        plan ? plan->row_scale() : nullptr,
                        !field_of_part.empty(),
                        plan.has_value(),
                        sums.sums,
                        sums.squares,
                        sums.other_sums,
                        sums.other_squares};
      for (int64_t row = first; row < end; row += tile.rows) {
        loops.stream_backward(&flows[group.first], size, row, std::min(tile.rows, end - row),
                              tile.ahead, watch);
      }
      (sums.*add)(size, &partial[own], plan ? &partial_moments[own] : nullptr);
    });
  } else {
    const int64_t row_bytes = std::clamp<int64_t>(call.columns * item, 1, kBackwardGroupBytes);
    const int64_t whole_rows = kTileBytes / row_bytes / kWholeRows * kWholeRows;
    const int64_t tile_rows = std::min(whole_rows, block_rows(call));
    for_each_block(call, layout, [&](int64_t block, int64_t first, int64_t end, const Group& group,
                                     char* buffer) {
      for (int64_t row = first; row < end; row += tile_rows) {
        const int64_t rows = std::min(tile_rows, end - row);
        char* next = buffer;
        for (int64_t i = group.first; i < group.end; ++i) {
          const Flow& flow = flows[i];
          const Source& source = flow.source;
          const int64_t bytes = source.width * item;
          const Target target = target_of(flow, item, row);
          const Target written = !large   ? target
                                 : packed ? Target{next, group.width * item}
                                          : Target{buffer, bytes};
          if (source.dead) zero(written, rows, bytes);
          const int64_t watched =
              plan ? std::clamp<int64_t>(plan->rows_of(layout.field_of[i]) - row, 0, rows) : 0;
          const Rows upstream = advance(flow.grad, item, row, 0);
          const Rows values = advance(source.rows, item, row, 0);
          void* const to = source.dead ? nullptr : written.data;
          double& sum = partial[block * count + i];
          if (watched) {
            // Rows of what does not learn are needed no longer than it is watched.
            const int64_t all = source.dead && !flow.learns ? watched : rows;
            void* const own = flow.products ? static_cast<char*>(flow.products) + row * compute_bytes
                                            : nullptr;
            const auto* scale = static_cast<const char*>(plan->row_scale());
            if (scale) scale += row * compute_bytes;
            sum += loops.watch_and_dot(upstream, values, source.factor, all, source.width,
                                       tile_rows, to, written.stride / item, watched, scale, own,
                                       &partial_moments[block * count + i]);
          } else if (flow.learns || !source.dead) {
            sum += loops.scale_and_dot(upstream, flow.learns ? values : Rows{}, source.factor, rows,
                                       source.width, tile_rows, to, written.stride / item);
          }
          if (large && !packed) stream_rows(target, buffer, rows, bytes);
          next += bytes;
        }
        if (large && packed) {
          stream_rows(target_of(flows[group.first], item, row), buffer, rows, group.width * item);
        }
      }
    });
  }

  std::vector<double> sums(call.fields.size());
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t i = 0; i < count; ++i) sums[layout.field_of[i]] += partial[block * count + i];
  }
  gradients.push_back(grad_of_x(gates.x, call.gates, sums));
  if (plan) {
    std::vector<Moments> moments(plan->gates());
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t i = 0; i < count; ++i) {
        if (parts[i] < 0) {
          moments[plan->gate_of(layout.field_of[i])] += partial_moments[block * count + i];
        }
      }
    }
    plan->add_parts(field_of_part, products.aligned, moments);
    gradients.push_back(plan->result(moments));
  }
  return gradients;
}

Tensors gated_concat_backward(const Tensor& grad, const Tensors& embeddings, const Tensor& x,
                              const Tensor& epsilon, const MaybeShape& widths,
                              const MaybeTensor& scale, const MaybeTensor& ungated, int64_t kind,
                              double alpha, double tau) {
  return backward({"gated_concat_backward"}, grad, embeddings, widths,
                  {x, epsilon, scale, ungated, kind, alpha, tau}, nullptr);
}

Tensors gated_concat_backward_moments(const Tensor& grad, const Tensors& embeddings,
                                      const Tensor& x, const Tensor& epsilon,
                                      const MaybeShape& widths, const MaybeTensor& scale,
                                      const MaybeTensor& ungated, const Tensor& moments,
                                      const MaybeShape& gate_of_field,
                                      const MaybeTensor& dead_rows, const MaybeTensor& row_scale,
                                      int64_t kind, double alpha, double tau) {
  const MomentArguments moment_arguments{moments, gate_of_field, dead_rows, row_scale};
  return backward({"gated_concat_backward"}, grad, embeddings, widths,
                  {x, epsilon, scale, ungated, kind, alpha, tau}, &moment_arguments);
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("gated_concat", TORCH_BOX(&lpfs::gated_concat));
  library.impl("gated_concat_backward", TORCH_BOX(&lpfs::gated_concat_backward));
  library.impl("gated_concat_backward.moments", TORCH_BOX(&lpfs::gated_concat_backward_moments));
}
