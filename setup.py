"""Builds the compiled library and the host module; all else about the package is in pyproject.toml.

_library.so holds the kernels, on LibTorch's stable ABI: the same binary works with every torch from
2.11 on and with every Python. Plain setuptools: torch's own extension classes tie a build to one
torch and refuse CUDA sources beside a CPU torch. _host binds the headers below those kernels to
NumPy, _direct leads Python's small calls to the kernels. Those two are for one Python, so a wheel
is too.

    CXX                   the C++ compiler; without one the package installs with the reference only
    STANLEY_FAST_CPP=1    fail if there is no C++ compiler
    STANLEY_FAST_CUDA     0 leaves out the CUDA sources, 1 fails if there is no nvcc
    TORCH_CUDA_ARCH_LIST  which GPUs to compile for, "8.0;9.0+PTX" unless told
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
LIBRARY, HOST, DIRECT = (f"stanley_fast.{name}" for name in ("_library", "_host", "_direct"))
OLDEST_TORCH = (2, 11)  # that the library is built with and runs with

# -fno-trapping-math lets the compiler vectorise selects; NaN and infinity keep their meaning.
CXX_FLAGS = shlex.split(
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -Wno-psabi -fno-math-errno -fno-trapping-math"
)
NVCC_FLAGS = shlex.split("-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden")
# CUDA's runtime, which nvcc finds, is linked statically, so that the library loads without CUDA.
CUDA_LINK = shlex.split("-cudart static --no-device-link")
# In csrc/cpu, compiled for each vector level.
PER_LEVEL = {"kernels.cpp", "chain.cpp", "conv.cpp", "density.cpp", "metropolis.cpp"}
LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
        "-mprefer-vector-width=512",
    ],
}


class Edge(NamedTuple):
    """A command that makes `output` from `inputs`; `depfile` lists further ones, as gcc does."""

    command: list[str]
    inputs: list[str]
    output: str
    depfile: str = ""


# What there is to build with and for --------------------------------------------------------------


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


@cache
def nvcc() -> tuple[str, str] | tuple[None, str]:
    """The CUDA compiler and its version, or None and why; with any torch, and with no GPU."""
    asked = os.environ.get("STANLEY_FAST_CUDA")
    if asked == "0":
        return None, "STANLEY_FAST_CUDA=0"
    home = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    found = shutil.which("nvcc") or shutil.which("nvcc", path=str(home / "bin"))
    if found is None:
        why_not = "nvcc is neither on PATH nor in CUDA_HOME"
        if asked == "1":
            sys.exit(f"stanley-fast: STANLEY_FAST_CUDA=1, but {why_not}")
        return None, why_not
    says = subprocess.run([found, "--version"], check=True, capture_output=True, text=True).stdout
    return found, says.split(" V")[-1].split()[0]


def architectures() -> list[str]:
    """Those to compile for, in torch's notation; its list has spaces or semicolons between."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or "8.0;9.0+PTX"
    return asked.replace(";", " ").split()


def gencode() -> list[str]:
    """nvcc's flags for `architectures`."""
    flags = []
    for arch in architectures():
        number = arch.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if arch.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def needed(module: str) -> ModuleType:
    """A build requirement; without build isolation it may be missing."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        name = error.name or module
        sys.exit(f"stanley-fast: the build needs {name}: pip install {name}")


def torch_version() -> str:
    version = str(needed("torch").__version__)
    if tuple(map(int, version.split(".")[:2])) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        sys.exit(f"stanley-fast: the build needs torch {oldest} or later, found {version}")
    return version


def levels() -> dict[str, list[str]]:
    """Vector levels of the CPU kernels, each with its flags."""
    return LEVELS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}


def variants(source: Path) -> dict[str, list[str]]:
    """What to compile a CPU source with, by the suffixes of the object files."""
    if source.name not in PER_LEVEL:
        return {"": []}
    return {f".{level}": [f"-DSTANLEY_LEVEL={level}", *f] for level, f in levels().items()}


# What is built from what --------------------------------------------------------------------------


def compiled(command: list[str], source: Path, build: Path, variant: str = "") -> Edge:
    """One object file."""
    name = "_".join(source.relative_to(ROOT / "csrc").parts)
    target = build / f"{name}{variant}.o"
    words = [*command, "-MMD", "-MF", f"{target}.d", "-c", str(source), "-o", str(target)]
    return Edge(words, [str(source)], str(target), f"{target}.d")


def linked(linker: list[str], objects: list[Edge], libraries: list[str], target: Path) -> Edge:
    inputs = [e.output for e in objects]
    words = [*linker, "-shared", *inputs, *libraries, "-o", str(target)]
    return Edge(words, inputs, str(target))


def library(cxx: list[str], build: Path, target: Path) -> list[Edge]:
    """_library.so: kernels for the CPU and for CUDA, and their registration with torch."""
    torch, (major, minor) = needed("torch.utils.cpp_extension"), OLDEST_TORCH
    include = [f"-I{path}" for path in torch.include_paths()]
    command = [*cxx, *CXX_FLAGS, f"-DTORCH_TARGET_VERSION=0x{major:02x}{minor:02x}{0:012x}"]
    cuda, _ = nvcc()
    objects = []
    for source in sorted(ROOT.glob("csrc/cpu/*.cpp")):
        for variant, flags in variants(source).items():
            objects.append(compiled([*command, *flags, *include], source, build, variant))
    if cuda:
        for source in sorted(ROOT.glob("csrc/cuda/*.cpp")):
            objects.append(compiled([*command, *include], source, build))
        for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
            objects.append(compiled([cuda, *NVCC_FLAGS, *gencode()], source, build))
    libraries = [f"-L{path}" for path in torch.library_paths()] + ["-ltorch_cpu", "-lc10"]
    return [*objects, linked([cuda, *CUDA_LINK] if cuda else cxx, objects, libraries, target)]


def host(cxx: list[str], build: Path, target: Path) -> list[Edge]:
    """_host: csrc's headers on NumPy arrays, without torch; it also tells how it was built."""
    cuda, version = nvcc()
    facts = {
        "cuda": version if cuda else f"none: {version}",
        "cuda_architectures": architectures() if cuda else [],
        "vector_levels": list(levels()),
        "torch": torch_version(),
    }
    literal = json.dumps(json.dumps(facts))  # JSON in a C++ string
    headers = [needed("pybind11").get_include(), sysconfig.get_path("include")]
    command = [*cxx, *CXX_FLAGS, f"-DSTANLEY_BUILD={literal}", *[f"-I{path}" for path in headers]]
    objects = [compiled(command, source, build) for source in sorted(ROOT.glob("csrc/host/*.cpp"))]
    return [*objects, linked(cxx, objects, [], target)]


def direct(cxx: list[str], build: Path, target: Path) -> list[Edge]:
    """_direct: small calls from Python to _library.so, without torch's dispatcher."""
    headers = [*needed("torch.utils.cpp_extension").include_paths(), sysconfig.get_path("include")]
    command = [*cxx, *CXX_FLAGS, *[f"-I{path}" for path in headers]]
    objects = [compiled(command, path, build) for path in sorted(ROOT.glob("csrc/direct/*.cpp"))]
    return [*objects, linked(cxx, objects, [], target)]


class Build(build_ext):
    """Compiles csrc/ with ninja where it is present, one file after another where it is not."""

    def get_ext_filename(self, fullname: str) -> str:
        if fullname.endswith("_library"):
            return fullname.replace(".", "/") + ".so"
        return super().get_ext_filename(fullname)

    def run(self) -> None:
        if compiler() is None:
            print("stanley-fast: no C++ compiler; installing with the reference backend only")
            self.extensions = []
            return
        super().run()

    def build_extensions(self) -> None:
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        cxx = compiler() or []
        edges = []
        for name, of in ((LIBRARY, library), (HOST, host), (DIRECT, direct)):
            target = Path(self.get_ext_fullpath(name)).resolve()
            target.parent.mkdir(parents=True, exist_ok=True)
            edges += of(cxx, build, target)
        run_edges(edges, build)


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
    ext_modules=[Extension(name, sources=[]) for name in (LIBRARY, HOST, DIRECT)],
    cmdclass={"build_ext": Build},
)
