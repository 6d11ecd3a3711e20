"""The C++ extension, nothing else; pyproject.toml has the rest."""

import sys

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension


class Build(BuildExtension):
    """Without a compiler the package installs all the same: its operators run in plain PyTorch."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            print(f"lpfs: no C++ library, operators on the CPU will be slower: {reason}")


extension = CppExtension(
    "lpfs_kernels._C",
    [
        "csrc/library.cpp",
        "csrc/gated_concat.cpp",
        "csrc/gated_concat_loops.cpp",
        "csrc/proximal_sgd.cpp",
    ],
    depends=["csrc/gates.h", "csrc/gated_concat_loops.h", "csrc/launch.h"],
    extra_compile_args=[
        "-O3",
        "-fvisibility=hidden",
        # LibTorch's stable ABI of 2.10: one binary for every later torch and every Python.
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DTORCH_STABLE_ONLY",
        "-DPy_LIMITED_API=0x030A0000",
        # parallel_for has threads only in code built with OpenMP; Apple's compiler lacks it.
        *([] if sys.platform == "darwin" else ["-fopenmp"]),
    ],
    extra_link_args=[] if sys.platform == "darwin" else ["-fopenmp"],
    py_limited_api=True,
)
extension.optional = True

setup(ext_modules=[extension], cmdclass={"build_ext": Build})
