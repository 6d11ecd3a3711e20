#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

void copy(char* to, const char* from, int64_t bytes) {
#if defined(__x86_64__)
  const int64_t head = std::min<int64_t>(bytes, -reinterpret_cast<intptr_t>(to) & 63);
  std::memcpy(to, from, head);
  to += head, from += head, bytes -= head;
  for (; bytes >= 64; to += 64, from += 64, bytes -= 64) {
    for (int i = 0; i < 64; i += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(to + i),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i)));
    }
  }
  std::memcpy(to, from, bytes);
  _mm_sfence();
#else
  std::memcpy(to, from, bytes);
#endif
}

void streaming_copy(const torch::stable::Tensor& target, const torch::stable::Tensor& source) {
  auto* to = static_cast<char*>(target.mutable_data_ptr());
  auto* from = static_cast<const char*>(source.const_data_ptr());
  torch::stable::parallel_for(0, source.numel() * source.element_size(), 1 << 18,
                              [&](int64_t first, int64_t end) {
                                copy(to + first, from + first, end - first);
                              });
}

}  // namespace

STABLE_TORCH_LIBRARY(lpfs_bench, library) {
  library.def("streaming_copy(Tensor(a!) target, Tensor source) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(lpfs_bench, CPU, library) {
  library.impl("streaming_copy", TORCH_BOX(&streaming_copy));
}
