"""A program at a lower vector level: that is chosen when the library is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch


def run_at(level: str, program: str, given: object, folder: Path) -> Any:
    """What `program` saves as (its level, results), of what it loads: its two arguments are files.

    Skips the test where the CPU lacks the level.
    """
    torch.save(given, folder / "in")
    ran = subprocess.run(
        [sys.executable, "-c", program, folder / "in", folder / "out"],
        env={**os.environ, "STANLEY_FAST_VECTOR": level, "STANLEY_FAST_BACKEND": "cpp"},
        capture_output=True,
        text=True,
    )
    if "STANLEY_FAST_VECTOR must be one of" in ran.stderr and level != "baseline":
        pytest.skip(ran.stderr.strip().splitlines()[-1])
    assert ran.returncode == 0, ran.stderr
    ran_at, results = torch.load(folder / "out")
    assert ran_at == level
    return results
