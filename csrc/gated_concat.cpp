// lpfs::gated_concat on the CPU; lpfs_kernels/reference.py is its definition.
//
// The output is cut into tiles of kTileRows rows by some columns. A thread works on one tile at a
// time: it reads each field's rows in one run, and writes an output larger than the cache through a
// buffer that stays in the cache, so that every line of memory is written once and whole.
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <optional>

#include "gated_concat_loops.h"
#include "gates.h"
#include "launch.h"

namespace lpfs {
namespace {

constexpr int64_t kTileRows = 64;
// Below this a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 18;
// A smaller output may still be in the cache when it is read next.
constexpr int64_t kStreamedBytes = 1 << 24;

using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

struct Field {
  Rows rows;
  int64_t width;
  double factor;
  double slope;
  bool dead;
  bool learns;  // its gate has a gradient that depends on the data
};

// At most kRowBytes of the columns of one field.
struct Piece {
  int64_t field, first_column, width;
};

struct Tile {
  char* target;
  int64_t row_stride, width, first_piece, end_piece;
};

struct Call {
  Dtype dtype;
  ScalarType scalar_type, gate_type;
  int64_t item_bytes;
  int64_t batch, columns;
  std::vector<Field> fields;
};

Dtype dtype_of(ScalarType type) {
  switch (type) {
    case ScalarType::Double: return Dtype::float64;
    case ScalarType::Float: return Dtype::float32;
    case ScalarType::Half: return Dtype::float16;
    default: return Dtype::bfloat16;
  }
}

Rows advance(Rows rows, int64_t item_bytes, int64_t row, int64_t column) {
  const auto* data = static_cast<const char*>(rows.data);
  const int64_t items = row * rows.row_stride + column * rows.column_stride;
  return {data + items * item_bytes, rows.row_stride, rows.column_stride};
}

Rows rows_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.const_data_ptr(), strides[0], strides[1]};
}

template <class T>
T at(const Tensor& vector, int64_t i) {
  return static_cast<const T*>(vector.const_data_ptr())[i * vector.strides()[0]];
}

template <class T>
void evaluate_gates(const Checks& checks, Call& call, const Tensor& x, const Tensor& epsilon,
                    const MaybeTensor& scale, const MaybeTensor& ungated, Kind kind, double alpha,
                    double tau) {
  const Gate<T> gate{kind, *static_cast<const T*>(epsilon.const_data_ptr()), T(alpha), T(tau)};
  if (!(gate.epsilon > 0 && std::isfinite(gate.epsilon))) {
    checks.fault({"epsilon"}, "be positive and finite", gate.epsilon);
  }
  for (size_t i = 0; i < call.fields.size(); ++i) {
    const T xi = at<T>(x, i);
    if (std::isnan(xi)) checks.fault({"x"}, "not be NaN", text("nan at position ", i));
    const T si = scale ? at<T>(*scale, i) : T(1);
    Field& field = call.fields[i];
    const bool gated = !(ungated && at<bool>(*ungated, i));
    field.dead = gated && xi == 0;
    field.learns = gated && (!field.dead || gate.revives());
    field.factor = gated ? gate.value(xi) * si : si;
    field.slope = field.learns ? gate.derivative(xi) * si : 0;
  }
}

Call check(const Checks& checks, const Tensor* grad, const Tensors& embeddings, const Tensor& x,
           const Tensor& epsilon, const Shape& widths, const MaybeTensor& scale,
           const MaybeTensor& ungated, int64_t kind, double alpha, double tau) {
  if (embeddings.empty()) checks.fault({"embeddings"}, "hold at least one tensor", "none");
  if (kind < 0 || kind >= kKinds) {
    checks.fault({"kind"}, text("be an index from 0 to ", kKinds - 1), kind);
  }
  if (!(alpha >= 0)) checks.fault({"alpha"}, "be at least 0", alpha);
  if (!(tau > 0)) checks.fault({"tau"}, "be positive", tau);
  const bool packed = !widths.empty();
  if (packed && embeddings.size() != 1) {
    checks.fault({"embeddings"}, "hold one packed tensor when widths are given",
                 embeddings.size());
  }

  Call call;
  call.scalar_type = embeddings[0].scalar_type();
  if (call.scalar_type != ScalarType::Double && call.scalar_type != ScalarType::Float &&
      call.scalar_type != ScalarType::Half && call.scalar_type != ScalarType::BFloat16) {
    checks.fault({"embeddings", 0}, "be float64, float32, float16 or bfloat16",
                 name_of(call.scalar_type));
  }
  call.dtype = dtype_of(call.scalar_type);
  call.item_bytes = embeddings[0].element_size();
  call.gate_type =
      call.scalar_type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  call.columns = 0;
  call.fields.reserve(std::max(widths.size(), embeddings.size()));
  for (size_t i = 0; i < embeddings.size(); ++i) {
    const Name name{"embeddings", static_cast<int64_t>(i)};
    checks.dtype(name, embeddings[i], call.scalar_type, " like embeddings[0]");
    const auto sizes = embeddings[i].sizes();
    if (sizes.size() != 2) checks.fault(name, "have 2 dimensions", "shape " + list(sizes));
    if (i == 0) call.batch = sizes[0];
    if (sizes[0] != call.batch) {
      checks.fault(name, text("have ", call.batch, " rows like embeddings[0]"), sizes[0]);
    }
    call.columns += sizes[1];
    if (!packed) call.fields.push_back({rows_of(embeddings[i]), sizes[1], 0, 0, false, false});
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
      call.fields.push_back({rows, width, 0, 0, false, false});
      rows = advance(rows, call.item_bytes, 0, width);
    }
  }

  const Shape per_field{static_cast<int64_t>(call.fields.size())};
  checks.dtype({"x"}, x, call.gate_type, " for ", name_of(call.scalar_type), " embeddings");
  checks.shape({"x"}, x, per_field, ", one element per field");
  checks.dtype({"epsilon"}, epsilon, call.gate_type, " like x");
  checks.shape({"epsilon"}, epsilon, Shape{});
  if (scale) {
    checks.dtype({"scale"}, *scale, call.gate_type, " like x");
    checks.shape({"scale"}, *scale, per_field, " like x");
  }
  if (ungated) {
    checks.dtype({"ungated"}, *ungated, ScalarType::Bool);
    checks.shape({"ungated"}, *ungated, per_field, " like x");
  }
  if (grad) {
    checks.dtype({"grad"}, *grad, call.scalar_type, " like embeddings[0]");
    checks.shape({"grad"}, *grad, Shape{call.batch, call.columns}, " like the output");
  }
  const auto evaluate =
      call.gate_type == ScalarType::Double ? evaluate_gates<double> : evaluate_gates<float>;
  evaluate(checks, call, x, epsilon, scale, ungated, static_cast<Kind>(kind), alpha, tau);
  return call;
}

std::vector<Piece> cut(const Call& call) {
  const int64_t widest = kRowBytes / call.item_bytes;
  std::vector<Piece> pieces;
  pieces.reserve(call.fields.size());
  for (size_t i = 0; i < call.fields.size(); ++i) {
    for (int64_t column = 0; column < call.fields[i].width; column += widest) {
      pieces.push_back({static_cast<int64_t>(i), column,
                        std::min(widest, call.fields[i].width - column)});
    }
  }
  return pieces;
}

// Neighbouring pieces share a tile as far as kRowBytes go.
std::vector<Tile> tiles_of_packed(const Call& call, const std::vector<Piece>& pieces,
                                  const Tensor& target) {
  const int64_t widest = kRowBytes / call.item_bytes;
  std::vector<Tile> tiles;
  auto* data = static_cast<char*>(target.mutable_data_ptr());
  for (int64_t i = 0; i < static_cast<int64_t>(pieces.size()); ++i) {
    if (tiles.empty() || tiles.back().width + pieces[i].width > widest) {
      tiles.push_back({data, call.columns, 0, i, i});
    }
    tiles.back().width += pieces[i].width;
    tiles.back().end_piece = i + 1;
    data += pieces[i].width * call.item_bytes;
  }
  return tiles;
}

// A target of their own for the columns of each field.
std::vector<Tile> tiles_of_list(const Call& call, const std::vector<Piece>& pieces,
                                const Tensors& targets) {
  std::vector<Tile> tiles;
  tiles.reserve(pieces.size());
  for (int64_t i = 0; i < static_cast<int64_t>(pieces.size()); ++i) {
    const Piece& piece = pieces[i];
    auto* data = static_cast<char*>(targets[piece.field].mutable_data_ptr());
    tiles.push_back({data + piece.first_column * call.item_bytes, call.fields[piece.field].width,
                     piece.width, i, i + 1});
  }
  return tiles;
}

void write_rows(const Tile& tile, int64_t item_bytes, const char* buffer, int64_t rows,
                char* target) {
  if (tile.row_stride == tile.width) {
    stream(target, buffer, rows * tile.width * item_bytes);
    return;
  }
  for (int64_t r = 0; r < rows; ++r) {
    stream(target + r * tile.row_stride * item_bytes, buffer + r * tile.width * item_bytes,
           tile.width * item_bytes);
  }
}

void fill_zero(char* target, int64_t stride_bytes, int64_t rows, int64_t width_bytes) {
  for (int64_t r = 0; r < rows; ++r) std::memset(target + r * stride_bytes, 0, width_bytes);
}

int64_t blocks_of(const Call& call) { return (call.batch + kTileRows - 1) / kTileRows; }

// fill(block, piece, rows, target, stride) for every piece of every tile.
template <class Fill>
void for_each_tile(const Call& call, const std::vector<Tile>& tiles,
                   const std::vector<Piece>& pieces, const Fill& fill) {
  const int64_t bytes = call.batch * call.columns * call.item_bytes;
  if (bytes == 0) return;
  const int64_t count = tiles.size(), items = blocks_of(call) * count;
  const bool streamed = bytes >= kStreamedBytes;
  const int64_t grain = std::max<int64_t>(1, kGrainBytes * items / bytes);
  torch::stable::parallel_for(0, items, grain, [&](int64_t first, int64_t end) {
    alignas(64) char buffer[kTileRows * kRowBytes];
    for (int64_t item = first; item < end; ++item) {
      const int64_t block = item / count, row = block * kTileRows;
      const int64_t rows = std::min(kTileRows, call.batch - row);
      const Tile& tile = tiles[item % count];
      char* const target = tile.target + row * tile.row_stride * call.item_bytes;
      char* next = streamed ? buffer : target;
      const int64_t stride = streamed ? tile.width : tile.row_stride;
      for (int64_t p = tile.first_piece; p < tile.end_piece; ++p) {
        fill(block, p, rows, next, stride);
        next += pieces[p].width * call.item_bytes;
      }
      if (streamed) write_rows(tile, call.item_bytes, buffer, rows, target);
    }
    if (streamed) fence();
  });
}

Tensor gated_concat(const Tensors& embeddings, const Tensor& x, const Tensor& epsilon,
                    const Shape& widths, const MaybeTensor& scale, const MaybeTensor& ungated,
                    int64_t kind, double alpha, double tau) {
  const Call call = check({"gated_concat"}, nullptr, embeddings, x, epsilon, widths, scale,
                          ungated, kind, alpha, tau);
  Tensor output = torch::stable::empty(Shape{call.batch, call.columns}, call.scalar_type);
  const std::vector<Piece> pieces = cut(call);
  const Loops& loops = loops_for(call.dtype);
  for_each_tile(
      call, tiles_of_packed(call, pieces, output), pieces,
      [&](int64_t block, int64_t p, int64_t rows, char* target, int64_t stride) {
        const Piece& piece = pieces[p];
        const Field& field = call.fields[piece.field];
        if (field.dead) {
          fill_zero(target, stride * call.item_bytes, rows, piece.width * call.item_bytes);
          return;
        }
        loops.scale(
            advance(field.rows, call.item_bytes, block * kTileRows, piece.first_column),
            field.factor, rows, piece.width, target, stride);
      });
  return output;
}

Tensors gated_concat_backward(const Tensor& grad, const Tensors& embeddings, const Tensor& x,
                              const Tensor& epsilon, const Shape& widths,
                              const MaybeTensor& scale, const MaybeTensor& ungated, int64_t kind,
                              double alpha, double tau) {
  const Call call = check({"gated_concat_backward"}, &grad, embeddings, x, epsilon, widths, scale,
                          ungated, kind, alpha, tau);
  Tensors gradients;
  gradients.reserve(embeddings.size() + 1);
  for (const Tensor& embedding : embeddings) {
    gradients.push_back(torch::stable::empty(embedding.sizes(), call.scalar_type));
  }
  const std::vector<Piece> pieces = cut(call);
  std::vector<Rows> upstreams;
  upstreams.reserve(pieces.size());
  Rows upstream = rows_of(grad);
  for (const Piece& piece : pieces) {
    upstreams.push_back(upstream);
    upstream = advance(upstream, call.item_bytes, 0, piece.width);
  }

  // Blocks depend on the shapes alone and are added in order, so the sums do not depend on threads.
  const int64_t count = pieces.size(), blocks = blocks_of(call);
  const std::unique_ptr<double[]> partial(new double[blocks * count]);
  const Loops& loops = loops_for(call.dtype);
  for_each_tile(
      call,
      widths.empty() ? tiles_of_list(call, pieces, gradients)
                     : tiles_of_packed(call, pieces, gradients[0]),
      pieces, [&](int64_t block, int64_t p, int64_t rows, char* target, int64_t stride) {
        const Piece& piece = pieces[p];
        const Field& field = call.fields[piece.field];
        const int64_t row = block * kTileRows;
        const Rows above = advance(upstreams[p], call.item_bytes, row, 0);
        const Rows below = advance(field.rows, call.item_bytes, row, piece.first_column);
        double& sum = partial[block * count + p];
        if (!field.dead && field.learns) {
          sum = loops.scale_and_dot(above, below, field.factor, rows, piece.width, target, stride);
          return;
        }
        sum = field.learns ? loops.dot(above, below, rows, piece.width) : 0;
        if (field.dead) {
          fill_zero(target, stride * call.item_bytes, rows, piece.width * call.item_bytes);
        } else {
          loops.scale(above, field.factor, rows, piece.width, target, stride);
        }
      });

  std::vector<double> sums(call.fields.size());
  for (int64_t block = 0; block < blocks; ++block) {
    for (int64_t p = 0; p < count; ++p) sums[pieces[p].field] += partial[block * count + p];
  }
  Tensor grad_x = torch::stable::empty(x.sizes(), call.gate_type);
  for (size_t i = 0; i < call.fields.size(); ++i) {
    const Field& field = call.fields[i];
    if (call.gate_type == ScalarType::Double) {
      static_cast<double*>(grad_x.mutable_data_ptr())[i] = field.learns ? field.slope * sums[i] : 0;
    } else {
      static_cast<float*>(grad_x.mutable_data_ptr())[i] =
          field.learns ? static_cast<float>(field.slope * sums[i]) : 0;
    }
  }
  gradients.push_back(grad_x);
  return gradients;
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("gated_concat", TORCH_BOX(&lpfs::gated_concat));
  library.impl("gated_concat_backward", TORCH_BOX(&lpfs::gated_concat_backward));
}
