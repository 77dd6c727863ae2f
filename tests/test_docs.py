"""What the documentation tells people to type works as written, the docstrings' examples too."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision_ops  # noqa: F401

import stanley_fast as sf
from stanley_fast import data

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def readme_blocks(name: str = "README.md") -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def test_readme_sampler() -> None:
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    exec(readme_blocks()[0], scope)
    radius = scope["out"].z.norm(dim=1)  # type: ignore[attr-defined]
    # True samples are within 3 sd of a ring with probability 0.9973; the step's bias costs some.
    assert ((radius - radius.round()).abs() < 0.45).float().mean() > 0.95
    assert set(radius.round().int().tolist()) >= {1, 2, 3, 4}


def test_readme_own_loop() -> None:
    f, key, steps = sf.Rings(), sf.key(0), 3
    z = torch.ones(5, 2, requires_grad=True)
    exec(readme_blocks()[1], {"torch": torch, "sf": sf, "f": f, "z": z, "key": key, "steps": steps})
    assert (z != 1).all()


def test_samplers_md() -> None:
    """Warming up and sampling, then the same by hand."""
    torch.manual_seed(0)
    scope: dict[str, object] = {}
    for block in readme_blocks("docs/samplers.md"):
        exec(block, scope)
    assert scope["out"].trace.shape == (200, 200, 2)  # type: ignore[attr-defined]
    acceptance = scope["out"].acceptance.mean()  # type: ignore[attr-defined]
    assert acceptance == pytest.approx(0.574, abs=0.03)
    again = sf.sample(scope["f"], scope["z0"], scope["sampler"], 100, key=sf.key(1))
    assert torch.equal(scope["state"].z, again.z)  # type: ignore[attr-defined]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(example: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(example)], check=True, cwd=tmp_path)


MODULES = [m.name for m in pkgutil.iter_modules(sf.__path__, "stanley_fast.") if "__" not in m.name]
MODULES += [m.name for m in pkgutil.iter_modules(data.__path__, "stanley_fast.data.")]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("_library")])
def test_docstrings(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
