"""What can run here and why not, and whether it computes what it should: `stanley-fast doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path

import torch

from stanley_fast import direct, keys, ops, reference
from stanley_fast.backends import backends, select, use_backend, vector_level

EXTRAS = {
    "cli": ("tyro", "tqdm", "matplotlib"),
    "images": ("pillow", "pytorch-fid", "scikit-learn", "scipy", "torchvision"),
    "tensorboard": ("tensorboard",),
    "triton": ("triton",),
}
# Known answers of Philox4x32-10: the words of (seed, block).
PHILOX = {
    (0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (42, 0): (0x9CEAF053, 0x77F5493B, 0x12BF50AD, 0x5742B3D7),
    (0x123456789ABCDEF0, 0x100000002): (0xD75CFE3E, 0xF25B6E4B, 0xFD77EFF2, 0x8471BD47),
}
OK = "ok"

Report = dict[str, dict[str, str]]


class SelfCheckError(RuntimeError):
    """A backend computes something else than the reference."""


def examine() -> Report:
    """Everything that a bug report needs, in sections; the last one is the self-check.

    >>> sorted(set(examine()["self-check"].values()))
    ['ok']
    """
    return {
        "versions": _versions(),
        "extras": _extras(),
        "environment": _environment(),
        "build": _build(),
        "CPU": _cpu(),
        "GPUs": _gpus(),
        "backends": {name: why_not or "available" for name, why_not in backends().items()},
        "in use for": {"cpu": _said_by(partial(select, "cpu"))}
        | ({"cuda": _said_by(partial(select, "cuda"))} if torch.cuda.device_count() else {}),
        "self-check": _checks(),
    }


def text(report: Report) -> str:
    """The report for people."""
    width = max(len(name) for facts in report.values() for name in facts)
    sections = (
        "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in facts.items())])
        for title, facts in report.items()
        if facts
    )
    return "\n".join(sections)


def failed(report: Report) -> list[str]:
    """The self-checks that failed."""
    return [name for name, outcome in report["self-check"].items() if outcome != OK]


# The facts ---------------------------------------------------------------------------------------


def _said_by(function: Callable[[], str]) -> str:
    """What it returns, or why it can't."""
    try:
        return function()
    except (RuntimeError, ValueError) as error:
        return f"none: {error}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _versions() -> dict[str, str]:
    return {
        "stanley-fast": f"{_version('stanley-fast')}, in {Path(__file__).parent}",
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'not built in'}",
        "numpy": _version("numpy"),
    }


def _extras() -> dict[str, str]:
    facts = {}
    for extra, packages in EXTRAS.items():
        for package in packages:
            version = _version(package)
            missing = version == "not installed"
            hint = f": pip install 'stanley-fast[{extra}]'" if missing else ""
            facts[package] = f"{version}{hint}"
    return facts


def _environment() -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if name.startswith("STANLEY_FAST_")}
    others = ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    return ours | {name: os.environ[name] for name in others if name in os.environ}


def _cpu() -> dict[str, str]:
    way = (
        f"by torch's dispatcher: {direct.why_not}" if direct.why_not else "past torch's dispatcher"
    )
    return {
        "threads": str(torch.get_num_threads()),
        "vectors": _said_by(vector_level),
        "small steps": way,
    }


def _build() -> dict[str, str]:
    try:
        from stanley_fast._host import build_facts
    except ImportError as error:
        return {"compiled": f"no, or for another Python: {error}"}
    facts = build_facts()
    return {
        "compiler": facts["compiler"],
        "CUDA compiler": facts["cuda"],
        "GPU code": " ".join(facts["cuda_architectures"]) or "none",
        "CPU vectors": " ".join(facts["vector_levels"]),
        "built with torch": facts["torch"],
    }


def _gpus() -> dict[str, str]:
    facts = {}
    for i in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(i)
        code = "code" if any(_serves(arch, capability) for arch in _architectures()) else "no code"
        major, minor = capability
        name = torch.cuda.get_device_name(i)
        facts[f"cuda:{i}"] = f"{name}, capability {major}.{minor}: the library has {code} for it"
    return facts


def _architectures() -> list[str]:
    try:
        from stanley_fast._host import build_facts
    except ImportError:
        return []
    return build_facts()["cuda_architectures"]


def _serves(built_for: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on later minor versions of its major one, PTX on everything later."""
    if built_for[-1] in "af":  # features of one GPU, or of its family
        return False
    major, minor = map(int, built_for.removesuffix("+PTX").split("."))
    return (major, minor) <= capability and (major == capability[0] or built_for.endswith("+PTX"))


# The self-check ----------------------------------------------------------------------------------


def _checks() -> dict[str, str]:
    checks: dict[str, Callable[[], None]] = {"Philox": _philox}
    for name, why_not in backends().items():
        if why_not is None and name != "reference":
            checks[f"step on {name}"] = partial(_step, name)
    return {name: _outcome(check) for name, check in checks.items()}


def _outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except Exception as error:  # whatever it is, it is the finding
        return f"FAILED: {error}"
    return OK


def _philox() -> None:
    for (seed, block), want in PHILOX.items():
        got = reference.philox(keys.key(seed), torch.tensor(block)).tolist()
        if got != list(want):
            raise SelfCheckError(f"seed {seed}, block {block} gives {got}, not {list(want)}")


def _step(backend: str) -> None:
    """One step against the reference's, on either side of the threshold."""
    on_gpu = backend in ("cuda", "triton") and torch.cuda.device_count() > 0
    device = "cuda" if on_gpu else "cpu"
    z, grad = (reference.normal((999,), keys.key(seed)).to(device) for seed in (1, 2))
    key = keys.key(3, device)
    with use_backend(backend):
        got = ops.stanley_step(z, grad, key, threshold=0.5)
    want = reference.stanley_step(z, grad, key, threshold=0.5)
    gamma = reference.stepsize(grad, threshold=0.5)
    ulp = torch.nextafter(z.abs(), torch.full_like(z, torch.inf)) - z.abs()
    bound = 1e-5 * (gamma / 2 * grad.abs() + gamma.sqrt()) + 2 * ulp
    off = (got - want).abs()
    if not (off <= bound).all():
        raise SelfCheckError(
            f"differs from the reference by up to {off.max():.2g} in {int((off > bound).sum())} "
            "of 999 elements"
        )
