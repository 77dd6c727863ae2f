"""How well chains mixed: R-hat, effective sample sizes, Monte Carlo errors, autocorrelation.

The statistics are ArviZ's (pip install 'stanley-fast[diagnostics]'), imported when first asked for.
Rows of a batch are the chains: a trace (draws, B, ...), as `sample(keep_every=...)` keeps it, is B
chains of as many draws. All of it presumes that burn-in is over: keep no draws before.

With thousands of chains and few draws each, from starts independent of each other:

- Means over the chains have the right standard error, burn-in aside. Bulk ESS is at least about B,
  however slowly each chain moves.
- R-hat compares a chain's own draws with all others'. Far from 1 says that a chain in so few draws
  does not cover what the chains cover together: not that the draws together are wrong.
- No figure here sees what all chains have in common: a mode that none has found, a bias.

Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner, Rank-normalization, folding, and
localization, Bayesian Analysis 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stanley_fast.chain import Chain
from stanley_fast.extras import need

MIN_DRAWS = 4  # two for each half of a split chain
TAILS = (0.05, 0.95)

Array = npt.NDArray[np.float64]


def require(*modules: str) -> None:
    """Raises MissingExtraError if a module of the extra is not installed."""
    for module in modules or ("arviz_stats", "arviz_base", "h5netcdf"):
        _arviz(module)


def summary(chain: Chain | Tensor) -> dict[str, dict[str, float]]:
    """Mixing and Monte Carlo error of every coordinate.

    Args:
        chain: what `sample(keep_every=...)` returned, or its trace (draws, B, ...), of 4 draws or
            more.

    Returns:
        The coordinate's name -> "mean" and "sd" over all draws; "mcse", the mean's standard error;
        "r_hat", split and rank-normalised, of bulk or tails, whichever is larger, NaN for a single
        chain; "ess_bulk" and "ess_tail", the smaller one of the 5 % and 95 % quantiles.

    Raises:
        MissingExtraError: ArviZ is not installed.
        ValueError: no trace, too short a one, or one with NaN or infinity.

    >>> trace = torch.randn(100, 4, 2, generator=torch.Generator().manual_seed(0))
    >>> list(summary(trace))
    ['z[0]', 'z[1]']
    >>> summary(trace)["z[0]"]["r_hat"] < 1.05
    True
    """
    stats = _arviz("arviz_stats.base").array_stats
    return {
        name: {
            "mean": float(x.mean()),
            "sd": float(x.std(ddof=1)),
            "mcse": float(stats.mcse(x, method="mean")),
            "r_hat": float(stats.rhat(x, method="rank")) if len(x) > 1 else math.nan,
            "ess_bulk": float(stats.ess(x, method="bulk")),
            "ess_tail": float(stats.ess(x, method="tail", prob=TAILS)),
        }
        for name, x in _coordinates(_draws(chain))
    }


def text(table: Mapping[str, Mapping[str, float]]) -> str:
    """`summary` for people.

    >>> print(text({"z": {"mean": 0.5, "sd": 1.0, "r_hat": 1.01, "ess_bulk": 1234.5}}))
        mean     sd  r_hat  ess_bulk
    z  0.500  1.000  1.010      1234
    """
    names = list(next(iter(table.values())))
    lines = [["", *names]]
    for coordinate, row in table.items():
        figures = [f"{row[n]:.0f}" if n.startswith("ess") else f"{row[n]:.3f}" for n in names]
        lines.append([coordinate, *figures])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [[cell.rjust(w) for cell, w in zip(line, widths, strict=True)] for line in lines]
    return "\n".join("  ".join(line) for line in padded)


def ess(chain: Chain | Tensor, kind: Literal["bulk", "tail"] = "bulk") -> Tensor:
    """Effective sample size of every coordinate over all chains: float64, the shape of one state.

    Divide by what the draws cost, in gradients (B * transitions, burn-in included or not: say
    which) or in seconds, to compare samplers. Arguments and errors as `summary`.

    >>> trace = torch.randn(100, 4, 2, generator=torch.Generator().manual_seed(0))
    >>> bool((ess(trace) > 200).all())
    True
    """
    draws = _draws(chain)
    stats = _arviz("arviz_stats.base").array_stats
    prob = TAILS if kind == "tail" else None
    found = [float(stats.ess(x, method=kind, prob=prob)) for _, x in _coordinates(draws)]
    return torch.tensor(found, dtype=torch.float64).reshape(draws.shape[2:])


def autocorrelation(chain: Chain | Tensor) -> Tensor:
    """Autocorrelation of every coordinate at lags 0, 1, ...: float64 (draws, ...).

    That of all chains together: 1 - v_t / 2V, with v_t the mean squared difference of draws t apart
    and V the variance of all draws, as split R-hat takes it. Chains that never leave their places
    are at 1, which the mean of their own autocorrelations would hide; a coordinate that is the same
    in every draw of every chain is at NaN.

    Arguments and errors as `summary`. Source: Gelman et al., Bayesian Data Analysis, 3rd ed.,
    Eq. 11.7.

    >>> trace = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    >>> rho = autocorrelation(trace)
    >>> rho.shape, float(rho[1].abs()) < 0.2
    (torch.Size([100]), True)
    """
    draws = np.moveaxis(_draws(chain), 1, -1)  # (B, ..., draws)
    n = draws.shape[-1]
    mean = draws.mean(axis=-1, keepdims=True)
    squares = (draws - mean) ** 2
    products = n * _arviz("arviz_stats.base").array_stats.autocov(draws, axis=-1)
    # Of the n - t pairs (x, y) at lag t: the sum of x^2, of y^2, and of x y.
    first, last = squares.cumsum(axis=-1), squares[..., ::-1].cumsum(axis=-1)
    apart = (first + last)[..., ::-1] - 2 * products
    v = apart.mean(axis=0) / np.arange(n, 0, -1)
    between = mean.var(axis=0, ddof=1) if len(draws) > 1 else 0.0
    with np.errstate(invalid="ignore"):  # 0 / 0 where nothing moves
        rho = 1 - v / (2 * (squares.mean(axis=(0, -1))[..., None] + between))
    return torch.from_numpy(np.moveaxis(rho, -1, 0).copy())


def to_inference_data(chain: Chain | Tensor) -> Any:
    """The draws as ArviZ's InferenceData (an xarray.DataTree), group "posterior", variable "z".

    Its `to_netcdf(path)` writes a file, which `xarray.open_datatree` and ArviZ read. Arguments and
    errors as `summary`.

    >>> to_inference_data(torch.zeros(5, 3, 2)).posterior.z.shape
    (3, 5, 2)
    """
    base = _arviz("arviz_base")
    with warnings.catch_warnings():  # more chains than draws are no mistake here
        warnings.filterwarnings("ignore", "Found chain dimension to be longer than draw")
        return base.from_dict({"posterior": {"z": _draws(chain)}})


def _draws(chain: Chain | Tensor) -> Array:
    """ArviZ's order, (B, draws, ...), in float64."""
    if not isinstance(chain, Tensor | Chain):
        raise TypeError(f"chain must be a Chain or its trace, a tensor, got {chain!r}")
    trace = chain if isinstance(chain, Tensor) else chain.trace
    if trace is None:
        raise ValueError("chain has no trace: sample with keep_every=1 or more")
    if trace.dim() < 2 or len(trace) < MIN_DRAWS or trace.shape[1] == 0:
        raise ValueError(
            f"trace must be (draws, B, ...) with {MIN_DRAWS} draws or more of 1 chain or more, got "
            f"shape {list(trace.shape)}"
        )
    if not trace.isfinite().all():
        raise ValueError("trace must be finite, but holds NaN or infinity")
    return trace.detach().transpose(0, 1).double().cpu().numpy()


def _coordinates(draws: Array) -> Iterator[tuple[str, Array]]:
    """Each coordinate of a state, in order: its name, and its draws (B, draws)."""
    flat = draws.reshape(*draws.shape[:2], -1)
    for i, index in enumerate(np.ndindex(draws.shape[2:])):
        yield f"z[{','.join(map(str, index))}]" if index else "z", flat[:, :, i]


def _arviz(module: str) -> Any:
    return need(module, "diagnostics", "stanley_fast.diagnostics")
