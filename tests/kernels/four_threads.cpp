// What `make sanitized SANITIZERS=thread` builds in the place of PyTorch's torch_parallel_for: four
// threads in every parallel loop, however little there is to do. The thread sanitizer knows how these
// begin and end; of PyTorch's pool, which it was not built into, it would report every hand-over.
#include <torch/csrc/stable/c/shim.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

extern "C" AOTITorchError torch_parallel_for(int64_t begin, int64_t end, int64_t, ParallelFunc body,
                                             void* context) {
  constexpr int64_t kThreads = 4;
  const int64_t share = (std::max<int64_t>(end - begin, 0) + kThreads - 1) / kThreads;
  std::atomic<bool> failed = false;
  std::vector<std::thread> threads;
  for (int64_t first = begin; first < end; first += share) {
    threads.emplace_back([&, first] {
      try {
        body(first, std::min(first + share, end), context);
      } catch (...) {
        failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return failed ? AOTI_TORCH_FAILURE : AOTI_TORCH_SUCCESS;
}
