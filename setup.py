"""The C++ extension, nothing else; pyproject.toml has the rest."""

import shutil

from setuptools import setup
from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler


class Build(BuildExtension):
    """Without a compiler the package installs all the same: its operators run in plain PyTorch."""

    def build_extensions(self) -> None:
        compiler = get_cxx_compiler()
        try:
            if shutil.which(compiler.split()[0]) is None:
                raise RuntimeError(f"there is no compiler {compiler}")
            super().build_extensions()
        except Exception as error:
            reason = str(error).partition("\n")[0]
            print(f"lpfs: built without its C++ library, slower on the CPU: {reason}")


extension = CppExtension(
    "lpfs_kernels._C",
    [
        "csrc/library.cpp",
        "csrc/gate_arguments.cpp",
        "csrc/gated_concat.cpp",
        "csrc/gated_concat_loops.cpp",
        "csrc/gated_cross.cpp",
        "csrc/gated_cross_loops.cpp",
        "csrc/proximal_sgd.cpp",
    ],
    depends=[
        "csrc/gate_arguments.h",
        "csrc/gates.h",
        "csrc/gated_concat_loops.h",
        "csrc/gated_cross_loops.h",
        "csrc/launch.h",
        "csrc/vectors.h",
    ],
    extra_compile_args=[
        "-O3",
        "-g0",
        "-fvisibility=hidden",
        # Comparisons in loops become vectors; nobody asks for floating-point exceptions.
        "-fno-trapping-math",
        # LibTorch's stable ABI of 2.10: one binary for every later torch. It uses no Python at all.
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DTORCH_STABLE_ONLY",
    ],
    py_limited_api=True,
)
extension.optional = True

setup(
    ext_modules=[extension],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
