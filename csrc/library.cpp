// The schemas, so that a program without Python has the operators too.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(lpfs, library) {
  library.def(
      "gated_concat(Tensor[] embeddings, Tensor x, Tensor epsilon, int[]? widths, Tensor? scale, "
      "Tensor? ungated, int kind, float alpha, float tau) -> Tensor");
  library.def(
      "gated_concat_backward(Tensor grad, Tensor[] embeddings, Tensor x, Tensor epsilon, "
      "int[]? widths, Tensor? scale, Tensor? ungated, int kind, float alpha, float tau) "
      "-> Tensor[]");
  library.def(
      "gated_concat.moments(Tensor[] embeddings, Tensor x, Tensor epsilon, int[]? widths, "
      "Tensor? scale, Tensor? ungated, Tensor moments, int[]? gate_of_field, Tensor? dead_rows, Tensor? row_scale, "
      "int kind, float alpha, float tau) -> Tensor");
  library.def(
      "gated_concat_backward.moments(Tensor grad, Tensor[] embeddings, Tensor x, Tensor epsilon, "
      "int[]? widths, Tensor? scale, Tensor? ungated, Tensor moments, int[]? gate_of_field, "
      "Tensor? dead_rows, Tensor? row_scale, int kind, float alpha, float tau) -> Tensor[]");
  library.def(
      "gated_cross_concat(Tensor embeddings, Tensor pairs, Tensor x, Tensor epsilon, "
      "Tensor? scale, Tensor? ungated, bool before, int kind, float alpha, float tau) -> Tensor");
  library.def(
      "gated_cross_concat_backward(Tensor grad, Tensor embeddings, Tensor pairs, Tensor x, "
      "Tensor epsilon, Tensor? scale, Tensor? ungated, bool before, int kind, float alpha, "
      "float tau) -> (Tensor grad_embeddings, Tensor grad_x)");
  library.def(
      "gated_cross_concat.moments(Tensor embeddings, Tensor pairs, Tensor x, Tensor epsilon, "
      "Tensor? scale, Tensor? ungated, bool before, Tensor moments, int[]? gate_of_field, "
      "Tensor? dead_rows, Tensor? row_scale, int kind, float alpha, float tau) -> Tensor");
  library.def(
      "gated_cross_concat_backward.moments(Tensor grad, Tensor embeddings, Tensor pairs, Tensor x, "
      "Tensor epsilon, Tensor? scale, Tensor? ungated, bool before, Tensor moments, "
      "int[]? gate_of_field, Tensor? dead_rows, Tensor? row_scale, int kind, float alpha, float tau) "
      "-> (Tensor grad_embeddings, Tensor grad_x, Tensor moments)");
  library.def(
      "gated_embedding_concat(Tensor weight, Tensor codes, int[] offsets, Tensor? bags, Tensor x, "
      "Tensor epsilon, Tensor? scale, Tensor? ungated, bool mean, bool sparse, bool check, int kind, "
      "float alpha, float tau) -> Tensor");
  library.def(
      "gated_embedding_concat_backward(Tensor grad, Tensor weight, Tensor codes, int[] offsets, "
      "Tensor? bags, Tensor x, Tensor epsilon, Tensor? scale, Tensor? ungated, bool mean, "
      "bool sparse, bool check, int kind, float alpha, float tau) "
      "-> (Tensor rows, Tensor values, Tensor grad_x)");
  library.def(
      "gated_embedding_concat.moments(Tensor weight, Tensor codes, int[] offsets, Tensor? bags, "
      "Tensor x, Tensor epsilon, Tensor? scale, Tensor? ungated, bool mean, bool sparse, bool check, "
      "Tensor moments, int[]? gate_of_field, Tensor? dead_rows, Tensor? row_scale, int kind, float alpha, float tau) "
      "-> Tensor");
  library.def(
      "gated_embedding_concat_backward.moments(Tensor grad, Tensor weight, Tensor codes, "
      "int[] offsets, Tensor? bags, Tensor x, Tensor epsilon, Tensor? scale, Tensor? ungated, "
      "bool mean, bool sparse, bool check, Tensor moments, int[]? gate_of_field, Tensor? dead_rows, Tensor? row_scale, "
      "int kind, float alpha, float tau) "
      "-> (Tensor rows, Tensor values, Tensor grad_x, Tensor moments)");
  library.def(
      "proximal_sgd_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] momentum_buffers, "
      "Tensor lr, Tensor lam, Tensor? budget, float momentum, float dampening, bool nesterov, "
      "bool maximize, bool nonnegative=False) -> (Tensor live, Tensor lam)");
  library.def(
      "removal_costs_(Tensor(a!) known, Tensor moments, Tensor x, Tensor epsilon, Tensor? scale, "
      "Tensor? ungated, Tensor? field_of_unit, float horizon, bool mean, float loss_scale, "
      "float per_row, int kind, float alpha, float tau) -> Tensor");
  library.def(
      "removal_pull_(Tensor(a!) known, Tensor(b!)? alone, Tensor moments, Tensor(c!) x, "
      "Tensor(d!) amplitude, Tensor(e!) scale, Tensor unamplified, Tensor epsilon, "
      "Tensor? ungated, Tensor? gate_of_field, Tensor? field_of_unit, Tensor[] stand_ins, "
      "Tensor? prices, Tensor? rate, float horizon, bool mean, float loss_scale, float per_row, "
      "float largest_move, float amplification, float least, float most, int kind, float alpha, "
      "float tau) -> (Tensor found, Tensor apart, Tensor pull)");
  library.def(
      "rows_adagrad_(Tensor(a!)[] weights, Tensor(b!)[] sums, Tensor(c!)[] steps, Tensor[] rows, "
      "Tensor[] grads, Tensor lr, float lr_decay, float eps, float weight_decay, bool maximize) -> ()");
  library.def(
      "rows_adam_(Tensor(a!)[] weights, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] steps, Tensor[] rows, Tensor[] grads, Tensor lr, float beta1, float beta2, "
      "float eps, float weight_decay, bool maximize) -> ()");
  library.def(
      "rows_sgd_(Tensor(a!)[] weights, Tensor(b!)[] momentum_buffers, Tensor[] rows, Tensor[] grads, "
      "Tensor lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize) "
      "-> ()");
}
