"""What a timing needs beside it to mean something: the machine, the software, the settings."""

from __future__ import annotations

import ctypes
import datetime
import json
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import torch

from stanley_fast.backends import backends, vector_level

PACKAGE = "stanley-fast"


def facts(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores, load, versions, settings, backends, commit and date; on "cuda" the GPU's.

    >>> sorted(set(facts()) & {"cpu", "cores", "torch", "version"})
    ['cores', 'cpu', 'torch', 'version']
    """
    malloc = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    found = {
        "cpu": cpu_model(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "vector_level": vector_level() if backends()["cpp"] is None else None,
        "torch": torch.__version__,
        "triton": version("triton"),
        "python": platform.python_version(),
        "malloc": malloc,
        "backends": backends(),
        "version": version(PACKAGE),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }
    return found | (gpu() if device == "cuda" else {})


def keep_pages() -> bool:
    """Has malloc take big temporaries from its heap, and keep them; False where it is no glibc's.

    Fresh pages from the system for each of them would be most of plain PyTorch's time. The
    environment's MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ do the same.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    mmap_threshold, trim_threshold = -3, -1  # as malloc.h has them
    return bool(mallopt(mmap_threshold, 2**30) and mallopt(trim_threshold, 2**31 - 1))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_model() -> str:
    """The processor's name, and on x86 its family and model: clouds hide the rest."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.MULTILINE))
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format_map(found)


def gpu() -> dict[str, Any]:
    """The GPU that torch uses, as torch and its driver tell; nothing is changed."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "nvidia_smi": nvidia_smi(),
    }


def nvidia_smi() -> dict[str, str] | None:
    """Driver, clocks and power as they are now; None without that command."""
    asked = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = ran.stdout.splitlines()[0].split(",")
    return dict(zip(asked.split(","), (value.strip() for value in values), strict=True))


def version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str | None:
    """The commit that this package was installed from, as pip noted where that was (PEP 610).

    Of a checkout it is the one it is at now, "-dirty" where files differ. None: unknown.
    """
    try:
        noted = metadata.distribution(PACKAGE).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    origin = json.loads(noted) if noted else {}
    if "vcs_info" in origin:
        return str(origin["vcs_info"]["commit_id"])[:12]
    url = urlparse(origin.get("url", ""))
    return _describe(Path(url2pathname(url.path))) if url.scheme == "file" else None


def _describe(folder: Path) -> str | None:
    # Not of a repository that the folder merely lies in.
    above = {**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.resolve().parent)}
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        ran = subprocess.run(
            command, cwd=folder, env=above, capture_output=True, text=True, check=False
        )
    except OSError:  # there is no git, or the folder is an archive or gone
        return None
    return ran.stdout.strip() or None
