"""Chains in a CUDA graph, captured by a stand-in that plays operations again on the CPU."""

from __future__ import annotations

import gc
import math
import re
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from fake_graph import FakeRecorder
from gpu import sampled
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast import graphs, sample

pytestmark = pytest.mark.usefixtures("one_thread")

SAMPLERS: dict[str, sf.Sampler] = {
    "stanley": sf.Stanley(0.3, 0.7, 0.2),
    "script": sf.Stanley(0.3, 0.7, 0.2, norm="sample", update="script", clamp=(-1.0, 1.0)),
    "frozen": sf.Stanley(0.3, 0.7, 0.2, stepsize="frozen"),
    "adjusted": sf.Stanley(0.3, 0.3, adjusted=True),
    "adjusted frozen": sf.Stanley(0.3, 0.3, adjusted=True, stepsize="frozen"),
    "langevin": sf.Langevin(0.14, 0.2, grad_clamp=0.5),
    "ascent": sf.GradientAscent(0.1),
    "mala": sf.MALA(torch.tensor(0.2)),
    "walk": sf.MetropolisHastings(0.4),
    "hmc": sf.HMC(0.3, 3, mass=torch.tensor([1.0, 2.0])),
}
KEY = sf.key(7)


class Net(nn.Module):
    """Smooth, with a buffer and a Python number to read, and dropout that a chain must not see."""

    def __init__(self, d: int = 2) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, 16), nn.SiLU(), nn.Dropout(0.5), nn.Linear(16, 1))
        self.register_buffer("centre", torch.zeros(d))
        self.pull = 0.5

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z).squeeze(1) - self.pull * (z - self.centre).square().sum(1)


@pytest.fixture
def recorder(recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRecorder]:
    """With few transitions in a graph, and no graph of another test."""
    monkeypatch.setattr(graphs, "LONGEST", 8)
    graphs._CACHE.clear()
    yield recorder
    graphs._CACHE.clear()


@pytest.fixture
def f() -> Net:
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def z0() -> Tensor:
    return sf.normal((10, 2), sf.key(1), stream=2)


def by_graph(f: Any, z0: Tensor, steps: int = 6, sampler: Any = None, **rest: Any) -> sf.Chain:
    rest = {"key": KEY, "graph": True} | rest
    out = sample(f, z0, sampler or SAMPLERS["stanley"], steps, **rest)
    assert out.rung.startswith("graph: ")
    return out


def by_step(f: Any, z0: Tensor, steps: int = 6, sampler: Any = None, **rest: Any) -> sf.Chain:
    rest = {"key": KEY, "graph": False} | rest
    return sample(f, z0, sampler or SAMPLERS["stanley"], steps, **rest)


def assert_same(got: sf.Chain, want: sf.Chain) -> None:
    assert torch.equal(got.z, want.z)
    assert torch.equal(got.key, want.key)
    assert got.stats.keys() == want.stats.keys()
    for name in want.stats:
        assert torch.equal(got.stats[name], want.stats[name]), name
    assert (got.trace is None) == (want.trace is None)
    if got.trace is not None and want.trace is not None:
        assert torch.equal(got.trace, want.trace)
    # A sum of float64, in another order.
    torch.testing.assert_close(got.acceptance, want.acceptance, rtol=1e-14, atol=0)


# A graph's chain is the eager chain ---------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", [6, 17], ids=["one replay", "replays and a rest"])
def test_is_the_eager_chain(
    recorder: FakeRecorder, f: Net, z0: Tensor, name: str, steps: int
) -> None:
    sampler = SAMPLERS[name]
    rest = {"sampler": sampler, "steps": steps, "record": sampler.records}
    for _ in range(2):
        assert_same(by_graph(f, z0, **rest), by_step(f, z0, **rest))
    length = graphs.segment(steps, None)
    assert recorder.captures == 1
    assert recorder.replays == 2 * (steps // length)
    assert (steps % length > 0) == (steps == 17)


def test_replays_draw_anew_and_a_saved_key_brings_one_back(
    recorder: FakeRecorder, f: Net, z0: Tensor
) -> None:
    one = by_graph(f, z0)
    two = by_graph(f, z0, key=one.key)
    assert not torch.equal(one.z, two.z)
    assert_same(two, by_step(f, z0, key=one.key))
    assert_same(by_graph(f, z0), one)
    assert KEY.tolist() == [7, 0]
    assert recorder.captures == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(recorder: FakeRecorder, z0: Tensor, dtype: torch.dtype) -> None:
    z0, f = z0.to(dtype), lambda z: -z.square().sum(1) / 2
    assert_same(by_graph(f, z0, record=["grad_abs"]), by_step(f, z0, record=["grad_abs"]))


@pytest.mark.parametrize(("keep_every", "length"), [(1, 1), (5, 5), (18, 6), (99, 8)])
def test_a_trace(recorder: FakeRecorder, f: Net, z0: Tensor, keep_every: int, length: int) -> None:
    out = by_graph(f, z0, 41, keep_every=keep_every)
    assert_same(out, by_step(f, z0, 41, keep_every=keep_every))
    assert out.rung.startswith(f"graph: {length} transitions")


def test_parts_of_a_state(recorder: FakeRecorder, z0: Tensor) -> None:
    f = lambda z: -z.square().sum(1) / 2  # noqa: E731
    whole = by_graph(f, z0).z
    parts = [by_graph(f, z0[:3], total=20).z, by_graph(f, z0[3:], first=6, total=20).z]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("ambient", [False, True])
def test_convolutions_and_autocast(recorder: FakeRecorder, ambient: bool) -> None:
    """Copies of the weights are the graph's own, made again at every replay."""
    torch.manual_seed(0)
    f, z0 = sf.ConvEnergy(width=8, layers=2, image_size=8), torch.randn(5, 3, 8, 8)
    own = [(p, p.clone(), p.requires_grad) for p in f.parameters()]
    around = partial(torch.autocast, "cpu", torch.bfloat16, enabled=ambient)
    rest = {} if ambient else {"autocast": torch.bfloat16}
    for _ in range(2):
        with around():
            assert_same(by_graph(f, z0, **rest), by_step(f, z0, **rest))
        for p, (same, value, asks) in zip(f.parameters(), own, strict=True):
            assert p is same
            assert torch.equal(p, value)
            assert p.requires_grad == asks
    with torch.no_grad():
        f.net[0].weight.mul_(2)
    with around():
        assert_same(by_graph(f, z0, **rest), by_step(f, z0, **rest))
    assert recorder.captures == 1


def test_no_steps_and_no_chains(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    assert torch.equal(by_step(f, z0, 0, graph=True).z, z0)
    with pytest.raises(ValueError, match="here: there are no elements"):
        by_graph(f, z0[:0])
    assert by_step(f, z0[:0], graph="auto").z.shape == (0, 2)
    assert recorder.captures == 0


def test_what_is_not_finite_is_found_after_the_chain(recorder: FakeRecorder, z0: Tensor) -> None:
    def f(z: Tensor) -> Tensor:
        return (torch.where(z.detach() > 0.5, math.nan, 1.0) * z).sum(1)

    start = torch.tensor([[-2.0], [-2.0], [-0.25], [-2.0]])
    for steps, which in ((5, "chain 2"), (2 * graphs.LONGEST, "chain 0 and 3 more")):
        with pytest.raises(sf.NonFiniteError, match=f"NaN or infinity at step 2 in {which}: "):
            by_graph(f, start, steps, sf.Langevin(1.0, 0.0))


# What a graph is used for again -------------------------------------------------------------------


def test_auto_captures_at_the_second_call(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    auto = partial(sample, f, z0, SAMPLERS["stanley"], key=KEY)
    first = auto(7)
    assert first.rung.startswith("step: ")
    assert "not in a CUDA graph, because it is captured when asked for again" in first.rung
    for _ in range(2):
        again = auto(7)
        assert again.rung.startswith("graph: 7 transitions at a time in one CUDA graph; ")
        assert_same(again, first)
    assert recorder.captures == 1
    assert auto(graphs.LONGEST * graphs.WORTH_IT).rung.startswith("graph: ")  # long: at the first
    assert auto(7, graph=False).rung.endswith("not in a CUDA graph, because graph=False")


def test_parameters_written_in_place_are_read(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    optimizer = torch.optim.Adam(f.parameters(), lr=0.1)
    for _ in range(3):
        assert_same(by_graph(f, z0), by_step(f, z0))
        optimizer.zero_grad()
        f(z0).sum().backward()
        optimizer.step()
        f.centre += 0.1
    assert recorder.captures == 1


def _replace_parameter(f: Net) -> None:
    f.net[0].weight = nn.Parameter(f.net[0].weight.detach() * 2)


def _replace_buffer(f: Net) -> None:
    f.centre = f.centre + 1


def _change_number(f: Net) -> None:
    f.pull = 0.7


def _change_layer(f: Net) -> None:
    f.net[1] = nn.ReLU()


def _add_hook(f: Net) -> None:
    f.register_forward_hook(lambda module, args, value: 2 * value)


CHANGES = [_replace_parameter, _replace_buffer, _change_number, _change_layer, _add_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_is_replaced_is_noticed(
    recorder: FakeRecorder, f: Net, z0: Tensor, change: Callable[[Net], None]
) -> None:
    before = by_graph(f, z0).z
    change(f)
    got = by_graph(f, z0)
    assert not torch.equal(got.z, before)
    assert_same(got, by_step(f, z0))
    assert recorder.captures == 2


def test_a_closure_and_a_global_are_noticed(recorder: FakeRecorder, z0: Tensor) -> None:
    scale, centres = 1.0, [torch.zeros(2)]

    def f(z: Tensor) -> Tensor:
        return -scale * (z - centres[0]).square().sum(1)

    assert_same(by_graph(f, z0), by_step(f, z0))
    scale = 2.0
    assert_same(by_graph(f, z0), by_step(f, z0))
    centres[0] = torch.ones(2)
    assert_same(by_graph(f, z0), by_step(f, z0))
    assert recorder.captures == 3
    centres[0] += 1
    assert_same(by_graph(f, z0), by_step(f, z0))
    assert recorder.captures == 3


OTHERS: dict[str, dict[str, Any]] = {
    "steps": {"steps": 7},
    "sampler": {"sampler": sf.Stanley(0.3, 0.6, 0.2)},
    "record": {"record": ["grad_abs"]},
    "keep_every": {"keep_every": 3},
    "first": {"first": 20, "total": 40},
    "shape": {"z0": torch.zeros(3, 2)},
    "dtype": {"z0": torch.zeros(10, 2, dtype=torch.bfloat16), "f": lambda z: -z.square().sum(1)},
    "autocast": {"autocast": torch.bfloat16},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_chain_has_its_own_graph(
    recorder: FakeRecorder, f: Net, z0: Tensor, name: str
) -> None:
    usual = {"f": f, "z0": z0, "steps": 6, "sampler": SAMPLERS["stanley"]}
    for arguments in (usual, usual | OTHERS[name], usual):
        assert_same(by_graph(**arguments), by_step(**arguments))
    assert recorder.captures == 2


def test_a_step_size_in_a_tensor_is_read_anew(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    size = torch.tensor(0.1)
    for value in (0.1, 0.4):
        size.fill_(value)
        sampler = sf.MALA(size)
        assert_same(by_graph(f, z0, sampler=sampler), by_step(f, z0, sampler=sampler))
    assert recorder.captures == 1


def test_training_mode_makes_no_difference(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    by_graph(f.eval(), z0)
    by_graph(f.train(), z0)
    assert f.net[2].training
    assert recorder.captures == 1


def test_methods_of_a_module_and_of_any_object(recorder: FakeRecorder, z0: Tensor) -> None:
    class Target:
        def __init__(self) -> None:
            self.width = 1.0

        def wide(self, z: Tensor) -> Tensor:
            return -z.square().sum(1) / (8 * self.width)

        def narrow(self, z: Tensor) -> Tensor:
            return -8 * z.square().sum(1) / self.width

    target = Target()
    for _ in range(2):
        assert_same(by_graph(target.wide, z0), by_step(target.wide, z0))
        assert_same(by_graph(target.narrow, z0), by_step(target.narrow, z0))
    assert recorder.captures == 2


class Asks(Net):
    asking: ClassVar[set[bool]] = set()

    def forward(self, z: Tensor) -> Tensor:
        self.asking.update(p.requires_grad for p in self.parameters())
        return super().forward(z)


def test_parameters_ask_for_nothing_within(recorder: FakeRecorder, z0: Tensor) -> None:
    by_graph(Asks(), z0)
    assert Asks.asking == {False}


def test_a_graph_goes_with_its_f(recorder: FakeRecorder, z0: Tensor) -> None:
    f = Net()
    by_graph(f, z0)
    gone, parameter = weakref.ref(f), weakref.ref(f.net[0].weight)
    assert len(graphs._CACHE) == 1
    del f
    gc.collect()
    assert gone() is parameter() is None
    assert len(graphs._CACHE) == 0


def test_few_graphs_are_kept(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    many = [sf.Stanley(0.1 * n) for n in range(1, graphs.KEPT + 3)]
    for sampler in many:
        by_graph(f, z0, sampler=sampler)
    captures = recorder.captures
    by_graph(f, z0, sampler=many[2])  # which is among the last
    assert recorder.captures == captures
    by_graph(f, z0, sampler=many[0])
    assert recorder.captures == captures + 1


def test_chains_of_other_lengths_share_a_graph(recorder: FakeRecorder, f: Net, z0: Tensor) -> None:
    for steps in (16, 8, 17):
        assert_same(by_graph(f, z0, steps), by_step(f, z0, steps))
    assert recorder.captures == 1


# What has none, and why ---------------------------------------------------------------------------


class Own(sf.Stanley):
    """Not known to be fit for it."""


class Waits(Net):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) if z.abs().max() < 1e9 else z.sum(1)


class Remembers(Net):
    def forward(self, z: Tensor) -> Tensor:
        self.last = super().forward(z)
        return self.last


class FromTheHost(Net):
    def forward(self, z: Tensor) -> Tensor:
        return super().forward(z) * torch.tensor([2.0])


class Unhashable:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self, z: Tensor) -> Tensor:
        return -z.square().sum(1)


def everything(z: Tensor) -> Tensor:
    return -z.square().sum(1) * len(MANY)


MANY = [object() for _ in range(20_000)]

DECLINED: dict[str, tuple[dict[str, Any], str]] = {
    "callback": ({"callback": lambda k, z: None}, "callback asks for something at every"),
    "backprop": ({"backprop_steps": 2}, "backprop_steps asks for something at every"),
    "sampler": ({"sampler": Own(0.3)}, "Own is not a sampler of this package"),
    "waits": ({"f": Waits()}, "waits for the device"),
    "host": ({"f": FromTheHost()}, "lift_fresh waits for the device"),
    "remembers": ({"f": Remembers()}, "f (is not the same after a call|has changed since)"),
    "unhashable": ({"f": Unhashable()}, "a Unhashable can't be referred to weakly"),
    "much": ({"f": everything}, "too many objects"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_declined(recorder: FakeRecorder, f: Net, z0: Tensor, name: str) -> None:
    """With the reason, which is remembered; nothing is left changed."""
    other, reason = DECLINED[name]
    arguments = {"f": f, "z0": z0, "sampler": SAMPLERS["stanley"], "steps": 6} | other
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"graph must be 'auto' or False here: .*{reason}"):
            sample(**arguments, key=KEY, graph=True)
        got = sample(**arguments, key=KEY)
        assert got.rung.startswith("step: ")
        assert re.search(reason, got.rung)
        assert_same(got, sample(**arguments, key=KEY, graph=False))
    assert recorder.captures <= (2 if name == "remembers" else 1)
    if isinstance(arguments["f"], nn.Module):
        assert all(p.requires_grad for p in arguments["f"].parameters())
        assert arguments["f"].training


def test_an_error_in_f_is_its_own(recorder: FakeRecorder, z0: Tensor) -> None:
    for graph in (True, "auto"):
        with pytest.raises(RuntimeError, match="f must return one log-density per chain"):
            sample(lambda z: z, z0, SAMPLERS["stanley"], 30, key=KEY, graph=graph)
    assert not recorder.busy


@pytest.mark.parametrize("steps", [*range(1, 140), 1000, 9973])
def test_segments(steps: int) -> None:
    length = graphs.segment(steps, None)
    assert 1 <= length <= min(steps, graphs.LONGEST)
    assert steps % length <= steps / graphs.LONGEST  # what is left to the plain way
    for keep_every in (1, 7, 64, 97, 960):
        kept = graphs.segment(steps, keep_every)
        assert 1 <= kept <= graphs.LONGEST
        assert keep_every > steps or keep_every % kept == 0


# What a GPU is asked ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampled.cases("cpu"))
def test_the_gpu_suite_s_cases(recorder: FakeRecorder, name: str) -> None:
    """benchmarks/gpu_suite.py runs them on a GPU's own graphs."""
    sampled.cases("cpu")[name]()
    assert recorder.replays > 0 or name == "f that waits"


BROKEN: dict[str, tuple[Any, str, Any, Callable[[str], float], str]] = {
    "nothing is replayed": (
        FakeRecorder, "capture", lambda self, run: lambda: None,
        partial(sampled.eager_chain, sampled.SAMPLERS["stanley"]), "drew the same noise",
    ),
    "replaced parameters": (
        graphs, "fingerprint", lambda roots, device: (), sampled.parameters, "as they were",
    ),
    "kept for ever": (graphs, "_CACHE", {}, sampled.goes_with_f, "an f that is gone is kept"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_the_gpu_suite_s_cases_can_fail(
    recorder: FakeRecorder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    owner, attribute, wrong, case, message = BROKEN[name]
    with monkeypatch.context() as patch:
        patch.setattr(owner, attribute, wrong)
        with pytest.raises(AssertionError, match=message):
            case("cpu")
