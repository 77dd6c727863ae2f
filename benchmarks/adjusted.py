"""Where the adjusted samplers accept and mix, and where they don't: the tables of docs/samplers.md.

python benchmarks/adjusted.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast.energies import Ring, gaussian_ring
from stanley_fast.targets import Banana, Funnel, Gaussian

DIMENSIONS, NOISE_SCALES = (2, 10, 100, 1000), (1.0, 0.8, 0.5, 0.2, 0.1, 0.01)

TARGETS: dict[str, nn.Module] = {
    "Gaussian, sd 1, 1/2, 1/4": Gaussian([1.0, 0.5, 0.25]),
    "Gaussian of condition 10^4": Gaussian(torch.logspace(0, -2, 4)),
    "8 modes, sd 0.15": gaussian_ring(),
    "8 modes, sd 0.05": gaussian_ring(sd=0.05),
    "one ring": Ring(),
    "four rings": sf.Rings(),
    "banana": Banana(),
    "funnel, d = 3, sd 1.5": Funnel(3, 1.5),
    "funnel, d = 10, sd 3": Funnel(10, 3.0),
}
SAMPLERS = {
    "MH": sf.MetropolisHastings(0.1),
    "MALA": sf.MALA(0.1),
    "STANLEY": sf.Stanley(2.0, 0.1, adjusted=True),
    "HMC, 6 leapfrogs": sf.HMC(0.1, 6),
}


def acceptance(dimension: int, noise_scale: float) -> float:
    """Of adjusted STANLEY on a standard normal, from exact starts."""
    z0 = sf.normal((100, dimension), sf.key(0), stream=2, dtype=torch.float64)
    sampler = sf.Stanley(0.5, 0.1, noise_scale, adjusted=True)
    out = sf.sample(lambda z: -z.square().sum(1) / 2, z0, sampler, 50, key=sf.key(1))
    return float(out.acceptance.mean())


def effective(values: Tensor) -> float:
    """Independent draws in each of the chains, (steps, chains): of the half below the median."""
    below = (values <= values.median()).double()
    return float(below.var() / below.mean(dim=0).var())


def mixing(f: nn.Module, sampler: sf.Sampler) -> float:
    """The smallest number of effective draws per 500 transitions, after a warm-up."""
    z0 = f.sample(300, sf.key(1))  # exact, so that what is measured is mixing alone
    tuned, _ = sf.warm_up(f, z0, sampler, 200, key=sf.key(2))
    trace = sf.sample(f, z0, tuned, 500, key=sf.key(3), keep_every=5).trace
    assert trace is not None
    functions = [*trace.unbind(dim=2), trace.norm(dim=2)]
    return min(effective(values) for values in functions)


def table(head: str, columns: list[str], rows: dict[str, list[str]]) -> None:
    print(f"| {head} | " + " | ".join(columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |")
    print(flush=True)


def rounded(value: float) -> str:
    return "0" if value < 5e-4 else f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"


def main() -> None:
    table(
        "d",
        [f"ε = {e:g}" for e in NOISE_SCALES],
        {str(d): [rounded(acceptance(d, e)) for e in NOISE_SCALES] for d in DIMENSIONS},
    )
    rows = {}
    for name, f in TARGETS.items():
        rows[name] = [f"{mixing(f, s):.0f}" for s in SAMPLERS.values()]
        if isinstance(f, Gaussian):
            hmc = sf.HMC(0.5, 3, mass=f.variance.reciprocal().float())
            rows[name].append(f"{mixing(f, hmc):.0f}")
        else:
            rows[name].append("")
    table("target", [*SAMPLERS, "HMC with mass, 3"], rows)


if __name__ == "__main__":
    main()
