// Runs a gated model without Python: gated <operators> <model.pt2> <rows>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdlib>
#include <iostream>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 4) {
    std::cerr << "usage: " << argv[0] << " <lpfs_kernels/_C.*.so> <model.pt2> <rows>\n";
    return 2;
  }
  // Loading the library defines the operators and their CPU kernels.
  if (!dlopen(argv[1], RTLD_NOW)) {
    std::cerr << dlerror() << '\n';
    return 1;
  }
  const c10::InferenceMode inference;
  torch::inductor::AOTIModelPackageLoader model(argv[2]);

  const int64_t rows = std::atoll(argv[3]);
  std::vector<at::Tensor> fields;
  for (const int64_t width : {3, 1, 4}) {
    const double step = 1.0 / (10.0 * (fields.size() + 1));
    fields.push_back(torch::arange(rows * width, torch::kFloat).view({rows, width}) * step);
  }
  const at::Tensor predictions = model.run(fields)[0].contiguous();
  for (int64_t i = 0; i < predictions.numel(); ++i) {
    std::cout << predictions.data_ptr<float>()[i] << '\n';
  }
}
