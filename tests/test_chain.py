"""sample(): the chain of a hand-written loop, whatever f is, with everything put back after."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import stanley_fast as sf
from stanley_fast.chain import NonFiniteError, sample
from stanley_fast.density import Density
from stanley_fast.energies import MLPEnergy
from stanley_fast.samplers import Langevin, Sampler, Stanley

SAMPLERS = [
    Stanley(0.3, 0.7, 0.2),
    Stanley(0.3, 0.7, 0.2, clamp=(-1.0, 1.0)),
    Stanley(0.3, 0.7, 0.2, stepsize="frozen"),
    Stanley(0.3, 0.7, 0.2, norm="sample", update="script"),
    Langevin(0.14, 0.2),
]


pytestmark = pytest.mark.usefixtures("one_thread")


class Net(MLPEnergy):
    """Runs step by step: the whole-chain kernel does not know its class."""


@pytest.fixture
def f() -> MLPEnergy:
    torch.manual_seed(0)
    net = Net((2, 16, 16, 1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter *= 2  # gradients on both sides of the samplers' threshold
    return net


@pytest.fixture
def z0() -> Tensor:
    return sf.normal((10, 2), sf.key(1), stream=2)


def quadratic(z: Tensor) -> Tensor:
    return -z.flatten(1).square().sum(1) / 2


def gradient(f: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    z = z.detach().requires_grad_()
    value = f(z)
    return value.detach(), torch.autograd.grad(value.sum(), z)[0]


def by_hand(f: Callable[[Tensor], Tensor], z: Tensor, sampler: Sampler, steps: int) -> list[Tensor]:
    """All states z_0 ... z_K of the sampler's own transitions, key 7."""
    states, density = [z], Density(f)
    state = sampler.init(z, density)
    for k in range(steps):
        state, _ = sampler.step(state, density, sf.key(7), k)
        states.append(state.z.clone())  # which the next step moves
    return states


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_is_the_loop_written_by_hand(f: MLPEnergy, z0: Tensor, sampler: Sampler) -> None:
    out = sample(f, z0, sampler, 20, key=sf.key(7))
    assert torch.equal(out.z, by_hand(f, z0, sampler, 20)[-1])


@pytest.mark.parametrize("name", ["stanley", "langevin"])
def test_is_the_loop_of_the_operations(f: MLPEnergy, z0: Tensor, name: str) -> None:
    """The same without the samplers' code."""
    z = z0
    for k in range(20):
        grad = gradient(f, z)[1]
        if name == "stanley":
            z = sf.stanley_step(z, grad, sf.key(7), k, threshold=0.3, noise_scale=0.2)
        else:
            z = sf.langevin_step(z, grad, 0.14, sf.key(7), k, noise_scale=0.2)
    sampler = Stanley(0.3, noise_scale=0.2) if name == "stanley" else Langevin(0.14, 0.2)
    assert torch.equal(sample(f, z0, sampler, 20, key=sf.key(7)).z, z)


def test_two_chains_in_a_row_go_on_with_the_key(f: MLPEnergy, z0: Tensor) -> None:
    sampler = Stanley(0.3, noise_scale=0.2)
    whole = sample(f, z0, sampler, 12, key=sf.key(7))
    first = sample(f, z0, sampler, 5, key=sf.key(7))
    second = sample(f, first.z, sampler, 7, key=first.key)
    assert torch.equal(second.z, whole.z)
    assert torch.equal(second.key, whole.key)


def test_two_halves_are_the_whole(f: MLPEnergy, z0: Tensor) -> None:
    # An elementwise f: a net's matrix products may round by the batch size.
    sampler = Stanley(0.3, noise_scale=0.2, norm="sample")
    whole = sample(quadratic, z0, sampler, 12, key=sf.key(7))
    n = z0.numel()
    parts = [
        sample(quadratic, z0[:3], sampler, 12, key=sf.key(7), total=n),
        sample(quadratic, z0[3:], sampler, 12, key=sf.key(7), first=6, total=n),
    ]
    assert torch.equal(torch.cat([p.z for p in parts]), whole.z)
    for part in parts:
        assert torch.equal(part.key, whole.key)


@pytest.mark.parametrize(("shape", "blocks"), [((10, 2), 5), ((3, 3), 3), ((1, 1), 1)])
def test_key_is_moved_past_the_noise(shape: tuple[int, ...], blocks: int) -> None:
    key = torch.tensor([7, 100])
    out = sample(quadratic, torch.zeros(shape), Langevin(0.1), 6, key=key)
    assert out.key.tolist() == [7, 100 + 6 * blocks]
    assert key.tolist() == [7, 100]


def test_key_from_a_generator_or_the_default_one(z0: Tensor) -> None:
    key = sf.key(torch.Generator().manual_seed(5))
    wanted = sample(quadratic, z0, Langevin(0.1), 3, key=key).z
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(sample(quadratic, z0, Langevin(0.1), 3, key=generator).z, wanted)
    torch.manual_seed(5)
    assert torch.equal(sample(quadratic, z0, Langevin(0.1), 3).z, wanted)


@pytest.mark.parametrize("keep", ["plain", "grad", "leaf"])
def test_z0_stays(f: MLPEnergy, z0: Tensor, keep: str) -> None:
    z0.requires_grad_(keep != "plain")
    start, before = (z0 if keep != "grad" else z0 * 1), z0.detach().clone()
    version = start._version
    out = sample(f, start, Stanley(0.3), 5, key=sf.key(7))
    assert torch.equal(start.detach(), before)
    assert start._version == version
    assert not out.z.requires_grad
    assert z0.grad is None


def test_no_steps_give_a_copy(f: MLPEnergy, z0: Tensor) -> None:
    out = sample(f, z0, Stanley(0.3), 0, key=sf.key(7), record=["grad_abs"], keep_every=1)
    assert torch.equal(out.z, z0)
    assert out.z.data_ptr() != z0.data_ptr()
    assert out.key.tolist() == [7, 0]
    assert out.stats["grad_abs"].shape == (0,)
    assert out.trace is not None
    assert out.trace.shape == (0, 10, 2)


def test_no_chains() -> None:
    out = sample(quadratic, torch.zeros(0, 2), Stanley(0.3), 3, key=sf.key(7), keep_every=1)
    assert out.z.shape == (0, 2)
    assert out.key.tolist() == [7, 0]


@pytest.mark.parametrize(
    "layout",
    [
        lambda z: z.t().contiguous().t(),
        lambda z: torch.cat([z, z], 1)[:, :2],
        lambda z: z[:1].expand(10, 2),
    ],
    ids=["transposed", "sliced", "expanded"],
)
def test_strides_do_not_matter(f: MLPEnergy, z0: Tensor, layout: Callable) -> None:
    start = layout(z0)
    got = sample(f, start, Stanley(0.3), 5, key=sf.key(7)).z
    assert torch.equal(got, sample(f, start.contiguous(), Stanley(0.3), 5, key=sf.key(7)).z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(z0: Tensor, dtype: torch.dtype) -> None:
    out = sample(quadratic, z0.to(dtype), Stanley(0.3), 3, key=sf.key(7), record=["grad_abs"])
    assert out.z.dtype == out.stats["grad_abs"].dtype == dtype


# f is left as it was -------------------------------------------------------------------------


class Mixed(nn.Module):
    """One submodule in eval mode, dropout, and a parameter that was frozen by its owner."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Linear(8, 1)
        self.head.bias.requires_grad_(False)
        self.body[1].eval()
        self.modes: list[bool] = []
        self.asking: list[bool] = []

    def forward(self, z: Tensor) -> Tensor:
        self.modes += [m.training for m in self.modules()]
        self.asking += [p.requires_grad for p in self.parameters()]
        return self.head(self.body(z)).squeeze(1)


def flags(f: nn.Module) -> list[bool]:
    return [m.training for m in f.modules()] + [p.requires_grad for p in f.parameters()]


def test_module_runs_in_eval_mode_and_is_put_back(z0: Tensor) -> None:
    f = Mixed()
    before, state = flags(f), {n: t.clone() for n, t in f.state_dict().items()}
    out = sample(f, z0, Stanley(0.3), 3, key=sf.key(7))
    assert not any(f.modes)  # so no dropout, and batch-norm statistics at rest
    assert not any(f.asking)
    assert flags(f) == before
    assert all(torch.equal(t, state[n]) for n, t in f.state_dict().items())
    assert all(p.grad is None for p in f.parameters())
    again = sample(f, z0, Stanley(0.3), 3, key=sf.key(7))
    assert torch.equal(out.z, again.z)


def test_module_is_put_back_on_errors(z0: Tensor) -> None:
    f = Mixed()
    before = flags(f)
    with pytest.raises(ZeroDivisionError):
        sample(f, z0, Stanley(0.3), 3, key=sf.key(7), callback=lambda k, z: 1 / 0)
    assert flags(f) == before


def test_a_function_of_a_module_gives_its_parameters_no_gradient(f: MLPEnergy, z0: Tensor) -> None:
    sample(lambda z: f(z), z0, Stanley(0.3), 3, key=sf.key(7))
    assert all(p.grad is None for p in f.parameters())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(f: MLPEnergy, z0: Tensor, mode: Callable) -> None:
    wanted = sample(f, z0, Stanley(0.3), 5, key=sf.key(7)).z
    with mode():
        got = sample(f, z0.clone(), Stanley(0.3), 5, key=sf.key(7)).z
    assert torch.equal(got, wanted)


# What is kept --------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_statistics_of_every_step(f: MLPEnergy, z0: Tensor, sampler: Sampler) -> None:
    names = ("log_density", "grad_abs", "stepsize", "at_max_stepsize")
    out = sample(f, z0, sampler, 8, key=sf.key(7), record=names)
    assert tuple(out.stats) == names
    first = None
    for k, z in enumerate(by_hand(f, z0, sampler, 8)[:-1]):
        value, grad = gradient(f, z)
        first = grad if first is None else first
        if isinstance(sampler, Langevin):
            gamma, largest = torch.full_like(grad, 0.14), 0.14
        else:
            source = first if sampler.stepsize == "frozen" else grad
            size = source.norm(dim=1, keepdim=True) if sampler.norm == "sample" else source.abs()
            gamma, largest = (0.7 * 0.3 / size.clamp_min(0.3)).expand_as(z), 0.7
        wanted = {
            "log_density": value.mean(),
            "grad_abs": grad.abs().mean(),
            "stepsize": gamma.mean(),
            "at_max_stepsize": (gamma >= largest).float().mean(),
        }
        for name in names:
            torch.testing.assert_close(out.stats[name][k], wanted[name], rtol=1e-5, atol=1e-6)


def test_recording_does_not_change_the_chain(f: MLPEnergy, z0: Tensor) -> None:
    sampler = Stanley(0.3, noise_scale=0.2)
    plain = sample(f, z0, sampler, 9, key=sf.key(7))
    assert plain.stats == {}
    assert plain.trace is None
    kept = sample(f, z0, sampler, 9, key=sf.key(7), record=["stepsize"], keep_every=2)
    assert torch.equal(kept.z, plain.z)


@pytest.mark.parametrize("backprop_steps", [0, 4])
def test_trace_and_callback(f: MLPEnergy, z0: Tensor, backprop_steps: int) -> None:
    seen: list[tuple[int, Tensor]] = []
    out = sample(
        f, z0, Stanley(0.3), 7, key=sf.key(7), keep_every=3, backprop_steps=backprop_steps,
        callback=lambda k, z: seen.append((k, z.clone())),
    )  # fmt: skip
    states = by_hand(f, z0, Stanley(0.3), 7)
    assert out.trace is not None
    assert torch.equal(out.trace, torch.stack([states[3], states[6]]))
    assert [k for k, _ in seen] == list(range(7))
    assert all(torch.equal(z, states[k + 1]) for k, z in seen)


# Gradients through the chain -----------------------------------------------------------------


class Quartic(nn.Module):
    """Smooth, and its gradient depends on z and the parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return -(self.weight * z.square() + z**4 / 8).sum(1)


# No clamp: its gradient is 0. A frozen stepsize is in the graph only where the first step is.
@pytest.mark.parametrize(
    ("sampler", "n"),
    [(s, n) for s in (SAMPLERS[0], *SAMPLERS[3:]) for n in (1, 3, 5)] + [(SAMPLERS[2], 5)],
    ids=repr,
)
def test_backprop_through_the_last_steps(z0: Tensor, sampler: Sampler, n: int) -> None:
    """Central differences of a chain whose first steps are held fixed."""
    steps, f = 5, Quartic()
    start = z0.double().requires_grad_()
    out = sample(f, start, sampler, steps, key=sf.key(7), backprop_steps=n)
    out.z.square().sum().backward()

    middle = sample(f, start, sampler, steps - n, key=sf.key(7))

    def loss(weight: float, z: Tensor) -> float:
        g = Quartic()
        g.weight.data.fill_(weight)
        return float(sample(g, z, sampler, n, key=middle.key).z.square().sum())

    h = 1e-6
    z = middle.z
    slope = (loss(0.7 + h, z) - loss(0.7 - h, z)) / (2 * h)
    assert float(f.weight.grad) == pytest.approx(slope, rel=1e-5)
    if n < steps:
        assert start.grad is None
    else:
        bump = torch.zeros_like(z)
        bump[4, 1] = h
        slope = (loss(0.7, z + bump) - loss(0.7, z - bump)) / (2 * h)
        assert float(start.grad[4, 1]) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_backprop_gives_the_same_chain(f: MLPEnergy, z0: Tensor) -> None:
    plain = sample(f, z0, Stanley(0.3), 6, key=sf.key(7))
    with torch.no_grad():
        kept = sample(f, z0, Stanley(0.3), 6, key=sf.key(7), backprop_steps=2)
    assert kept.z.requires_grad
    assert torch.equal(kept.z, plain.z)
    kept.z.sum().backward()
    assert f.net[0].weight.grad.abs().sum() > 0


# Bad values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_gradient_that_is_not_finite(bad: float) -> None:
    """Chain 2's gradient turns bad at the step its state passes 0.5."""

    def f(z: Tensor) -> Tensor:
        slope = torch.where(z.detach() > 0.5, bad, 1.0)
        return (slope * z).sum(1)

    z0 = torch.tensor([[-9.0], [-9.0], [-0.25], [-9.0]])
    with pytest.raises(NonFiniteError, match=r"step 2 in chain 2: the gradient of f") as caught:
        sample(f, z0, Langevin(1.0, 0.0), 5, key=sf.key(7))
    assert (caught.value.step, caught.value.chains) == (2, [2])


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_start_that_is_not_finite(steps: int) -> None:
    z0 = torch.zeros(4, 3)
    z0[1, 2], z0[3, 0] = math.nan, math.inf
    with pytest.raises(NonFiniteError, match=r"step 0 in chain 1 and 1 more: the state") as caught:
        sample(lambda z: z.clamp(-1, 1).sum(1), z0, Stanley(0.1), steps, key=sf.key(7))
    assert caught.value.chains == [1, 3]


def test_a_state_that_overflows_at_the_last_step() -> None:
    z0 = torch.tensor([[0.0], [3e38]])
    with pytest.raises(NonFiniteError, match="step 1 in chain 1: the state"):
        sample(lambda z: 1e38 * z.sum(1), z0, Langevin(4.0, 0.0), 1, key=sf.key(7))


def test_an_infinite_gradient_is_not_hidden_by_a_clamp() -> None:
    f = lambda z: torch.where(z.detach() > 0, math.inf, 1.0).mul(z).sum(1)  # noqa: E731
    sampler = Langevin(0.1, 0.0, grad_clamp=1.0, clamp=(-1.0, 1.0))
    with pytest.raises(NonFiniteError, match="step 0 in chain 1"):
        sample(f, torch.tensor([[-1.0], [1.0]]), sampler, 3, key=sf.key(7))


def test_large_finite_values_are_no_error() -> None:
    """z . g overflows float32, z and g do not."""
    out = sample(lambda z: 1e25 * z.sum(1), torch.full((4, 1), 1e20), Stanley(0.1), 3)
    assert out.z.isfinite().all()


def test_a_parameter_that_is_nan(f: MLPEnergy, z0: Tensor) -> None:
    f.net[2].weight.data[0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="step 0 in chain 0 and 9 more: the gradient of f"):
        sample(f, z0, Stanley(0.1), 3, key=sf.key(7))


# Bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (lambda z: z.sum(1, keepdim=True), r"shape \[4\].*got shape \[4, 1\]"),
        (lambda z: z.sum(), r"shape \[4\].*got shape \[\]"),
        (lambda z: z, r"shape \[4\].*got shape \[4, 3\]"),
        (lambda z: z.detach().sum(1), "depends on z through autograd.*detached"),
        (lambda z: torch.ones(4), "depends on z through autograd.*detached"),
        (lambda z: torch.ones(4, requires_grad=True) * 2, "depends on z through autograd"),
        (lambda z: torch.tensor([1.0, 2.0, 3.0, 4.0]).requires_grad_(), "depends on z"),
        (lambda z: 1.0, r" a tensor of shape \[4\], got .*float"),
    ],
)
def test_f_that_is_no_log_density(f: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(RuntimeError, match=f"f must return.*{message}"):
        sample(f, torch.zeros(4, 3), Stanley(0.1), 3, key=sf.key(7))


def test_a_module_detached_from_z_whose_parameters_ask_for_gradients() -> None:
    class Detached(MLPEnergy):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z.detach())

    for n in (0, 1):
        with pytest.raises(RuntimeError, match=r"f must return .*detached from z"):
            sample(Detached(), torch.zeros(4, 2), Stanley(0.1), 1, backprop_steps=n)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"z0": torch.zeros(4, dtype=torch.long)}, RuntimeError, "z0 must be float32, float64"),
        ({"z0": torch.zeros(())}, ValueError, "z0 must have a batch dimension"),
        ({"sampler": 0.1}, TypeError, "sampler must be .* got 0.1"),
        ({"steps": -1}, ValueError, "steps must be 0 or more, got -1"),
        ({"key": torch.zeros(3, dtype=torch.long)}, RuntimeError, "key must be an int64 tensor"),
        ({"key": torch.zeros(2)}, RuntimeError, "key must be an int64 tensor"),
        ({"record": ["grad"]}, ValueError, "record knows .*at_max_stepsize; got 'grad'"),
        ({"record": "grad_abs"}, TypeError, "record must be a sequence of names"),
        ({"keep_every": 0}, ValueError, "keep_every must be 1 or more"),
        ({"backprop_steps": 4}, ValueError, r"backprop_steps must be in \[0, steps = 3\], got 4"),
        ({"backprop_steps": -1}, ValueError, "backprop_steps must be"),
        ({"compile": True, "backprop_steps": 1}, ValueError, "backprop_steps must be 0"),
        ({"graph": 2}, ValueError, "graph must be 'auto', True or False, got 2"),
        ({"graph": True, "fused": True}, ValueError, "graph and fused must not both be True"),
        ({"graph": True}, ValueError, "here: the device is cpu, not a GPU"),
        ({"autocast": torch.float32}, ValueError, "autocast must be bfloat16, float16 or None"),
        ({"fused": 1.5}, ValueError, "fused must be 'auto', True or False, got 1.5"),
        ({"first": 8}, RuntimeError, "total must be given"),
        ({"first": 8, "total": 12}, RuntimeError, r"at most total, got 8 \+ 12 > 12"),
        ({"first": -4, "total": 12}, RuntimeError, "first must be 0 or more"),
    ],
)
def test_bad_arguments(arguments: dict, error: type[Exception], message: str) -> None:
    calls: list[Tensor] = []

    def f(z: Tensor) -> Tensor:
        calls.append(z)
        return quadratic(z)

    good = {"f": f, "z0": torch.zeros(4, 3), "sampler": Stanley(0.1), "steps": 3}
    with pytest.raises(error, match=message):
        sample(**good | arguments)
    assert not calls


def test_auto_and_false_take_the_plain_way(z0: Tensor) -> None:
    out = sample(quadratic, z0, Stanley(0.1), 3, key=sf.key(7), graph=False, fused=False)
    assert torch.equal(out.z, sample(quadratic, z0, Stanley(0.1), 3, key=sf.key(7)).z)
    assert out.rung.startswith("step")


def test_compiled_f_gives_the_same_chain(f: MLPEnergy, z0: Tensor) -> None:
    wanted = sample(f, z0, Stanley(0.3), 4, key=sf.key(7)).z
    got = sample(f, z0, Stanley(0.3), 4, key=sf.key(7), compile=True).z
    # Four steps of a net whose kernels round differently: a few units in the last place of each.
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_a_method_of_a_module_runs_in_eval_mode_too() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))

        def log_density(self, z: Tensor) -> Tensor:
            assert not self.training
            assert not self.net[0].weight.requires_grad
            return self.net(z)[:, 0]

    model = Model()
    sample(model.log_density, torch.zeros(3, 2), Stanley(0.1), 2, key=sf.key(0))
    assert model.training
    assert model.net[0].weight.requires_grad
