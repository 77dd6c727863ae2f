"""Small steps without torch's dispatcher: the same bits, and only where nothing is missed."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DTYPES, HALVES, HYPER, UPDATES
from test_binary import SYSTEM, needed
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import stanley_fast as sf
from stanley_fast import direct

pytestmark = pytest.mark.usefixtures("compiled", "one_thread")

OPS = torch.ops.stanley_fast
Taken = list[bool]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """One entry for each time that the short way was tried: whether it was taken."""
    tries: Taken = []
    step = direct.step

    def spy(*args: Any) -> Tensor | None:
        moved = step(*args)
        tries.append(moved is not None)
        return moved

    monkeypatch.setattr(direct, "step", spy)
    return tries


def state(n: int = 200, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    z, grad = np.random.default_rng(n).normal(size=(2, n))
    return torch.from_numpy(z).to(dtype), torch.from_numpy(grad).to(dtype), sf.key(5)


# Where it is taken -------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES + HALVES)
@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("clamp", [None, (-0.5, 1)])
def test_same_bits_as_the_operation(
    taken: Taken, dtype: torch.dtype, update: str, clamp: tuple[float, float] | None
) -> None:
    gamma_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    sizes = [0, 1, 3, 4, 5, 17, 200, 2049, 16384]
    for n, step, (first, total) in itertools.product(
        sizes, [0, 7, 2**62], [(0, None), (3, 20_000)]
    ):
        z, grad, key = state(n, dtype)
        rest = (0.5, *(clamp or (-math.inf, math.inf)), update == "script", first, total)
        kwargs: dict[str, Any] = {"clamp": clamp, "update": update, "first": first, "total": total}
        want = OPS.stanley_step(z, grad, key, step, 0.3, 0.7, *rest)
        assert torch.equal(sf.stanley_step(z, grad, key, step, **HYPER, **kwargs), want)
        moved = z.clone()
        assert sf.stanley_step_(moved, grad, key, step, **HYPER, **kwargs) is moved
        assert torch.equal(moved, want)
        for gamma in (
            0.1,
            torch.tensor(0.1, dtype=gamma_dtype),
            torch.linspace(0, 2, n, dtype=gamma_dtype),
        ):
            tensor = torch.as_tensor(gamma, dtype=gamma_dtype)
            want = OPS.langevin_step(z, grad, tensor, key, step, *rest)
            kwargs["noise_scale"] = 0.5
            assert torch.equal(sf.langevin_step(z, grad, gamma, key, step, **kwargs), want)
            moved = z.clone()
            assert sf.langevin_step_(moved, grad, gamma, key, step, **kwargs) is moved
            assert torch.equal(moved, want)
    tensors = [t for n, t in zip(np.repeat(sizes, 48), taken, strict=True) if n > 0]
    assert all(tensors)


def test_a_larger_state_goes_to_torchs_threads(taken: Taken) -> None:
    z, grad, key = state(16385)
    want = OPS.stanley_step(z, grad, key, 0, 0.3, 1.0, 1.0, -math.inf, math.inf, False, 0, None)
    assert torch.equal(sf.stanley_step(z, grad, key, threshold=0.3), want)
    assert True not in taken


def test_shapes_and_strides_of_the_result(taken: Taken) -> None:
    for shape, strides in [
        ((), ()),
        ((3, 1, 2), (2, 2, 1)),
        ((1, 3, 4, 1), (99, 4, 1, 7)),
        ((2, 0, 3), (3, 3, 1)),
    ]:
        z = torch.empty_strided(shape, strides).fill_(0.5)
        moved = sf.stanley_step(z, torch.ones(shape), sf.key(1), threshold=0.3)
        assert moved.shape == shape
        assert moved.stride() == torch.empty_like(z).stride()
    assert all(taken[:3])


def test_in_place_on_a_leaf_under_no_grad(taken: Taken) -> None:
    """The common loop; z's version counter moves on by one, and no one else's."""
    z, grad, key = state()
    z.requires_grad_()
    with torch.no_grad():
        sf.stanley_step_(z, grad, key, threshold=0.3)
    assert taken == [True]
    assert (z._version, grad._version, key._version) == (1, 0, 0)
    assert z.is_leaf
    assert z.requires_grad
    view = torch.zeros(10)[2:6]
    sf.langevin_step_(view, torch.ones(4), 0.1, key)
    assert view._base is not None
    assert view._base._version == 1
    assert taken == [True, True]


def test_backward_notices_that_z_was_written(taken: Taken) -> None:
    z, grad, key = state()
    weight = torch.ones(200, requires_grad=True)
    loss = (weight * z).sum()
    sf.stanley_step_(z, grad, key, threshold=0.3)
    assert taken == [True]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_key_anywhere_in_memory(taken: Taken) -> None:
    z, grad, key = state()
    want = sf.stanley_step(z, grad, key, threshold=0.3)
    odd = torch.tensor([9, *key.tolist()])[1:]
    spread = torch.stack([key, key], dim=1)[:, 1]
    for place, direct_way in ((odd, True), (spread, False)):
        assert torch.equal(sf.stanley_step(z, grad, place, threshold=0.3), want)
        assert taken[-1] is direct_way


def test_a_lazy_clone_leaves_its_original_alone() -> None:
    z, grad, key = state()
    before, lazy = z.clone(), torch._lazy_clone(z)
    sf.stanley_step_(lazy, grad, key, threshold=0.3)
    assert torch.equal(z, before)
    assert not torch.equal(lazy, before)


def test_threads_at_once(taken: Taken) -> None:
    key, count, steps = sf.key(3), 4, 300
    z0 = [state(50 + i)[0] for i in range(count)]

    def chain(z: Tensor) -> Tensor:
        for k in range(steps):
            sf.stanley_step_(z, -z, key, k, threshold=0.3)
        return z

    want, got = [chain(z.clone()) for z in z0], [z.clone() for z in z0]
    running = [threading.Thread(target=chain, args=(z,)) for z in got]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert all(map(torch.equal, got, want))
    assert taken == [True] * (2 * count * steps)


def test_no_reference_is_lost_or_kept() -> None:
    z, grad, key = state()
    gamma, number, step = torch.tensor(0.1), float("0.25"), int("123456789")
    clamp, wrong = (-float("3.5"), float("3.5")), torch.zeros(2, dtype=torch.int32)
    objects = [z, grad, key, gamma, number, step, clamp, clamp[0], wrong]
    counts = [sys.getrefcount(x) for x in objects]
    for _ in range(200):
        sf.stanley_step(z, grad, key, step, threshold=number, clamp=clamp)
        sf.stanley_step_(z, grad, key, step, threshold=number, clamp=clamp)
        sf.langevin_step_(z, grad, gamma, key, step, noise_scale=number)
        with pytest.raises(RuntimeError, match="key must be"):
            sf.stanley_step_(z, grad, wrong, step, threshold=number)
    assert [sys.getrefcount(x) for x in objects] == counts


# Arguments that go the operation's way -----------------------------------------------------------


class Subclass(Tensor):
    pass


def arguments() -> dict[str, tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]]:
    z, grad, key = state(12)
    stanley, langevin = sf.stanley_step_, sf.langevin_step_
    two, buffer = z.view(3, 4), torch.linspace(-1, 1, 20)
    good: dict[str, Any] = {"threshold": 0.3}
    tensors: dict[str, tuple[Any, ...]] = {
        "parameter": (torch.nn.Parameter(z, requires_grad=False), grad, key),
        "subclass": (z.as_subclass(Subclass), grad, key),
        "subclass for grad": (z, grad.as_subclass(Subclass), key),
        "transposed": (two.t(), grad.view(3, 4).t(), key),
        "transposed grad": (two, grad.view(4, 3).t(), key),
        "sliced": (buffer[::2], buffer[:10].clone(), key),
        "expanded z": (torch.zeros(1).expand(12), grad, key),
        "expanded grad": (z, torch.ones(1).expand(12), key),
        "overlapping grad": (buffer[:12], buffer[4:16], key),
        "negative z": (torch._neg_view(z), grad, key),
        "negative grad": (z, torch._neg_view(grad), key),
        "negative key": (z, grad, torch._neg_view(key)),
        "zero grad": (z, torch._efficientzerotensor(12), key),
        "requires grad": (z.clone().requires_grad_(), grad, key),
        "grad requires grad": (z, grad.clone().requires_grad_(), key),
        "other shape": (z, grad[:11], key),
        "other dims": (z, grad.view(3, 4), key),
        "other dtype": (z, grad.double(), key),
        "halves of two kinds": (z.half(), grad.bfloat16(), key),
        "integers": (z.long(), grad.long(), key),
        "complex": (torch.complex(z, z), torch.complex(z, z), key),
        "sparse": (z.to_sparse(), grad, key),
        "int32 key": (z, grad, key.int()),
        "three in a key": (z, grad, torch.zeros(3, dtype=torch.int64)),
        "meta": (z, grad.to("meta"), key),
        "no tensor": (z, None, key),
        "number": (z, grad, 7),
        "big step": (z, grad, key, 2**63),
        "float step": (z, grad, key, 1.0),
        "tensor step": (z, grad, key, torch.tensor(3)),
    }
    settings: dict[str, dict[str, Any]] = {
        "threshold 0": {"threshold": 0.0},
        "threshold nan": {"threshold": math.nan},
        "threshold out of range": {"threshold": 1e50},
        "threshold none": {"threshold": None},
        "threshold a tensor": {"threshold": torch.tensor(0.3)},
        "threshold of NumPy": {"threshold": np.float64(0.3)},
        "step size": {"step_size": -1.0},
        "noise scale": {"noise_scale": -1.0},
        "clamp turned": {"clamp": (1.0, -1.0)},
        "clamp a list": {"clamp": [-1.0, 1.0]},
        "clamp of three": {"clamp": (0.0, 1.0, 2.0)},
        "clamp of words": {"clamp": ("a", "b")},
        "update": {"update": "newspaper"},
        "update none": {"update": None},
        "first": {"first": -1},
        "first without total": {"first": 4},
        "total too small": {"first": 4, "total": 15},
    }
    gammas: dict[str, Any] = {
        "gamma none": None,
        "gamma 0": 0.0,
        "gamma of another dtype": torch.ones((), dtype=torch.float64),
        "gamma of another shape": torch.ones(5),
        "gamma that broadcasts": torch.ones(1, 1),
        "gamma in z": z[3:4],
        "gamma subclass": torch.ones(()).as_subclass(Subclass),
        "gamma requires grad": torch.ones((), requires_grad=True),
        "gamma int": torch.ones((), dtype=torch.int64),
    }
    return {
        **{name: (stanley, args, good) for name, args in tensors.items()},
        **{name: (stanley, (z, grad, key), good | more) for name, more in settings.items()},
        **{name: (langevin, (z, grad, gamma, key), {}) for name, gamma in gammas.items()},
    }


def outcome(case: str, functional: bool) -> tuple[object, ...]:
    """What the call gives or says, and what it has done to z."""
    function, args, kwargs = arguments()[case]
    if functional:
        function = getattr(sf, function.__name__[:-1])
    z, version = args[0], args[0]._version
    try:
        result = function(*args, **kwargs)
        said: object = (type(result), result is z, result.requires_grad, result.tolist())
    except (RuntimeError, TypeError, AttributeError, ValueError) as error:
        said = (type(error), str(error))
    values = z.detach().to_dense().resolve_neg().tolist()
    return said, values, z._version - version


@pytest.mark.parametrize("functional", [False, True], ids=["in place", "functional"])
@pytest.mark.parametrize("case", arguments())
def test_odd_arguments(
    taken: Taken, monkeypatch: pytest.MonkeyPatch, case: str, functional: bool
) -> None:
    """As if there were no short way: values, errors and what is left behind."""
    got = outcome(case, functional)
    apart = functional and case in ("overlapping grad", "gamma in z")  # nothing is written there
    assert (True in taken) is apart
    monkeypatch.setattr(direct, "step", lambda *args: None)
    assert got == outcome(case, functional)


def test_gradients_flow(taken: Taken) -> None:
    z, grad, key = state()
    z.requires_grad_()
    assert sf.stanley_step(z, grad, key, threshold=0.3).requires_grad
    assert taken == [False]
    with torch.no_grad():
        assert not sf.stanley_step(z, grad, key, threshold=0.3).requires_grad
    assert taken == [False, True]


# What may be active around the call --------------------------------------------------------------


class Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("mode", [Dispatched, Functions])
@pytest.mark.parametrize("name", ["stanley_step", "stanley_step_", "langevin_step_"])
def test_modes_see_the_operation(taken: Taken, mode: Any, name: str) -> None:
    z, grad, key = state()
    args = (z, grad, 0.1, key) if "langevin" in name else (z, grad, key)
    kwargs: dict[str, Any] = {} if "langevin" in name else {"threshold": 0.3}
    with mode() as active:
        getattr(sf, name)(*args, **kwargs)
    assert f"stanley_fast.{name}.default" in active.seen
    assert True not in taken


def test_the_profiler_sees_the_operation(taken: Taken) -> None:
    z, grad, key = state()
    with torch.profiler.profile() as profile:
        sf.stanley_step_(z, grad, key, threshold=0.3)
    assert "stanley_fast::stanley_step_" in {event.key for event in profile.key_averages()}
    assert True not in taken


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_graphs_have_the_operation(taken: Taken) -> None:
    z, grad, key = state()
    want = sf.stanley_step(z, grad, key, threshold=0.3)
    taken.clear()

    def step(z: Tensor) -> Tensor:
        return sf.stanley_step(z, grad, key, threshold=0.3)

    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    assert torch.equal(torch.compile(step, fullgraph=True, backend=keep)(z), want)
    graphs.append(make_fx(step)(z))
    symbolic = make_fx(partial(sf.stanley_step, threshold=0.3), tracing_mode="symbolic")
    graphs.append(symbolic(z, grad, key))
    for graph in graphs:
        assert "stanley_fast.stanley_step.default" in {
            str(node.target) for node in graph.graph.nodes
        }
    assert "16384" not in str(graphs[-1].shape_env.guards)  # for any size
    traced = torch.jit.trace(step, z, check_trace=False)
    assert "stanley_fast::stanley_step" in str(traced.graph)
    assert True not in taken


def test_fake_tensors(taken: Taken) -> None:
    with FakeTensorMode() as mode:
        z = torch.zeros(200)
        moved = sf.stanley_step(z, z, torch.zeros(2, dtype=torch.int64), threshold=0.3)
        sf.stanley_step_(z, z.clone(), torch.zeros(2, dtype=torch.int64), threshold=0.3)
    assert moved.fake_mode is mode  # type: ignore[attr-defined]
    assert True not in taken
    sf.stanley_step(z, z, z.long()[:2], threshold=0.3)  # outside its mode
    assert True not in taken


def leaked(z: Tensor) -> Tensor:
    """A batched tensor that outlives its vmap."""
    found: list[Tensor] = []
    torch.vmap(lambda row: found.append(row) or row.sum())(z.view(1, -1))
    return found[0]


Step = Callable[[Tensor], Tensor]
TRANSFORMS: dict[str, Callable[[Step, Tensor], Any]] = {
    "vmap": lambda step, z: torch.vmap(step)(z.expand(3, -1)),
    "grad": lambda step, z: torch.func.grad(lambda z: step(z).sum())(z),
    "vjp": lambda step, z: torch.func.vjp(step, z)[0],
    "jvp": lambda step, z: torch.func.jvp(step, (z,), (z,))[1],
    "functionalize": lambda step, z: torch.func.functionalize(step)(z),
    "dual": lambda step, z: step(forward_ad.make_dual(z, z)),
    "leaked": lambda step, z: step(leaked(z)),
}


@pytest.mark.parametrize("name", ["stanley_step", "stanley_step_"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_transforms(
    taken: Taken, monkeypatch: pytest.MonkeyPatch, transform: str, name: str
) -> None:
    """Their tensors are torch.Tensors too, and some have memory; not all of them work."""

    def run() -> object:
        z, grad, key = state(12)
        around = forward_ad.dual_level if transform == "dual" else contextlib.nullcontext
        try:
            with around():
                step = lambda z: getattr(sf, name)(z + 0.0, grad, key, threshold=0.3)  # noqa: E731
                return TRANSFORMS[transform](step, z).tolist()
        except RuntimeError as error:
            return str(error)

    got = run()
    assert True not in taken
    monkeypatch.setattr(direct, "step", lambda *args: None)
    assert got == run()


def test_inference_mode(taken: Taken) -> None:
    z, grad, key = state()
    want = sf.stanley_step(z, grad, key, threshold=0.3)
    taken.clear()
    with torch.inference_mode():
        inside = torch.ones(200)
        assert torch.equal(sf.stanley_step_(z.clone(), grad, key, threshold=0.3), want)
        assert sf.stanley_step(z, grad, key, threshold=0.3).is_inference()
    assert True not in taken
    before = inside.clone()
    with pytest.raises(RuntimeError, match="outside inference mode"):
        sf.stanley_step_(inside, grad, key, threshold=0.3)
    assert torch.equal(inside, before)
    moved = sf.stanley_step(inside, grad, key, threshold=0.3)
    assert not moved.is_inference()


@contextlib.contextmanager
def functionalization() -> Iterator[None]:
    torch._enable_functionalization(reapply_views=True)
    try:
        yield
    finally:
        torch._disable_functionalization()


CLOSED = {
    "functionalization": functionalization,
    "default device": lambda: torch.device("cpu"),
    "inference mode": torch.inference_mode,
    "forward AD": forward_ad.dual_level,
    "autograd profiler": torch.autograd.profiler.profile,
}
OPEN = {
    "no_grad": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "record_function": lambda: torch.autograd.profiler.record_function("x"),
}


@pytest.mark.parametrize("name", [*CLOSED, *OPEN])
def test_what_is_active(taken: Taken, name: str) -> None:
    z, grad, key = state()
    around: Any = (CLOSED | OPEN)[name]
    with around(), contextlib.suppress(RuntimeError):
        sf.stanley_step(z, grad, key, threshold=0.3)
    assert (True in taken) is (name in OPEN)
    sf.stanley_step(z, grad, key, threshold=0.3)
    assert taken[-1]


def test_a_backend_that_was_asked_for(taken: Taken) -> None:
    z, grad, key = state()
    for name, reason in sf.backends().items():
        if reason is None and name != "cuda":
            with sf.use_backend(name), contextlib.suppress(RuntimeError):
                sf.stanley_step(z, grad, key, threshold=0.3)
            assert taken == [True] * (name == "cpp")
            taken.clear()


# The module itself -------------------------------------------------------------------------------


def test_module_needs_no_torch() -> None:
    from stanley_fast import _direct

    assert needed(str(_direct.__file__)) - SYSTEM == set()


def test_its_arguments() -> None:
    """Only direct.py calls it, with all of them."""
    with pytest.raises(RuntimeError, match="not its arguments"):
        direct.step(*state())  # type: ignore[call-arg]


def test_a_torch_without_the_protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is the operation's."""
    monkeypatch.delattr(Tensor, "__dlpack_c_exchange_api__")
    declines, why_not = direct._connect()
    assert why_not
    z, grad, key = state()
    want = sf.stanley_step(z, grad, key, threshold=0.3)
    assert declines(z, grad, None, key, 0, 0.3, 1.0, 1.0, None, "paper", 0, None, False) is None
    monkeypatch.setattr(direct, "step", declines)
    assert torch.equal(sf.stanley_step(z, grad, key, threshold=0.3), want)
