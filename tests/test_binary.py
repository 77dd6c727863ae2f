"""The compiled library: what it needs of others, and that it forks."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from stanley_fast.backends import LIBRARY

# What a build with CUDA asks for; the CUDA runtime inside needs most of the C library's names.
LISTED = set((Path(__file__).parent / "undefined_symbols.txt").read_text().split())
TORCH = re.compile(r"(aoti_)?torch_\w+")  # its C interface, the same from 2.11 on
SYSTEM = {
    *["libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0"],
    *["libstdc++.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"],
}
RUNTIME = "libstdc++.so.6", "libgcc_s.so.1", "libpthread.so.0", "libdl.so.2", "librt.so.1"


def binutils(tool: str, *arguments: str) -> str:
    assert shutil.which(tool), f"this test needs {tool}, of binutils"
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


def needed(binary: str | Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", binutils("readelf", "-d", "-W", str(binary))))


def host_module() -> str:
    spec = find_spec("stanley_fast._host")
    assert spec is not None
    assert spec.origin is not None
    return spec.origin


# Symbols -----------------------------------------------------------------------------------------


def test_undefined_symbols_are_listed(compiled: None) -> None:
    """Those that must be there: a weak one may stay undefined."""
    lines = binutils("nm", "-D", "--undefined-only", "--no-demangle", str(LIBRARY)).splitlines()
    undefined = {name.split("@")[0] for kind, name in map(str.split, lines) if kind == "U"}
    assert any(TORCH.fullmatch(name) for name in undefined)
    assert undefined - LISTED == set()


def test_the_list_asks_only_for_torchs_c_interface_and_the_system() -> None:
    system = [ctypes.CDLL(name) for name in RUNTIME]
    others = {name for name in LISTED if not any(hasattr(library, name) for library in system)}
    assert {name for name in others if not TORCH.fullmatch(name)} == set()


def test_library_needs_no_cuda_and_no_python(compiled: None) -> None:
    assert needed(LIBRARY) - SYSTEM == {"libtorch_cpu.so", "libc10.so"}


def test_library_exports_its_own_names_alone(compiled: None) -> None:
    """A CUDA runtime that it showed to others would take the place of torch's, or the reverse."""
    lines = binutils("nm", "-D", "--defined-only", "--no-demangle", str(LIBRARY)).splitlines()
    defined = {name for _, kind, name in map(str.split, lines) if kind not in "VWu"}
    ours = {name for name in defined if name.startswith("stanley_fast_")}
    assert ours
    assert defined - ours <= {"__bss_start", "_edata", "_end"}  # the linker's


def test_host_module_needs_no_torch(compiled: None) -> None:
    assert needed(host_module()) - SYSTEM == set()
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_host", {host_module()!r})
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert module.normal(3, 0).shape == (3,)
assert "torch" not in sys.modules
"""
    run(code)


# Processes ---------------------------------------------------------------------------------------


def run(code: str) -> None:
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


DIGEST = """
import hashlib, multiprocessing, os
import torch
import stanley_fast as sf

def digest(seed):
    z = sf.normal((100_000,), sf.key(seed))
    return hashlib.sha256(sf.stanley_step(z, z, sf.key(2), threshold=0.5).numpy()).digest()

"""


@pytest.mark.parametrize("before", ["", "digest(1)"], ids=["after import", "after a step"])
def test_a_forked_child_steps(before: str) -> None:
    """OpenMP's threads do not survive a fork, so a child has one, as in torch's DataLoader."""
    run(f"""{DIGEST}{before}
receive, send = os.pipe()
if os.fork() == 0:
    torch.set_num_threads(1)
    os.write(send, digest(1))
    os._exit(0)
assert os.wait()[1] == 0
assert os.read(receive, 32) == digest(1)
""")


def test_forked_workers_step() -> None:
    run(f"""{DIGEST}
want = [digest(seed) for seed in range(4)]
with multiprocessing.get_context("fork").Pool(2, torch.set_num_threads, (1,)) as pool:
    assert pool.map_async(digest, range(4)).get(timeout=100) == want
""")
