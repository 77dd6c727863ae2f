"""What a timing needs beside it to mean something: the machine, the software, the settings."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

import stanley_fast as sf
from stanley_fast.backends import vector_level


def facts() -> dict[str, object]:
    """Processor, cores, load, versions, malloc settings, backends, commit and date."""
    malloc = {name: value for name, value in os.environ.items() if name.startswith("MALLOC_")}
    return {
        "cpu": cpu_model(),
        "cores": cores(),
        "load": os.getloadavg()[0],
        "vector_level": vector_level() if sf.backends()["cpp"] is None else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "malloc": malloc,
        "backends": sf.backends(),
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


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


def commit() -> str | None:
    """The commit of this checkout, "-dirty" where files differ from it; None outside git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    folder = Path(__file__).parent
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:  # there is no git
        return None
    return ran.stdout.strip() or None
