"""The C++ extensions, nothing else; pyproject.toml has the rest."""

import os
import shutil
import sys
from glob import glob

from setuptools import Extension, setup

try:
    from torch.utils.cpp_extension import BuildExtension, CppExtension, get_cxx_compiler
except ModuleNotFoundError:
    # An sdist needs none. To name torch among what a build requires would make pip download
    # another one, of gigabytes, for every isolated build.
    if not {"egg_info", "sdist"} & set(sys.argv):
        sys.exit(
            "lpfs is built against the torch of your environment, which was not found; with torch, "
            "setuptools and ninja in it, use: pip install --no-build-isolation"
        )
    setup()
    sys.exit()


# `make sanitized`: what checks itself while it runs, address,undefined or thread.
SANITIZERS = os.environ.get("LPFS_SANITIZERS", "")
OPTIMIZED = ["-O3", "-g0"]
SANITIZED = ["-O1", "-g1", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZERS}"]
# Functions that are not inlined do not have the instruction set of those that choose it.
SANITIZED += ["-fno-sanitize-recover=all", "-DLPFS_SANITIZED", "-march=native", "-Wno-psabi"]
COMPILE = [*(SANITIZED if SANITIZERS else OPTIMIZED), "-fvisibility=hidden"]
LINK = [f"-fsanitize={SANITIZERS}", "-Wl,-Bsymbolic"] if SANITIZERS else []
THREADS = ["tests/kernels/four_threads.cpp"] if SANITIZERS == "thread" else []


class Build(BuildExtension):
    """Without a compiler the package installs all the same: its operators run in plain PyTorch,
    and logs are read by pyarrow alone."""

    def build_extensions(self) -> None:
        compiler = get_cxx_compiler()
        try:
            if shutil.which(compiler.split()[0]) is None:
                raise RuntimeError(f"there is no compiler {compiler}")
            super().build_extensions()
        except Exception as error:
            if SANITIZERS:
                raise
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
        "csrc/gated_embedding.cpp",
        "csrc/gated_embedding_loops.cpp",
        "csrc/proximal_sgd.cpp",
        "csrc/removal_costs.cpp",
        "csrc/row_steps.cpp",
        "csrc/row_steps_loops.cpp",
        *THREADS,
    ],
    depends=glob("csrc/*.h"),
    extra_compile_args=[
        *COMPILE,
        # Comparisons in loops become vectors; nobody asks for floating-point exceptions.
        "-fno-trapping-math",
        # A root of a negative number is NaN, and no error number tells of it.
        "-fno-math-errno",
        # LibTorch's stable ABI of 2.10: one binary for every later torch. It uses no Python at all.
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-DTORCH_STABLE_ONLY",
    ],
    extra_link_args=LINK,
    py_limited_api=True,
)
# A sanitized build that fails must not leave the plain one to be tested.
extension.optional = not SANITIZERS
text = Extension(
    "lpfs.data._plain",
    ["csrc/plain_text.cpp"],
    extra_compile_args=COMPILE,
    extra_link_args=LINK,
    language="c++",
    py_limited_api=True,
    optional=not SANITIZERS,
)

setup(
    ext_modules=[extension, text],
    cmdclass={"build_ext": Build},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
