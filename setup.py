"""Builds the compiled library; everything else about the package is in pyproject.toml.

One shared library on LibTorch's stable ABI, so that the same binary works with every torch from 2.11
on. Plain setuptools: torch's own extension classes tie a build to one torch and refuse CUDA sources
beside a CPU torch. Without a C++ compiler the package installs all the same, with the reference
backend; STANLEY_FAST_CPP=1 makes that an error.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
TORCH_TARGET = "0x020b000000000000"  # 2.11, the oldest torch the library runs with

# -fno-trapping-math lets the compiler vectorise selects; NaN and infinity keep their meaning.
CXX_FLAGS = shlex.split(
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -Wall -fno-math-errno -fno-trapping-math"
)
NVCC_FLAGS = shlex.split("-std=c++17 -O3 -Xcompiler -fPIC,-fvisibility=hidden -cudart static")
LEVELS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [
        *["-mavx2", "-mfma", "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl"],
        "-mprefer-vector-width=512",
    ],
}


def compiler() -> list[str] | None:
    """The C++ compiler as a command, or None."""
    asked = os.environ.get("CXX")
    for command in [asked] if asked else ["g++", "clang++", "c++"]:
        words = shlex.split(command)
        if shutil.which(words[0]):
            return words
    return None


def units(build: Path) -> list[tuple[Path, Path, list[str]]]:
    """Source, object and extra flags of every translation unit."""
    levels = LEVELS if platform.machine() in ("x86_64", "AMD64") else {"baseline": []}
    found = []
    for source in sorted([*ROOT.glob("csrc/**/*.cpp"), *ROOT.glob("csrc/**/*.cu")]):
        name = "_".join(source.relative_to(ROOT / "csrc").parts)
        if name == "cpu_kernels.cpp":  # compiled once per vector level
            for level, flags in levels.items():
                found.append(
                    (source, build / f"{name}.{level}.o", [f"-DSTANLEY_LEVEL={level}", *flags])
                )
        else:
            found.append((source, build / f"{name}.o", []))
    return found


class BuildLibrary(build_ext):
    """Compiles csrc/ with ninja where it is present, one file after another where it is not."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"

    def run(self) -> None:
        cxx = compiler()
        if cxx is None:
            if os.environ.get("STANLEY_FAST_CPP") == "1":
                sys.exit("stanley-fast: STANLEY_FAST_CPP=1, but there is no C++ compiler")
            print("stanley-fast: no C++ compiler; installing with the reference backend only")
            self.extensions = []
            return
        self.cxx = cxx
        super().run()

    def build_extension(self, ext: Extension) -> None:
        from torch.utils import cpp_extension  # only where there is something to compile

        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        includes = [f"-I{path}" for path in cpp_extension.include_paths()]
        defines = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}"]
        edges = []
        for source, target, extra in units(build):
            command = [*self.cxx, *CXX_FLAGS, *defines, *includes, *extra]
            if source.suffix == ".cu":
                command = ["nvcc", *NVCC_FLAGS, *extra]
            depfile = f"{target}.d"
            command += ["-MMD", "-MF", depfile, "-c", str(source), "-o", str(target)]
            edges.append((command, [str(source)], str(target), depfile))
        objects = [target for _, _, target, _ in edges]
        paths = [f"-L{path}" for path in cpp_extension.library_paths()]
        link = [*self.cxx, "-shared", *objects, *paths, "-ltorch_cpu", "-lc10", "-o", str(library)]
        edges.append((link, objects, str(library), ""))
        run_edges(edges, build)


def run_edges(edges: list[tuple[list[str], list[str], str, str]], build: Path) -> None:
    """Runs each (command, inputs, output, depfile); ninja does it in parallel and incrementally."""
    ninja = shutil.which("ninja")
    if ninja is None:
        for command, *_ in edges:
            print(shlex.join(command), flush=True)
            subprocess.run(command, check=True)
        return
    lines = ["rule run", "  command = $command", "  depfile = $depfile", "  deps = gcc", ""]
    lines += ["rule link", "  command = $command", ""]
    for command, inputs, output, depfile in edges:
        rule = "run" if depfile else "link"
        escaped = [path.replace("$", "$$").replace(" ", "$ ") for path in [output, *inputs]]
        lines.append(f"build {escaped[0]}: {rule} {' '.join(escaped[1:])}")
        lines.append(f"  command = {shlex.join(command).replace('$', '$$')}")
        lines.append(f"  depfile = {depfile}" if depfile else "")
    (build / "build.ninja").write_text("\n".join(lines) + "\n")
    subprocess.run([ninja, "-C", str(build)], check=True)


setup(
    ext_modules=[Extension("stanley_fast._library", sources=[])],
    cmdclass={"build_ext": BuildLibrary},
)
