// What optimisers' operators share: the tensors that they change.
#pragma once

#include <functional>
#include <initializer_list>
#include <utility>

#include "launch.h"

namespace lpfs {

using Tensors = std::vector<Tensor>;

// Faults lists that are not as long as the first one, which must not be empty.
inline void check_lengths(const Checks& checks, const char* first, const Tensors& tensors,
                          std::initializer_list<std::pair<const char*, const Tensors*>> others) {
  if (tensors.empty()) checks.fault({first}, "hold at least one tensor", "none");
  for (const auto& [name, other] : others) {
    if (other->size() != tensors.size()) {
      checks.fault({name}, text("hold ", tensors.size(), " tensors like ", first), other->size());
    }
  }
}

// Faults tensors that are not contiguous, or that share memory.
inline void check_targets(const Checks& checks,
                          std::initializer_list<std::pair<const char*, const Tensors*>> lists) {
  struct Span {
    const char *begin, *end;
    Name name;
  };
  std::vector<Span> spans;
  for (const auto& [list_name, tensors] : lists) {
    for (size_t i = 0; i < tensors->size(); ++i) {
      const Tensor& tensor = (*tensors)[i];
      const Name name{list_name, static_cast<int64_t>(i)};
      if (!tensor.is_contiguous()) {
        checks.fault(name, "be contiguous", "strides " + list(tensor.strides()));
      }
      const auto* begin = static_cast<const char*>(tensor.const_data_ptr());
      const int64_t bytes = tensor.numel() * tensor.element_size();
      if (bytes) spans.push_back({begin, begin + bytes, name});
    }
  }
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return std::less<>()(a.begin, b.begin); });
  for (size_t i = 1; i < spans.size(); ++i) {
    if (std::less<>()(spans[i].begin, spans[i - 1].end)) {
      throw std::runtime_error(text(checks.operator_name, ": ", spans[i - 1].name, " and ",
                                    spans[i].name, " must not overlap in memory"));
    }
  }
}

}  // namespace lpfs
