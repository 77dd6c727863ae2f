"""Runs the tests under the oldest torch, with the library as it is built beside the newest.

    python tests/oldest_torch.py FOLDER [pytest's arguments]

That one binary serves every torch from 2.11 on is shown here. pip has only the CUDA build of that
torch, which does not load without CUDA's libraries: FOLDER gets it (1.1 GB, unless it is there) and
a stub for each library that is missing, whose functions all say that there is no device. Everything
but torch is the environment's.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

TORCH = "torch==2.11.0"
TESTS = ["ops", "ops_errors", "ops_gradients", "ops_invariance", "ops_torch", "noise", "keys"]
NO_DEVICE = 100  # cudaErrorNoDevice and CUDA_ERROR_NO_DEVICE


def output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_loadable(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def needed(binary: Path) -> list[str]:
    return re.findall(r"\(NEEDED\).*\[(.*)\]", output("readelf", "-dW", str(binary)))


def binaries_of(torch_lib: Path) -> list[Path]:
    """Those that `import torch` loads."""
    found = [torch_lib / "libtorch_python.so"]
    for binary in found:
        inside = (torch_lib / name for name in needed(binary))
        found += [path for path in inside if path.exists() and path not in found]
    return found


def wanted_symbols(binaries: list[Path]) -> dict[str, set[str]]:
    """What the binaries use and don't define, by version: "" for none."""
    wanted: dict[str, set[str]] = defaultdict(set)
    defined: set[str] = set()
    for binary in binaries:
        for line in output("nm", "-D", "--no-demangle", str(binary)).splitlines():
            kind, symbol = line.split()[-2:]
            name, _, version = symbol.replace("@@", "@").partition("@")
            if kind in "Uw":
                wanted[version].add(name)
            else:
                defined.add(name)
    return {version: names - defined for version, names in wanted.items()}


def version_of(soname: str, binaries: list[Path]) -> str:
    """The version of `soname`'s symbols that the binaries ask for, "" for none."""
    for binary in binaries:
        sections = output("readelf", "-VW", str(binary)).split("File: ")
        for section in sections[1:]:
            if section.split()[0] == soname:
                return re.findall(r"Name: (\S+)", section)[0]
    return ""


def stub(soname: str, names: set[str], version: str, folder: Path) -> None:
    source, script = folder / f"{soname}.c", folder / f"{soname}.map"
    functions = (f"int {name}(void) {{ return {NO_DEVICE}; }}" for name in sorted(names))
    source.write_text("\n".join(functions))
    script.write_text(f"{version} {{ global: *; }};\n")
    command = ["gcc", "-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{soname}"]
    output(*command, f"-Wl,--version-script={script}", str(source), "-o", str(folder / soname))


def make_stubs(torch_lib: Path, folder: Path) -> None:
    """A library for every one that torch's need and that can't be had here."""
    folder.mkdir(exist_ok=True)
    binaries = binaries_of(torch_lib)
    names = {name for binary in binaries for name in needed(binary)}
    missing = sorted(
        name for name in names if not (torch_lib / name).exists() and not is_loadable(name)
    )
    wanted = wanted_symbols(binaries)
    here = [ctypes.CDLL(name) for name in ("libstdc++.so.6", "libgomp.so.1")]
    system = {name for name in wanted[""] if any(hasattr(lib, name) for lib in here)}
    for soname in missing:  # a symbol without a version may be in any of them
        version = version_of(soname, binaries)
        stub(soname, wanted[version] - system, version, folder)


def main(folder: Path, arguments: list[str]) -> int:
    site, stubs = folder / "site", folder / "stubs"
    if not (site / "torch").exists():
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--target", str(site), TORCH]
        subprocess.run(pip, check=True)
    make_stubs(site / "torch" / "lib", stubs)
    path = os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "LD_LIBRARY_PATH": str(stubs)}
    check = f"import torch; assert {TORCH!r} == 'torch==' + torch.__version__.split('+')[0]"
    subprocess.run([sys.executable, "-c", check], check=True, env=environment)
    here = Path(__file__).parent
    tests = arguments or [str(here / f"test_{name}.py") for name in TESTS]
    return subprocess.run([sys.executable, "-m", "pytest", *tests], env=environment).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
