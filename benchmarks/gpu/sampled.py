"""`sample` from a CUDA graph: the eager chain's states, anew for each key, and nothing left behind.

Every case runs on any device that captures; the tests run them on the CPU with a stand-in.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import graphs

SAMPLERS: dict[str, sf.Sampler] = {
    "stanley": sf.Stanley(0.3, 0.7, 0.2),
    "channel": sf.Stanley(0.3, 0.7, 0.2, norm="channel", update="script", clamp=(-1.0, 1.0)),
    "frozen": sf.Stanley(0.3, 0.7, 0.2, stepsize="frozen"),
    "adjusted": sf.Stanley(0.3, 0.05, adjusted=True),
    "langevin": sf.Langevin(0.14, 0.2, grad_clamp=0.5),
    "mala": sf.MALA(0.2),
    "walk": sf.MetropolisHastings(0.05),
    "hmc": sf.HMC(0.1, 3),
}
IMAGE = (3, 8, 8)
# The same kernels on the same numbers, but cuDNN may add up in another order.
ATOL = {None: 1e-4, torch.bfloat16: 2e-2}

Cases = dict[str, Callable[[], float]]
E = TypeVar("E", bound=Exception)


class Net(nn.Module):
    """Convolutions, and dropout and a branch that a chain in eval mode does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), nn.SiLU(), nn.Dropout(0.5)),
            *(nn.Conv2d(16, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten()),
            nn.Linear(256, 1),
        )
        self.noisy, self.waits = False, False

    def forward(self, z: Tensor) -> Tensor:
        value: Tensor = self.net(z).squeeze(1) - z.flatten(1).square().sum(1) / 2
        if self.noisy:
            value = value + torch.rand_like(value) * z.flatten(1).sum(1)
        if self.waits and value.max() > 1e9:
            value = 2 * value
        return value


def cases(device: str) -> Cases:
    each: Cases = {
        name: partial(eager_chain, sampler, device) for name, sampler in SAMPLERS.items()
    }
    return each | {
        "bfloat16 autocast": partial(eager_chain, SAMPLERS["stanley"], device, torch.bfloat16),
        "trace and statistics": partial(trace, device),
        "parameters": partial(parameters, device),
        "second call": partial(second_call, device),
        "random f": partial(random_f, device),
        "f that waits": partial(waiting_f, device),
        "not finite": partial(not_finite, device),
        "goes with f": partial(goes_with_f, device),
        "threads": partial(threads, device),
    }


def made(device: str, n: int = 8) -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net().to(device), sf.normal((n, *IMAGE), sf.key(1, device), stream=2)


def apart(got: Tensor, want: Tensor, autocast: torch.dtype | None = None) -> float:
    """The largest difference as a share of what is allowed."""
    off = float((got - want).abs().max()) / ATOL[autocast]
    assert off <= 1, f"{off * ATOL[autocast]:.1e} apart"
    return off


def eager_chain(
    sampler: sf.Sampler, device: str, autocast: torch.dtype | None = None, steps: int = 20
) -> float:
    """Two keys, two chains, each the eager one's; the first key brings the first one back."""
    f, z0 = made(device)
    go = partial(sf.sample, f, z0, sampler, steps, autocast=autocast, record=sampler.records)
    key = sf.key(5, device)
    one = go(key=key, graph=True)
    two = go(key=one.key, graph=True)
    assert one.rung.startswith("graph: "), one.rung
    assert not torch.equal(one.z, two.z), "two replays drew the same noise"
    worst = 0.0
    for got, start in ((one, key), (two, one.key)):
        want = go(key=start, graph=False)
        assert want.rung.startswith("step: "), want.rung
        assert torch.equal(got.key, want.key), "the keys have moved apart"
        worst = max(worst, apart(got.z, want.z, autocast))
        for name, values in want.stats.items():
            if name != "at_max_stepsize":  # a gradient at the threshold may fall on either side
                torch.testing.assert_close(got.stats[name], values, rtol=1e-2, atol=1e-2)
    return max(worst, apart(go(key=key, graph=True).z, one.z, autocast))


def trace(device: str) -> float:
    f, z0 = made(device)
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 23, key=sf.key(5, device), keep_every=5)
    got, want = go(graph=True), go(graph=False)
    assert got.trace is not None
    assert want.trace is not None
    return max(apart(got.trace, want.trace), apart(got.z, want.z))


def parameters(device: str) -> float:
    """Written in place they count; replaced they are noticed."""
    f, z0 = made(device)
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 10, key=sf.key(5, device))
    worst, before = 0.0, go(graph=True).z

    def replace() -> None:
        f.net[0].weight = nn.Parameter(f.net[0].weight.detach() * 3)

    for change in (lambda: f.net[0].weight.data.mul_(3), replace):
        change()
        got = go(graph=True).z
        assert not torch.equal(got, before), "the graph has the parameters as they were"
        worst, before = max(worst, apart(got, go(graph=False).z)), got
    return worst


def second_call(device: str) -> float:
    f, z0 = made(device)
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 10, key=sf.key(5, device))
    first, second = go(), go()
    assert "captured when asked for again" in first.rung, first.rung
    assert second.rung.startswith("graph: "), second.rung
    return apart(second.z, first.z)


def random_f(device: str) -> float:
    """f's own random numbers are new at every replay."""
    f, z0 = made(device)
    f.noisy = True
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 10, key=sf.key(5, device), graph=True)
    assert not torch.equal(go().z, go().z), "f drew the same numbers twice"
    return 0.0


def waiting_f(device: str) -> float:
    """Declined with the reason; torch goes on as if nothing had been."""
    f, z0 = made(device)
    f.waits = True
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 10, key=sf.key(5, device))
    why_not = str(raised(ValueError, partial(go, graph=True)))
    assert "waits for the device" in why_not, why_not
    out = go()
    assert "waits for the device" in out.rung, out.rung
    assert torch.rand(3, device=device).isfinite().all()
    f.waits = False
    return apart(go(graph=True).z, out.z)


def not_finite(device: str) -> float:
    def f(z: Tensor) -> Tensor:
        return (torch.where(z.detach() > 0.5, torch.nan, 1.0) * z).sum(1)

    z0 = torch.tensor([[-9.0], [-0.25], [-9.0]], device=device)
    go = partial(sf.sample, f, z0, sf.Langevin(1.0, 0.0), 5, key=sf.key(5, device), graph=True)
    found = raised(sf.NonFiniteError, go)
    assert (found.step, found.chains) == (2, [1]), str(found)
    return 0.0


def raised(kind: type[E], call: Callable[[], object]) -> E:
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__} where there should be one")


def goes_with_f(device: str) -> float:
    """The memory of f and its graph is free once nobody has f."""

    def use() -> None:
        f, z0 = made(device)
        sf.sample(f, z0, SAMPLERS["stanley"], 10, key=sf.key(5, device), graph=True)
        assert f in graphs._CACHE

    use()
    gc.collect()
    kept, before = len(graphs._CACHE), allocated(device)
    for _ in range(3):
        use()
        gc.collect()
    assert len(graphs._CACHE) == kept, "the graph of an f that is gone is kept"
    assert allocated(device) == before, f"{allocated(device) - before} bytes more are in use"
    return 0.0


def allocated(device: str) -> int:
    return torch.cuda.memory_allocated() if device == "cuda" else 0


def threads(device: str) -> float:
    """Two threads share a graph, each on a stream of its own."""
    f, z0 = made(device)
    f.eval().requires_grad_(False)  # threads share these flags
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 20, graph=True)
    key_sets = [list(sf.split(sf.key(seed, device), 5)) for seed in (1, 2)]
    wants = [[go(key=key).z for key in some] for some in key_sets]
    found: list[list[Tensor]] = [[], []]

    def work(i: int) -> None:
        stream: Any = torch.cuda.Stream() if device == "cuda" else None
        with torch.cuda.stream(stream):
            if stream is not None:
                stream.wait_stream(torch.cuda.default_stream())
            found[i] += [go(key=key).z for key in key_sets[i]]
            if stream is not None:
                stream.synchronize()

    both = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    got, want = (torch.stack([*one, *other]) for one, other in (found, wants))
    return apart(got, want)


def waits(device: str) -> int:
    """How often a whole call waits for the device, once it is captured."""
    f, z0 = made(device)
    go = partial(sf.sample, f, z0, SAMPLERS["stanley"], 50, key=sf.key(5, device), graph=True)
    go()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            go()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)
