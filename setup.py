"""Builds the compiled library; everything else about the package is in pyproject.toml.

One shared library on LibTorch's stable ABI, so that the same binary works with every torch from
2.11 on. Plain setuptools: torch's own extension classes tie a build to one torch and refuse CUDA
sources beside a CPU torch.

    CXX                   the C++ compiler; without one the package installs with the reference only
    STANLEY_FAST_CPP=1    fail if there is no C++ compiler
    STANLEY_FAST_CUDA     0 leaves out the CUDA sources, 1 fails if there is no nvcc
    TORCH_CUDA_ARCH_LIST  which GPUs to compile for, "8.0;9.0+PTX" unless told
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020b000000000000"  # 2.11, the oldest torch the library runs with

# -fno-trapping-math lets the compiler vectorise selects; NaN and infinity keep their meaning.
CXX_FLAGS = shlex.split(
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -fno-math-errno -fno-trapping-math"
)
NVCC_FLAGS = shlex.split("-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden")
LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
        "-mprefer-vector-width=512",
    ],
}
PER_LEVEL = ("cpu_kernels.cpp", "cpu_chain.cpp")  # compiled once for each


class Edge(NamedTuple):
    """A command that makes `output` from `inputs`; `depfile` lists further ones, as gcc does."""

    command: list[str]
    inputs: list[str]
    output: str
    depfile: str = ""


def compiler() -> list[str] | None:
    """The C++ compiler as a command, or None."""
    asked = os.environ.get("CXX")
    for command in [asked] if asked else ["g++", "clang++", "c++"]:
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    if os.environ.get("STANLEY_FAST_CPP") == "1":
        sys.exit("stanley-fast: STANLEY_FAST_CPP=1, but there is no C++ compiler")
    return None


def nvcc() -> str | None:
    """The CUDA compiler, or None; whatever build of torch is installed, and with no GPU present."""
    asked = os.environ.get("STANLEY_FAST_CUDA")
    if asked == "0":
        return None
    homes = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin"]
    found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(map(str, homes)))
    if found is None and asked == "1":
        sys.exit("stanley-fast: STANLEY_FAST_CUDA=1, but nvcc is neither on PATH nor in CUDA_HOME")
    return found


def gencode() -> list[str]:
    """nvcc's flags for TORCH_CUDA_ARCH_LIST, in torch's own notation: "8.0 9.0+PTX" or with ;."""
    flags = []
    for arch in os.environ.get("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX").replace(";", " ").split():
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def edge(command: list[str], source: Path, target: Path) -> Edge:
    depfile = f"{target}.d"
    words = [*command, "-MMD", "-MF", depfile, "-c", str(source), "-o", str(target)]
    return Edge(words, [str(source)], str(target), depfile)


def compile_edges(cxx: list[str], cuda: str | None, build: Path) -> list[Edge]:
    """One edge per object file."""
    from torch.utils import cpp_extension  # only where there is something to compile

    includes = [f"-I{path}" for path in cpp_extension.include_paths()]
    cxx = [*cxx, *CXX_FLAGS, f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *includes]
    levels = LEVELS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}
    edges = []
    for source in sorted(ROOT.glob("csrc/**/*.cpp")):
        name = "_".join(source.relative_to(ROOT / "csrc").parts)
        if source.parent.name == "cuda" and cuda is None:
            continue
        if name in PER_LEVEL:
            for level, flags in levels.items():
                command = [*cxx, f"-DSTANLEY_LEVEL={level}", *flags]
                edges.append(edge(command, source, build / f"{name}.{level}.o"))
        else:
            edges.append(edge(cxx, source, build / f"{name}.o"))
    for source in sorted(ROOT.glob("csrc/**/*.cu")) if cuda else []:
        name = "_".join(source.relative_to(ROOT / "csrc").parts)
        edges.append(edge([cuda, *NVCC_FLAGS, *gencode()], source, build / f"{name}.o"))
    return edges


class BuildLibrary(build_ext):
    """Compiles csrc/ with ninja where it is present, one file after another where it is not."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        if compiler() is None:
            print("stanley-fast: no C++ compiler; installing with the reference backend only")
            self.extensions = []
            return
        super().run()

    def build_extension(self, ext: Extension) -> None:
        from torch.utils import cpp_extension

        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        cxx, cuda = compiler() or [], nvcc()
        cuda = cuda if any(ROOT.glob("csrc/**/*.cu")) else None
        edges = compile_edges(cxx, cuda, build)
        objects = [e.output for e in edges]
        # nvcc knows where CUDA's runtime is; static, so that the library loads without CUDA.
        linker = [cuda, "-cudart", "static"] if cuda else cxx
        paths = [f"-L{path}" for path in cpp_extension.library_paths()]
        link = [*linker, "-shared", *objects, *paths, "-ltorch_cpu", "-lc10", "-o", str(library)]
        run_edges([*edges, Edge(link, objects, str(library))], build)


class Wheel(bdist_wheel):
    """The library has no Python API: one wheel serves every Python on a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def run_edges(edges: list[Edge], build: Path) -> None:
    """ninja runs them in parallel, and only those whose inputs or commands changed."""
    ninja = shutil.which("ninja")
    if ninja is None:
        for e in edges:
            print(shlex.join(e.command), flush=True)
            subprocess.run(e.command, check=True)
        return
    lines = ["rule run", "  command = $words"]
    for e in edges:
        output, *inputs = [re.sub(r"([$ :])", r"$\1", path) for path in [e.output, *e.inputs]]
        lines.append(f"build {output}: run {' '.join(inputs)}")
        lines.append(f"  words = {shlex.join(e.command).replace('$', '$$')}")
        lines += [f"  depfile = {e.depfile}", "  deps = gcc"] if e.depfile else []
    (build / "build.ninja").write_text("\n".join(lines) + "\n")
    subprocess.run([ninja, "-C", str(build)], check=True)


setup(
    ext_modules=[Extension("stanley_fast._library", sources=[])],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
