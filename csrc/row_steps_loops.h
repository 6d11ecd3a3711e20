// The vector loops of rows_adagrad_ and its sisters, chosen for the processor at run time. No torch
// header here or in the .cpp, see gated_concat_loops.h.
#pragma once

#include <cstdint>

#include "gated_concat_loops.h"

namespace lpfs {

// A row of the weight and the number of the gradient's row that belongs to it.
struct Entry {
  uint32_t row, number;
};
// Of no row: what stands behind the last entry, as often as entries are looked at ahead.
constexpr uint32_t kNoRow = ~uint32_t{0};
constexpr int64_t kEntriesAhead = 8;

enum class Rule { adagrad, rowwise_adagrad, adam, sgd, momentum };

// A step of one weight. `rate` is what it all is multiplied with in the end, `eps` is added to a root.
struct StepNumbers {
  double rate, eps = 0, weight_decay = 0, beta1 = 0, beta2 = 0, momentum = 0, dampening = 0;
  bool maximize = false, nesterov = false;
};

// A weight and its state: what a rule has of it, in the type that is computed in.
struct StepTarget {
  void *weight, *first, *second;
  int64_t width;
};

struct RowStepLoops {
  // Steps of the rows that begin among the entries from `begin` to `end`: the gradient of each is the
  // sum of its own, in their order. `totals` has room for one.
  void (*rows)(const StepNumbers& numbers, const StepTarget& target, Rows grads,
               const Entry* entries, int64_t begin, int64_t end, void* totals);
  // Steps of the rows from `begin` to `end`, whose gradients lie side by side.
  void (*dense)(const StepNumbers& numbers, const StepTarget& target, const void* grads,
                int64_t begin, int64_t end);
};

const RowStepLoops& row_step_loops_for(Rule rule, Dtype dtype);

}  // namespace lpfs
