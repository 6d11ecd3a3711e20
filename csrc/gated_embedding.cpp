// lpfs::gated_embedding_concat on the CPU; lpfs_kernels/reference.py is its definition.
//
// A thread resolves the codes of a block of samples to rows of the weight first: then it knows which
// rows to fetch into the cache while it works on others. The dense gradient is cut by rows instead, so
// that each is added up by one thread in the order of the samples.
#include <atomic>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <tuple>

#include "gate_arguments.h"
#include "gated_embedding_loops.h"
#include "launch.h"

namespace lpfs {
namespace {

// What a thread takes at a time. What one partial sum of backward covers depends on the shapes alone,
// so the sums do not depend on the threads.
constexpr int64_t kBlockRows = 128;
// A lane adds up no more of these than a sum of gated_concat does.
constexpr int64_t kBlockElements = 16'384;
// Below this a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 18;
// A smaller output may still be in the cache when it is read next.
constexpr int64_t kStreamedBytes = 1 << 22;
// Of a dense gradient, what is added up at a time: most of it stays in the cache while all codes of its
// field pass by, which they do once for each such part.
constexpr int64_t kPartBytes = 1 << 22;
constexpr int64_t kAdditions = 1024;

struct Call {
  ScalarType type;
  Dtype dtype;
  int64_t item_bytes, batch, width, table_rows;
  std::vector<GateValue> gates;
  std::vector<Lookup> fields;
  Rows weight;
  // Codes are `sample_stride` and `field_stride` apart; those of bags have one stride, and where they
  // begin is in `begins`.
  const char* codes;
  bool wide, mean, check;
  int64_t code_bytes, code_count, sample_stride, field_stride;
  std::vector<int64_t> begins;  // empty without bags
  std::vector<int64_t> first, rows_of;

  int64_t count() const { return static_cast<int64_t>(fields.size()); }
  int64_t columns() const { return count() * width; }
  bool bags() const { return !begins.empty(); }
  // How many codes of living fields a sample has.
  int64_t entries_of(int64_t sample) const {
    int64_t entries = 0;
    for (int64_t i = 0, bag = sample * count(); i < count(); ++i, ++bag) {
      if (!fields[i].dead) entries += bags() ? begins[bag + 1] - begins[bag] : 1;
    }
    return entries;
  }
  int64_t code(int64_t items) const {
    const char* at = codes + items * code_bytes;
    return wide ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
  }
  bool names_row(int64_t i, int64_t code) const {
    return static_cast<uint64_t>(code) < static_cast<uint64_t>(rows_of[i]);
  }
};

Rows rows_of(const Tensor& tensor) {
  const auto strides = tensor.strides();
  return {tensor.const_data_ptr(), strides[0], strides[1]};
}

void read_bags(const Checks& checks, Call& call, const Tensor& bags) {
  const int64_t size = bags.sizes()[0];
  call.begins.resize(size);
  for (int64_t k = 0; k < size; ++k) {
    call.begins[k] = call.wide ? at<int64_t>(bags, k) : at<int32_t>(bags, k);
  }
  if (call.begins[0] != 0) checks.fault({"bags"}, "begin with 0", call.begins[0]);
  for (int64_t k = 1; k < size; ++k) {
    if (call.begins[k] < call.begins[k - 1]) {
      checks.fault({"bags"}, "not decrease",
                   text(call.begins[k], " after ", call.begins[k - 1], " at position ", k));
    }
  }
  if (call.begins.back() != call.code_count) {
    checks.fault({"bags"}, text("end with ", call.code_count, ", the number of codes"),
                 call.begins.back());
  }
}

Call check(const Checks& checks, const Tensor* grad, const Tensor& weight, const Tensor& codes,
           const Shape& offsets, const MaybeTensor& bags, bool mean, bool look,
           const GateArguments& gates) {
  Call call;
  call.type = weight.scalar_type();
  call.dtype = dtype_of(checks, {"weight"}, weight);
  call.item_bytes = weight.element_size();
  const auto sizes = weight.sizes();
  if (sizes.size() != 2) checks.fault({"weight"}, "have 2 dimensions", "shape " + list(sizes));
  call.table_rows = sizes[0], call.width = sizes[1];
  call.weight = rows_of(weight);
  const int64_t fields = offsets.size();
  if (fields == 0) checks.fault({"offsets"}, "hold one row of weight per field", "none");
  if (offsets[0] != 0) checks.fault({"offsets"}, "begin with 0", offsets[0]);
  for (int64_t i = 1; i < fields; ++i) {
    if (offsets[i] < offsets[i - 1]) {
      checks.fault({"offsets", i}, text("be at least ", offsets[i - 1], ", the one before"),
                   offsets[i]);
    }
  }
  if (offsets.back() > call.table_rows) {
    checks.fault({"offsets", fields - 1},
                 text("be at most ", call.table_rows, ", the rows of weight"), offsets.back());
  }
  call.first = offsets;
  for (int64_t i = 0; i < fields; ++i) {
    call.rows_of.push_back((i + 1 < fields ? offsets[i + 1] : call.table_rows) - offsets[i]);
  }

  call.wide = codes.scalar_type() == ScalarType::Long;
  if (!call.wide && codes.scalar_type() != ScalarType::Int) {
    checks.fault({"codes"}, "be int64 or int32", name_of(codes.scalar_type()));
  }
  const auto shape = codes.sizes();
  const auto strides = codes.strides();
  call.codes = static_cast<const char*>(codes.const_data_ptr());
  call.code_bytes = call.wide ? 8 : 4;
  call.mean = mean, call.check = look;
  if (!bags) {
    if (shape.size() != 2 || shape[1] != fields) {
      checks.fault({"codes"}, text("have shape [B, ", fields, "], a column per offset"),
                   list(shape));
    }
    call.batch = shape[0];
    call.code_count = call.batch * fields;
    call.sample_stride = strides[0], call.field_stride = strides[1];
  } else {
    if (shape.size() != 1) {
      checks.fault({"codes"}, "have 1 dimension beside bags", "shape " + list(shape));
    }
    checks.dtype({"bags"}, *bags, codes.scalar_type(), " like codes");
    const auto ends = bags->sizes();
    if (ends.size() != 1 || ends[0] < 1 || (ends[0] - 1) % fields != 0) {
      checks.fault({"bags"}, text("have shape [B · ", fields, " + 1]"), list(ends));
    }
    call.batch = (ends[0] - 1) / fields;
    call.code_count = shape[0];
    call.sample_stride = strides[0], call.field_stride = 0;
  }

  call.gates = gates.evaluate(checks, weight, fields, "field");
  for (const GateValue& gate : call.gates) {
    call.fields.push_back({gate.factor, gate.dead, gate.learns});
  }
  if (grad) {
    checks.dtype({"grad"}, *grad, call.type, " like weight");
    checks.shape({"grad"}, *grad, Shape{call.batch, call.columns()}, " like the output");
  }
  if (bags) read_bags(checks, call, *bags);
  return call;
}

// The first code that names no row, by its number among all; found by any thread.
class FirstWrong {
 public:
  void found(int64_t position) {
    int64_t before = position_.load();
    while (position < before && !position_.compare_exchange_weak(before, position)) {
    }
  }

  void refuse(const Checks& checks, const Call& call) const {
    const int64_t m = position_.load();
    if (m == kNone) return;
    int64_t i = m % call.count();
    std::string position = list(Shape{m / call.count(), i});
    int64_t code = 0;
    if (call.bags()) {
      // The last bag that begins at or before it.
      const auto next = std::upper_bound(call.begins.begin(), call.begins.end(), m);
      i = (next - call.begins.begin() - 1) % call.count();
      position = text(m);
      code = call.code(m * call.sample_stride);
    } else {
      code = call.code(m / call.count() * call.sample_stride + i * call.field_stride);
    }
    checks.fault({"codes"},
                 text("be at least 0 and below ", call.rows_of[i], ", the rows of field ", i),
                 text(code, " at position ", position));
  }

 private:
  static constexpr int64_t kNone = std::numeric_limits<int64_t>::max();
  std::atomic<int64_t> position_{kNone};
};

// The rows of a block of samples, of the fields that are read.
class Block {
 public:
  // Codes of `fields` matter in either direction where they live or learn.
  Block(const Call& call, const std::vector<Lookup>& fields, const EmbeddingLoops& loops,
        bool backward, FirstWrong& wrong)
      : call_(call), fields_(fields), loops_(loops), wrong_(wrong), all_(call.count()) {
    for (int64_t i = 0; i < call.count(); ++i) {
      is_checked_.push_back(call.check && (!fields[i].dead || fields[i].learns));
      limits_.push_back(is_checked_[i] ? call.rows_of[i] : std::numeric_limits<uint64_t>::max());
      is_read_.push_back(!fields[i].dead || (backward && fields[i].learns));
      if (is_read_[i]) read_.push_back(i);
    }
  }

  // False where a code is wrong.
  bool resolve(int64_t first, int64_t end) {
    return call_.bags() ? resolve_bags(first, end) : resolve_codes(first, end);
  }

  Bags bags() const {
    return {rows_.data(), call_.bags() ? sizes_.data() : nullptr, call_.mean};
  }

  const std::vector<Lookup>& fields() const { return fields_; }

  // The rows of living fields alone.
  const int64_t* living_rows() {
    if (living_fields() == static_cast<int64_t>(read_.size())) return rows_.data();
    living_.clear();
    const int64_t* next = rows_.data();
    for (int64_t s = 0; s < samples_; ++s) {
      for (const int64_t i : read_) {
        const int64_t size = call_.bags() ? sizes_[s * call_.count() + i] : 1;
        if (!fields_[i].dead) living_.insert(living_.end(), next, next + size);
        next += size;
      }
    }
    return living_.data();
  }

 private:
  int64_t living_fields() const {
    return std::count_if(fields_.begin(), fields_.end(),
                         [](const Lookup& field) { return !field.dead; });
  }

  bool resolve_codes(int64_t first, int64_t end) {
    const int64_t count = call_.count(), read = read_.size();
    samples_ = end - first;
    rows_.resize(samples_ * read + kRowsAhead);
    int64_t* target = rows_.data();
    for (int64_t s = first; s < end; ++s, target += read) {
      int64_t* const row = read == count ? target : all_.data();
      const Codes codes{call_.codes + s * call_.sample_stride * call_.code_bytes,
                        call_.field_stride, call_.wide};
      const bool right = loops_.resolve(codes, call_.first.data(), limits_.data(), count, row);
      if (!right && !really_right(s)) return false;
      if (read < count) {
        for (int64_t k = 0; k < read; ++k) target[k] = row[read_[k]];
      }
    }
    std::fill_n(target, kRowsAhead, 0);
    return true;
  }

  // −1 of a field that nobody looks at exceeds its limit too.
  bool really_right(int64_t s) {
    if (!call_.check) return true;
    for (int64_t i = 0; i < call_.count(); ++i) {
      const int64_t code = call_.code(s * call_.sample_stride + i * call_.field_stride);
      if (is_checked_[i] && !call_.names_row(i, code)) {
        wrong_.found(s * call_.count() + i);
        return false;
      }
    }
    return true;
  }

  bool resolve_bags(int64_t first, int64_t end) {
    const int64_t count = call_.count();
    samples_ = end - first;
    rows_.clear(), sizes_.clear();
    for (int64_t bag = first * count; bag < end * count; ++bag) {
      const int64_t i = bag % count, begin = call_.begins[bag], stop = call_.begins[bag + 1];
      sizes_.push_back(stop - begin);
      if (!is_checked_[i] && !is_read_[i]) continue;
      for (int64_t m = begin; m < stop; ++m) {
        const int64_t code = call_.code(m * call_.sample_stride);
        if (is_checked_[i] && !call_.names_row(i, code)) {
          wrong_.found(m);
          return false;
        }
        if (is_read_[i]) rows_.push_back(call_.first[i] + code);
      }
    }
    rows_.resize(rows_.size() + kRowsAhead);
    return true;
  }

  const Call& call_;
  const std::vector<Lookup>& fields_;
  const EmbeddingLoops& loops_;
  FirstWrong& wrong_;
  std::vector<uint64_t> limits_;
  std::vector<bool> is_checked_, is_read_;
  std::vector<int64_t> read_, all_, rows_, sizes_, living_;
  int64_t samples_ = 0;
};

int64_t compute_bytes(const Call& call) { return call.dtype == Dtype::float64 ? 8 : 4; }

int64_t block_rows(const Call& call) {
  return std::clamp<int64_t>(kBlockElements / std::max<int64_t>(call.width, 1), 1, kBlockRows);
}

bool starts_line(const Tensor& tensor) {
  return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % kLineBytes == 0;
}

// How rows are written to memory.
enum class Way { cached, past, assembled };

Way way_to(const Tensor& target, const Call& call) {
  if (target.numel() * call.item_bytes < kStreamedBytes) return Way::cached;
  const bool lines = call.width * call.item_bytes % kLineBytes == 0;
  return lines && starts_line(target) ? Way::past : Way::assembled;
}

// body(first block, end block, rows_of), in threads, with rows_of(block) → first and end row.
template <class Body>
void for_each_block(const Call& call, const Body& body) {
  const int64_t rows = block_rows(call), blocks = (call.batch + rows - 1) / rows;
  const int64_t bytes = std::max<int64_t>(1, call.batch * call.columns() * call.item_bytes);
  const int64_t grain = std::max<int64_t>(1, kGrainBytes * blocks / bytes);
  torch::stable::parallel_for(0, blocks, grain, [&](int64_t first, int64_t end) {
    body(first, end, [&](int64_t block) {
      return std::pair(block * rows, std::min((block + 1) * rows, call.batch));
    });
    fence();
  });
}

Tensor gated_embedding_concat(const Tensor& weight, const Tensor& codes, const Shape& offsets,
                              const MaybeTensor& bags, const Tensor& x, const Tensor& epsilon,
                              const MaybeTensor& scale, const MaybeTensor& ungated, bool mean,
                              bool, bool look, int64_t kind, double alpha, double tau) {
  const Checks checks{"gated_embedding_concat"};
  const Call call = check(checks, nullptr, weight, codes, offsets, bags, mean, look,
                          {x, epsilon, scale, ungated, kind, alpha, tau});
  const int64_t row_bytes = call.columns() * call.item_bytes;
  Tensor output = empty(Shape{call.batch, call.columns()}, call.type);
  auto* const data = static_cast<char*>(output.mutable_data_ptr());
  const EmbeddingLoops& loops = embedding_loops_for(call.dtype);
  const Way way = way_to(output, call);
  FirstWrong wrong;
  for_each_block(call, [&](int64_t first, int64_t end, const auto& rows_of) {
    Block block(call, call.fields, loops, false, wrong);
    const Scratch buffer(way == Way::assembled ? row_bytes : 0);
    for (int64_t b = first; b < end; ++b) {
      const auto [row, end_row] = rows_of(b);
      if (!block.resolve(row, end_row)) return;
      Bags left = block.bags();
      if (way != Way::assembled) {
        loops.concat(call.weight, call.width, call.fields.data(), call.count(), left,
                     end_row - row, data + row * row_bytes, way == Way::past);
        continue;
      }
      for (int64_t r = row; r < end_row; ++r) {
        left.rows = loops.concat(call.weight, call.width, call.fields.data(), call.count(), left,
                                 1, buffer.aligned, false);
        if (left.sizes) left.sizes += call.count();
        stream(data + r * row_bytes, buffer.aligned, row_bytes);
      }
    }
  });
  wrong.refuse(checks, call);
  return output;
}

// The gradient of some samples, its columns adjacent: itself, or a copy.
struct Upstream {
  const char* data;
  int64_t row_stride;
};

Upstream adjacent(const Call& call, const Rows& grad, int64_t row, int64_t end, char* buffer) {
  const int64_t item = call.item_bytes, columns = call.columns();
  const char* source = static_cast<const char*>(grad.data) + row * grad.row_stride * item;
  if (grad.column_stride == 1) return {source, grad.row_stride};
  for (char* target = buffer; row < end; ++row, source += grad.row_stride * item) {
    for (int64_t j = 0; j < columns; ++j, target += item) {
      std::memcpy(target, source + j * grad.column_stride * item, item);
    }
  }
  return {buffer, columns};
}

struct Gradients {
  Tensor rows, values;
  std::vector<double> sums;  // of the row products of every field
  std::optional<Tensor> moments;
  Tensor grad_x{};
};

// What is looked up in the rows in which dead fields are watched, and in the others: every field that
// is watched has products, whether it learns or not.
struct Watched {
  const MomentPlan& plan;
  std::vector<Lookup> sampled, others;
  std::vector<int64_t> parts;  // of which fields' products wait, see MomentPlan

  Watched(const MomentPlan& plan, const Call& call)
      : plan(plan), sampled(call.fields), others(call.fields), parts(plan.parts()) {
    for (Lookup& field : sampled) field.learns = true;
    for (Lookup& field : others) field.learns = field.learns || !field.dead;
  }

  int64_t waiting() const {
    return std::count_if(parts.begin(), parts.end(), [](int64_t part) { return part >= 0; });
  }
};

// An entry for each code of a living field, in their order.
Gradients sparse_backward(const Checks& checks, const Call& call, const Rows& grad,
                          const Watched* watched) {
  const int64_t count = call.count(), item = call.item_bytes, value_bytes = call.width * item;
  const EmbeddingLoops& loops = embedding_loops_for(call.dtype);
  const int64_t rows = block_rows(call), blocks = (call.batch + rows - 1) / rows;
  // How many entries there are before each block.
  std::vector<int64_t> before(blocks + 1);
  for (int64_t b = 0; b < blocks; ++b) {
    before[b + 1] = before[b];
    const int64_t end = std::min((b + 1) * rows, call.batch);
    for (int64_t r = b * rows; r < end; ++r) before[b + 1] += call.entries_of(r);
  }
  Tensor indices = empty(Shape{before.back()}, ScalarType::Long);
  Tensor values = empty(Shape{before.back(), call.width}, call.type);
  auto* const index = static_cast<int64_t*>(indices.mutable_data_ptr());
  auto* const data = static_cast<char*>(values.mutable_data_ptr());
  const Way way = way_to(values, call);
  const bool streams = before.back() * int64_t{sizeof(int64_t)} >= kStreamedBytes;

  const std::unique_ptr<double[]> partial(new double[blocks * count]());
  const std::unique_ptr<Moments[]> moments(watched ? new Moments[blocks * count] : nullptr);
  const int64_t bytes = compute_bytes(call), waiting = watched ? watched->waiting() : 0;
  const Scratch shared(waiting * call.batch * bytes);
  const auto products = watched ? watched->plan.places(watched->parts, shared.aligned, bytes)
                                : std::vector<void*>{};
  FirstWrong wrong;
  for_each_block(call, [&](int64_t first, int64_t end, const auto& rows_of) {
    Block block(call, watched ? watched->others : call.fields, loops, true, wrong);
    std::optional<Block> sampled;
    if (watched) sampled.emplace(call, watched->sampled, loops, true, wrong);
    BlockSums sums(watched ? &watched->plan : nullptr, products, count, bytes);
    const Scratch copy(grad.column_stride == 1 ? 0 : rows * call.columns() * item);
    std::vector<char> assembled;
    for (int64_t b = first; b < end; ++b) {
      const auto [row, end_row] = rows_of(b);
      const Upstream upstream = adjacent(call, grad, row, end_row, copy.aligned);
      const int64_t entries = before[b + 1] - before[b];
      char* const values = data + before[b] * value_bytes;
      char* target = values;
      if (way == Way::assembled) {
        assembled.resize(entries * value_bytes);
        target = assembled.data();
      }
      int64_t* living = index + before[b];
      const int64_t middle = std::clamp(watched ? watched->plan.dead_rows() : 0, row, end_row);
      int64_t left = entries;
      for (const auto& [begin, stop] : {std::pair(row, middle), std::pair(middle, end_row)}) {
        if (begin == stop) continue;
        Block& own = begin < middle ? *sampled : block;
        if (!own.resolve(begin, stop)) return;
        loops.entries(call.weight, call.width, own.fields().data(), count, own.bags(),
                      upstream.data + (begin - row) * upstream.row_stride * item,
                      upstream.row_stride, stop - begin, target, way == Way::past,
                      sums.from(begin));
        int64_t number = left;
        for (int64_t r = stop; r < end_row; ++r) number -= call.entries_of(r);
        left -= number;
        const int64_t index_bytes = number * static_cast<int64_t>(sizeof(int64_t));
        if (streams) {
          stream(living, own.living_rows(), index_bytes);
        } else if (number) {
          std::memcpy(living, own.living_rows(), index_bytes);
        }
        target += number * value_bytes, living += number;
      }
      sums.finish(call.gates, &partial[b * count], moments ? &moments[b * count] : nullptr);
      if (way == Way::assembled) stream(values, assembled.data(), entries * value_bytes);
    }
  });
  wrong.refuse(checks, call);
  Gradients gradients{indices, values, std::vector<double>(count), std::nullopt};
  for (int64_t b = 0; b < blocks; ++b) {
    for (int64_t i = 0; i < count; ++i) gradients.sums[i] += partial[b * count + i];
  }
  if (watched) {
    gradients.moments =
        watched->plan.collect(moments.get(), blocks, watched->parts, shared.aligned);
  }
  return gradients;
}

// Some rows of one field's table.
struct Part {
  int64_t field, first, end;
};

// What the codes of a field add to some of its rows, in the order of the samples.
class Collector {
 public:
  explicit Collector(int64_t at_once) : at_once_(at_once) {}

  // `place` is the number of the code, or of its sample.
  template <class Flush>
  void add(int64_t sample, int64_t place, int64_t row, double scale, const Flush& flush) {
    samples_[count_] = sample, places_[count_] = place, rows_[count_] = row;
    scales_[count_] = scale;
    if (++count_ == at_once_) drain(flush);
  }

  template <class Flush>
  void drain(const Flush& flush) {
    if (count_) flush(samples_, places_, rows_, scales_, count_);
    clear();
  }

  void clear() { count_ = 0; }

 private:
  const int64_t at_once_;
  int64_t count_ = 0;
  int64_t samples_[kAdditions], places_[kAdditions], rows_[kAdditions];
  double scales_[kAdditions];
};

// body(sample, place, row, scale) for each code of a field in some samples; false where one is wrong.
template <class Body>
bool for_each_code(const Call& call, int64_t i, std::pair<int64_t, int64_t> samples,
                   FirstWrong& wrong, const Body& body) {
  const int64_t count = call.count();
  for (int64_t s = samples.first; s < samples.second; ++s) {
    int64_t begin = s * count + i, end = begin + 1;
    if (call.bags()) end = call.begins[begin + 1], begin = call.begins[begin];
    const double scale = call.mean && call.bags() ? 1.0 / (end - begin) : 1;
    for (int64_t m = begin; m < end; ++m) {
      const int64_t code = call.code(call.bags() ? m * call.sample_stride
                                                 : s * call.sample_stride + i * call.field_stride);
      if (call.check && !call.names_row(i, code)) {
        wrong.found(m);
        return false;
      }
      body(s, call.bags() ? m : s, call.first[i] + code, scale);
    }
  }
  return true;
}

// The products of bags from those of their codes: `batch` for each field, in the order of the fields.
template <class C>
void add_bags(const Call& call, const C* of_codes, C* of_bags) {
  for (int64_t i = 0; i < call.count(); ++i) {
    for (int64_t s = 0; s < call.batch; ++s) {
      const int64_t bag = s * call.count() + i;
      const C* const first = of_codes + call.begins[bag];
      *of_bags++ = std::accumulate(first, of_codes + call.begins[bag + 1], C(0));
    }
  }
}

// The whole gradient of the weight. Parts, and the order within one, depend on the call alone.
Gradients dense_backward(const Checks& checks, const Call& call, const Rows& grad,
                         const Watched* watched) {
  const int64_t count = call.count(), item = call.item_bytes, bytes = compute_bytes(call);
  const EmbeddingLoops& loops = embedding_loops_for(call.dtype);
  Tensor values = empty(Shape{call.table_rows, call.width}, call.type);
  auto* const data = static_cast<char*>(values.mutable_data_ptr());

  const int64_t at_once = std::max<int64_t>(1, kPartBytes / std::max<int64_t>(1, call.width * bytes));
  std::vector<Part> parts;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t end = call.first[i] + call.rows_of[i];
    int64_t row = call.first[i];
    do {  // a table without rows has codes to refuse
      parts.push_back({i, row, std::min(row + at_once, end)});
      row += at_once;
    } while (row < end);
  }

  const int64_t additions =
      std::clamp<int64_t>(kBlockElements / std::max<int64_t>(call.width, 1), 1, kAdditions);
  std::vector<double> partial(parts.size());
  std::vector<Moments> partial_moments(watched ? parts.size() : 0);
  // Row products wait here: those of each code in bags, else those of fields that share a gate.
  const int64_t waiting = !watched      ? 0
                          : call.bags() ? call.code_count
                                        : watched->waiting() * call.batch;
  const Scratch shared(waiting * bytes);
  FirstWrong wrong;
  torch::stable::parallel_for(0, parts.size(), 1, [&](int64_t first, int64_t end) {
    std::unique_ptr<char[]> scratch;
    Collector collector(additions);
    for (int64_t p = first; p < end; ++p) {
      const Part& part = parts[p];
      const Lookup& field = call.fields[part.field];
      const int64_t elements = (part.end - part.first) * call.width;
      char* const target = data + part.first * call.width * item;
      // An empty tensor has no address, and memset takes none, of 0 bytes either.
      if (field.dead && elements) std::memset(target, 0, elements * item);
      // From the first samples row products are taken, and the first matter at all.
      const int64_t sampled = watched ? watched->plan.rows_of(part.field) : 0;
      const int64_t samples = !field.dead || field.learns ? call.batch : sampled;
      if (field.dead && samples == 0) continue;
      char* totals = nullptr;
      if (!field.dead) {
        if (item != bytes && !scratch) scratch.reset(new char[at_once * call.width * bytes]);
        totals = item == bytes ? target : scratch.get();
        if (elements) std::memset(totals, 0, elements * bytes);
      }
      const int64_t slot = watched ? watched->parts[part.field] : -1;
      bool watches = false;
      const auto flush = [&](const int64_t* flushed, const int64_t* places, const int64_t* rows,
                             const double* scales, int64_t size) {
        Rows own = grad;
        own.data = static_cast<const char*>(grad.data) +
                   part.field * call.width * grad.column_stride * item;
        Additions added{flushed,    places,  rows,    call.mean ? scales : nullptr, size,
                        part.first, watches, nullptr, nullptr};
        if (watches) {
          added.row_scale = watched->plan.row_scale();
          if (call.bags()) {
            added.products = shared.aligned;
          } else if (slot >= 0) {
            added.products = shared.aligned + slot * call.batch * bytes;
          }
        }
        const Moments moments = loops.scatter(field.learns || watches ? call.weight : Rows{}, own,
                                              call.width, field.factor, added, totals);
        partial[p] += moments.sum;
        if (watches) partial_moments[p] += moments;
      };
      bool right = true;
      for (const auto& range : {std::pair(int64_t{0}, sampled), std::pair(sampled, samples)}) {
        watches = range.first < sampled;
        right = right && for_each_code(call, part.field, range, wrong,
                                       [&](int64_t sample, int64_t place, int64_t row, double scale) {
                                         if (row < part.first || row >= part.end) return;
                                         collector.add(sample, place, row, scale, flush);
                                       });
        if (right) collector.drain(flush);
      }
      if (!right) {
        collector.clear();
        continue;  // a field after it may have a wrong code of an earlier sample
      }
      if (totals && item != bytes) loops.round(totals, elements, target);
    }
  });
  wrong.refuse(checks, call);
  Gradients gradients{empty(Shape{0}, ScalarType::Long), values, std::vector<double>(count),
                      std::nullopt};
  for (size_t p = 0; p < parts.size(); ++p) gradients.sums[parts[p].field] += partial[p];
  if (watched && call.bags()) {
    std::vector<int64_t> every(count);
    std::iota(every.begin(), every.end(), 0);
    const Scratch of_bags(count * call.batch * bytes);
    if (bytes == 8) {
      add_bags(call, reinterpret_cast<const double*>(shared.aligned),
               reinterpret_cast<double*>(of_bags.aligned));
    } else {
      add_bags(call, reinterpret_cast<const float*>(shared.aligned),
               reinterpret_cast<float*>(of_bags.aligned));
    }
    gradients.moments = watched->plan.collect(nullptr, 0, every, of_bags.aligned);
  } else if (watched) {
    std::vector<Moments> moments(count);
    for (size_t p = 0; p < parts.size(); ++p) moments[parts[p].field] += partial_moments[p];
    gradients.moments = watched->plan.collect(moments.data(), 1, watched->parts, shared.aligned);
  }
  return gradients;
}

Gradients backward(const Tensor& grad, const Tensor& weight, const Tensor& codes,
                   const Shape& offsets, const MaybeTensor& bags, bool mean, bool sparse, bool look,
                   const GateArguments& gates, const MomentArguments* moments) {
  const Checks checks{"gated_embedding_concat_backward"};
  const Call call = check(checks, &grad, weight, codes, offsets, bags, mean, look, gates);
  std::optional<MomentPlan> plan;
  std::optional<Watched> watched;
  if (moments) {
    plan.emplace(checks, *moments, gates.x, call.gates, call.batch, "field");
    watched.emplace(*plan, call);
  }
  const auto backward = sparse ? sparse_backward : dense_backward;
  Gradients gradients = backward(checks, call, rows_of(grad), watched ? &*watched : nullptr);
  gradients.grad_x = grad_of_x(gates.x, call.gates, gradients.sums);
  return gradients;
}

std::tuple<Tensor, Tensor, Tensor> gated_embedding_concat_backward(
    const Tensor& grad, const Tensor& weight, const Tensor& codes, const Shape& offsets,
    const MaybeTensor& bags, const Tensor& x, const Tensor& epsilon, const MaybeTensor& scale,
    const MaybeTensor& ungated, bool mean, bool sparse, bool look, int64_t kind, double alpha,
    double tau) {
  const GateArguments gates{x, epsilon, scale, ungated, kind, alpha, tau};
  const Gradients gradients =
      backward(grad, weight, codes, offsets, bags, mean, sparse, look, gates, nullptr);
  return {gradients.rows, gradients.values, gradients.grad_x};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gated_embedding_concat_backward_moments(
    const Tensor& grad, const Tensor& weight, const Tensor& codes, const Shape& offsets,
    const MaybeTensor& bags, const Tensor& x, const Tensor& epsilon, const MaybeTensor& scale,
    const MaybeTensor& ungated, bool mean, bool sparse, bool look, const Tensor& moments,
    const std::optional<Shape>& gate_of_field, const MaybeTensor& dead_rows,
    const MaybeTensor& row_scale, int64_t kind, double alpha, double tau) {
  const GateArguments gates{x, epsilon, scale, ungated, kind, alpha, tau};
  const MomentArguments moment_arguments{moments, gate_of_field, dead_rows, row_scale};
  const Gradients gradients =
      backward(grad, weight, codes, offsets, bags, mean, sparse, look, gates, &moment_arguments);
  return {gradients.rows, gradients.values, gradients.grad_x, *gradients.moments};
}

}  // namespace
}  // namespace lpfs

STABLE_TORCH_LIBRARY_IMPL(lpfs, CPU, library) {
  library.impl("gated_embedding_concat", TORCH_BOX(&lpfs::gated_embedding_concat));
  library.impl("gated_embedding_concat_backward",
               TORCH_BOX(&lpfs::gated_embedding_concat_backward));
  library.impl("gated_embedding_concat_backward.moments",
               TORCH_BOX(&lpfs::gated_embedding_concat_backward_moments));
}
