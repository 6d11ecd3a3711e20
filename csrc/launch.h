// What the operators share before a launch: argument checks, in the words of lpfs_kernels/launch.py.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace lpfs {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// An argument, or an element of one that is a list.
struct Name {
  const char* argument;
  int64_t index = -1;
};

inline std::ostream& operator<<(std::ostream& out, const Name& name) {
  out << name.argument;
  return name.index < 0 ? out : out << '[' << name.index << ']';
}

template <class Sizes>
std::string list(const Sizes& sizes) {
  std::ostringstream text;
  text << '[';
  for (size_t i = 0; i < sizes.size(); ++i) text << (i ? ", " : "") << sizes[i];
  text << ']';
  return text.str();
}

inline const char* name_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Double: return "float64";
    case ScalarType::Float: return "float32";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::ComplexFloat: return "complex64";
    case ScalarType::ComplexDouble: return "complex128";
    default: return torch::headeronly::toString(dtype);
  }
}

template <class... Parts>
std::string text(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

struct Checks {
  const char* operator_name;

  template <class Got>
  [[noreturn]] void fault(Name name, const std::string& expected, const Got& got) const {
    throw std::runtime_error(
        text(operator_name, ": ", name, " must ", expected, ", got ", got));
  }

  // `like` completes the sentence: " like params[0]", or nothing.
  template <class... Like>
  void dtype(Name name, const Tensor& tensor, ScalarType expected, const Like&... like) const {
    if (tensor.scalar_type() != expected) {
      fault(name, text("be ", name_of(expected), like...), name_of(tensor.scalar_type()));
    }
  }

  template <class Sizes, class... Like>
  void shape(Name name, const Tensor& tensor, const Sizes& expected, const Like&... like) const {
    const auto sizes = tensor.sizes();
    if (!std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) {
      fault(name, text("have shape ", list(expected), like...), list(sizes));
    }
  }
};

// malloc maps memory anew for each large tensor. Then the first write to each 4 KiB is a page fault, or
// to each 2 MiB with huge pages. The neighbours on the first and the last page do not mind.
constexpr int64_t kHugePageItems = 1 << 20;

inline void ask_for_huge_pages(void* data, int64_t bytes) {
#if defined(__linux__)
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(data) / page * page;
  const auto end = reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes);
  // Advice that is not taken, or not understood, changes nothing.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// torch::stable::empty goes through the dispatcher: five times the price, and a list pays it often.
template <class Sizes>
Tensor empty(const Sizes& sizes, ScalarType dtype) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  Shape strides(sizes.size(), 1);
  for (size_t d = sizes.size(); d-- > 1;) {
    strides[d - 1] = strides[d] * std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                               to<int32_t>(from(dtype)), aoti_torch_device_type_cpu(), 0, &handle));
  Tensor tensor(handle);
  const int64_t items = sizes.size() ? sizes[0] * strides[0] : 1;
  if (items >= kHugePageItems) {
    ask_for_huge_pages(tensor.mutable_data_ptr(), items * tensor.element_size());
  }
  return tensor;
}

template <class T>
T at(const Tensor& vector, int64_t i) {
  return static_cast<const T*>(vector.const_data_ptr())[i * vector.strides()[0]];
}

// The scratch of one thread.
struct Scratch {
  std::unique_ptr<char[]> memory;
  char* aligned;

  explicit Scratch(int64_t bytes) : memory(new char[bytes + 64]) {
    const auto address = reinterpret_cast<uintptr_t>(memory.get());
    aligned = memory.get() + (-address & 63);
  }
};

}  // namespace lpfs
