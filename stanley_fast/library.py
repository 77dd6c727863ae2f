"""Registers every operation with torch.library: schema, shape inference, autograd.

The compiled library and Triton only supply kernels for the schemas below, in a namespace each,
since both serve CUDA tensors; `ops` has the functions that people call.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from stanley_fast import checks

# What the steps share. No clamp is (-inf, inf); script selects the author's script's update,
# stochastic the rounding of a bfloat16 state.
_STEP = (
    "Tensor key, SymInt step, {}float noise_scale, float clamp_min, float clamp_max, bool script, "
    "SymInt first, SymInt? total, bool stochastic=False"
)
_STANLEY = _STEP.format("float threshold, float step_size, ")
_LANGEVIN = _STEP.format("")

_SCHEMAS = (
    f"stanley_step(Tensor z, Tensor grad, {_STANLEY}) -> Tensor",
    f"stanley_step_(Tensor(a!) z, Tensor grad, {_STANLEY}) -> ()",
    # z is given only where clamp may have cut; without it grad_z is empty: grad_out is the answer.
    f"stanley_step_backward(Tensor grad_out, Tensor? z, Tensor grad, {_STANLEY})"
    " -> (Tensor grad_z, Tensor grad_grad)",
    f"langevin_step(Tensor z, Tensor grad, Tensor gamma, {_LANGEVIN}) -> Tensor",
    f"langevin_step_(Tensor(a!) z, Tensor grad, Tensor gamma, {_LANGEVIN}) -> ()",
    f"langevin_step_backward(Tensor grad_out, Tensor? z, Tensor grad, Tensor gamma, {_LANGEVIN})"
    " -> (Tensor grad_z, Tensor grad_grad, Tensor grad_gamma)",
    "normal_(Tensor(a!) out, Tensor key, SymInt step, int stream, SymInt first, SymInt? total)"
    " -> ()",
    "stepsize(Tensor grad, float threshold, float step_size) -> Tensor",
    # A threshold of inf is one stepsize for all; step_size is given where gamma is not.
    "proposal_log_ratio(Tensor z, Tensor grad, Tensor z_new, Tensor grad_new, Tensor? gamma, "
    "Tensor? gamma_new, Tensor? step_size, float threshold, float noise_scale) -> Tensor",
    "accept_(Tensor(a!) z, Tensor(b!)? grad, Tensor(c!) log_density, Tensor z_new, "
    "Tensor? grad_new, Tensor log_density_new, Tensor log_ratio, Tensor key, SymInt step, "
    "SymInt first, SymInt? total) -> (Tensor accepted, Tensor probability)",
    "leapfrog_(Tensor(a!) z, Tensor(b!) momentum, Tensor grad, Tensor step_size, float kick, "
    "Tensor? inverse_mass) -> ()",
)

# Whole chains of a small net: no CUDA C++. Stepsizes are gamma's, or without it Eq. 4's. stats
# is (4, steps), mean |grad|, f, stepsize and share at the largest one; (4, 0) unless record.
_CHAIN = (
    "mlp_chain(Tensor z, Tensor[] weights, Tensor[] biases, str activation, float slope, "
    "Tensor? gamma, Tensor key, SymInt step, SymInt steps, float threshold, float step_size, "
    "float noise_scale, float grad_clamp, float clamp_min, float clamp_max, bool script, "
    "SymInt first, SymInt? total, bool record) -> (Tensor z, Tensor stats)"
)

# The values and the gradient of such nets; the parameters' is one vector, layer by layer the
# weights and the biases. A gradient that is not wanted is empty.
_NET = "Tensor z, Tensor[] weights, Tensor[] biases, str activation, float slope"
_DENSITY = (
    f"mlp_log_density({_NET}) -> Tensor",
    f"mlp_log_density_backward(Tensor grad_out, {_NET}, bool with_z, bool with_parameters)"
    " -> (Tensor grad_z, Tensor grad_parameters)",
)

# The values of convolutional nets and their gradient by z. The weights are packed once for many
# calls, in the order of this machine's vectors; without with_grad the gradient is empty.
_CONV = (
    "conv_pack(Tensor[] weights, Tensor[] biases, Tensor readout, Tensor readout_bias) -> Tensor",
    "conv_log_density(Tensor z, Tensor packed, SymInt[] channels, float slope, bool with_grad)"
    " -> (Tensor f, Tensor grad)",
)

COMPILED, TRITON = "stanley_fast", "stanley_fast_triton"
_libraries = {name: torch.library.Library(name, "DEF") for name in (COMPILED, TRITON)}
for _library in _libraries.values():
    for _schema in _SCHEMAS:
        _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.define(_CHAIN, tags=(torch.Tag.pt2_compliant_tag,))
for _schema in (*_DENSITY, *_CONV):
    _libraries[COMPILED].define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


# Shape inference ---------------------------------------------------------------------------------


def _check_step(
    z: Tensor,
    grad: Tensor,
    key: Tensor,
    step: int,
    noise_scale: float,
    clamp_min: float,
    clamp_max: float,
    script: bool,
    first: int,
    total: int | None,
    stochastic: bool = False,
) -> None:
    clamp = (clamp_min, clamp_max)
    update, rounding = checks.UPDATES[script], checks.ROUNDINGS[stochastic]
    checks.step(z, grad, key, step, noise_scale, clamp, update, rounding, first, total)


def _check_stanley(
    z: Tensor, grad: Tensor, key: Tensor, step: int, threshold: float, step_size: float, *rest: Any
) -> None:
    checks.stepsize(grad, threshold, step_size)
    _check_step(z, grad, key, step, *rest)


def _check_langevin(z: Tensor, grad: Tensor, gamma: Tensor, key: Tensor, *rest: Any) -> None:
    checks.gamma(gamma, z)
    _check_step(z, grad, key, *rest)


def _fake(name: str) -> Callable[..., Any]:
    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for namespace, library in _libraries.items():
            torch.library.register_fake(f"{namespace}::{name}", function, lib=library)
        return function

    return register


@_fake("stanley_step")
def _(z: Tensor, *rest: Any) -> Tensor:
    _check_stanley(z, *rest)
    return torch.empty_like(z)


@_fake("stanley_step_")
def _(z: Tensor, *rest: Any) -> None:
    _check_stanley(z, *rest)


@_fake("langevin_step")
def _(z: Tensor, *rest: Any) -> Tensor:
    _check_langevin(z, *rest)
    return torch.empty_like(z)


@_fake("langevin_step_")
def _(z: Tensor, *rest: Any) -> None:
    _check_langevin(z, *rest)


def _like_or_empty(tensor: Tensor, wanted: bool) -> Tensor:
    return tensor.new_empty(tensor.shape if wanted else (0,))


def _stepsizes_like(tensor: Tensor) -> Tensor:
    return tensor.new_empty(tensor.shape, dtype=checks.compute_dtype(tensor.dtype))


@_fake("stanley_step_backward")
def _(grad_out: Tensor, z: Tensor | None, grad: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _like_or_empty(grad_out, z is not None), _like_or_empty(grad_out, True)


@_fake("langevin_step_backward")
def _(
    grad_out: Tensor, z: Tensor | None, grad: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        _like_or_empty(grad_out, z is not None),
        _like_or_empty(grad_out, True),
        _stepsizes_like(grad_out),
    )


@_fake("normal_")
def _(out: Tensor, key: Tensor, step: int, stream: int, first: int, total: int | None) -> None:
    checks.normal(out.numel(), key, step, stream, out.dtype, first, total)


@_fake("stepsize")
def _(grad: Tensor, threshold: float, step_size: float) -> Tensor:
    checks.stepsize(grad, threshold, step_size)
    return torch.empty_like(grad, dtype=checks.compute_dtype(grad.dtype))


@_fake("proposal_log_ratio")
def _(z: Tensor, grad: Tensor, z_new: Tensor, grad_new: Tensor, gamma: Tensor | None,
      gamma_new: Tensor | None, step_size: Tensor | None, threshold: float, noise_scale: float,
      ) -> Tensor:  # fmt: skip
    checks.proposal(
        z, grad, z_new, grad_new, gamma, gamma_new, step_size, threshold, noise_scale
    )  # fmt: skip
    return z.new_empty(z.shape[:1], dtype=torch.float64)


@_fake("accept_")
def _(z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    checks.accept(z, *rest)
    chains = z.shape[:1]
    return z.new_empty(chains, dtype=torch.bool), z.new_empty(chains, dtype=torch.float64)


@_fake("leapfrog_")
def _(z: Tensor, *rest: Any) -> None:
    checks.leapfrog(z, *rest)


@_fake("mlp_chain")
def _(z: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    steps, record = rest[7], rest[-1]
    return z.new_empty(z.shape), z.new_empty(4, steps if record else 0)


def _density(z: Tensor, *rest: Any) -> Tensor:
    return z.new_empty(z.shape[0])


def _density_backward(
    grad_out: Tensor,
    z: Tensor,
    weights: list[Tensor],
    biases: list[Tensor],
    activation: str,
    slope: float,
    with_z: bool,
    with_parameters: bool,
) -> tuple[Tensor, Tensor]:
    parameters = sum(p.numel() for p in (*weights, *biases)) if with_parameters else 0
    return z.new_empty(z.shape[0] if with_z else 0, z.shape[1]), z.new_empty(parameters)


def _conv_pack(
    weights: list[Tensor], biases: list[Tensor], readout: Tensor, readout_bias: Tensor
) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()  # its order is the machine's
    return readout.new_empty(size)


def _conv_log_density(
    z: Tensor, packed: Tensor, channels: list[int], slope: float, with_grad: bool
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[0]), z.new_empty(z.shape[0] if with_grad else 0, *z.shape[1:])


for _name, _function in (
    ("mlp_log_density", _density),
    ("mlp_log_density_backward", _density_backward),
    ("conv_pack", _conv_pack),
    ("conv_log_density", _conv_log_density),
):
    torch.library.register_fake(f"{COMPILED}::{_name}", _function, lib=_libraries[COMPILED])


# Autograd ----------------------------------------------------------------------------------------


def _clamped(clamp_min: float, clamp_max: float) -> bool:
    return clamp_min > -math.inf or clamp_max < math.inf


def _save_stanley(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, grad, key, *ctx.rest = inputs
    # The key may move on before backward runs; xi must be made again from the key as it was.
    ctx.save_for_backward(z if _clamped(*inputs[7:9]) else None, grad, key.clone())


def _stanley_backward(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    z, grad, key = ctx.saved_tensors
    grad_z, grad_grad = ops.stanley_step_backward(grad_out, z, grad, key, *ctx.rest)
    return grad_out if z is None else grad_z, grad_grad, None, *[None] * len(ctx.rest)


def _save_langevin(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, grad, gamma, key, *ctx.rest = inputs
    ctx.save_for_backward(z if _clamped(*inputs[6:8]) else None, grad, gamma, key.clone())


def _langevin_backward(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
    z, grad, gamma, key = ctx.saved_tensors
    grads = ops.langevin_step_backward(grad_out, z, grad, gamma, key, *ctx.rest)
    grad_gamma = grads[2].sum_to_size(gamma.shape)
    return grad_out if z is None else grads[0], grads[1], grad_gamma, None, *[None] * len(ctx.rest)


def _save_stepsize(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, ctx.threshold, _ = inputs
    ctx.save_for_backward(grad, output)


def _stepsize_backward(ops: Any, ctx: Any, grad_out: Tensor) -> tuple[Tensor, None, None]:
    grad, gamma = ctx.saved_tensors
    wide = grad.to(gamma.dtype)
    flat = wide.abs() <= ctx.threshold  # elsewhere d gamma / d grad = -gamma / grad
    return torch.where(flat, 0.0, -grad_out * gamma / wide).to(grad.dtype), None, None


def _once(ops: Any, ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "stanley_step and langevin_step are differentiable once: their backward has no derivative. "
        "For second derivatives use stanley_fast.reference, which is plain torch."
    )


_DERIVATIVES: tuple[tuple[str, Callable[..., Any], Callable[..., None] | None], ...] = (
    ("stanley_step", _stanley_backward, _save_stanley),
    ("langevin_step", _langevin_backward, _save_langevin),
    ("stepsize", _stepsize_backward, _save_stepsize),
    ("stanley_step_backward", _once, None),
    ("langevin_step_backward", _once, None),
)
for _namespace, _library in _libraries.items():
    for _name, _backward, _save in _DERIVATIVES:
        torch.library.register_autograd(
            f"{_namespace}::{_name}",
            partial(_backward, getattr(torch.ops, _namespace)),
            setup_context=_save,
            lib=_library,
        )


def _never(name: str, instead: str, ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(f"{name} has no gradient; {instead}")


for _name, _instead, _namespaces in (
    ("mlp_chain", "sample(backprop_steps=...) goes step by step", (COMPILED, TRITON)),
    ("conv_log_density", "call f itself, which is plain torch", (COMPILED,)),
    ("conv_pack", "call f itself, which is plain torch", (COMPILED,)),
):
    for _namespace in _namespaces:
        torch.library.register_autograd(
            f"{_namespace}::{_name}", partial(_never, _name, _instead), lib=_libraries[_namespace]
        )


def _save_density(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, weights, biases, *ctx.rest = inputs
    ctx.layers = len(weights)
    ctx.save_for_backward(z, *weights, *biases)


def _density_gradient(ctx: Any, grad_out: Tensor) -> tuple[Any, ...]:
    z, *parameters = ctx.saved_tensors
    weights, biases = parameters[: ctx.layers], parameters[ctx.layers :]
    with_z, *wanted = ctx.needs_input_grad[:3]
    with_parameters = any(any(each) for each in wanted)
    grad_z, flat = torch.ops.stanley_fast.mlp_log_density_backward(
        grad_out, z, weights, biases, *ctx.rest, with_z, with_parameters
    )
    grads: tuple[Any, ...] = ([None] * ctx.layers, [None] * ctx.layers)
    if with_parameters:
        sizes = [p.numel() for pair in zip(weights, biases, strict=True) for p in pair]
        pieces = flat.split(sizes)
        by_weights = [piece.view_as(w) for piece, w in zip(pieces[::2], weights, strict=True)]
        grads = by_weights, list(pieces[1::2])
    return grad_z if with_z else None, *grads, None, None


def _density_once(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "mlp_log_density is differentiable once: its backward has no derivative. For second "
        "derivatives call f itself, which is plain torch."
    )


for _name, _formula, _keep in (
    ("mlp_log_density", _density_gradient, _save_density),
    ("mlp_log_density_backward", _density_once, None),
):
    torch.library.register_autograd(
        f"{COMPILED}::{_name}", _formula, setup_context=_keep, lib=_libraries[COMPILED]
    )


def refuse_grad() -> None:
    """For an in-place step one of whose tensors requires grad."""
    if torch.is_grad_enabled():
        raise RuntimeError(
            "an in-place step has no gradient, but grad mode is on and z, grad or gamma requires "
            "grad; use the functional step, detach them, or run under torch.no_grad()"
        )


def refuse_metropolis_grad(args: tuple[Any, ...]) -> None:
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
        raise RuntimeError(
            "the Metropolis operations have no gradient, but grad mode is on and an argument "
            "requires grad; detach it, or run under torch.no_grad()"
        )


# Which arguments an operation writes.
WRITTEN = {"accept_": slice(0, 3), "leapfrog_": slice(0, 2), "proposal_log_ratio": slice(0)}


def below_autograd(op: Any, args: tuple[Any, ...], written: slice = slice(1)) -> Any:
    """Runs a kernel that writes some of its arguments, and tells autograd that they changed."""
    tensors = [t for t in args[written] if t is not None]
    in_inference = torch.is_inference_mode_enabled()
    if not in_inference and any(t.is_inference() for t in tensors):
        raise RuntimeError("z is an inference tensor, written in place outside inference mode")
    with torch._C._AutoDispatchBelowADInplaceOrView():
        result = op(*args)
    for tensor in tensors:
        if not tensor.is_inference():
            torch.autograd.graph.increment_version(tensor)
    return result


def _in_place_autograd(op: Any) -> Callable[..., None]:
    def run(*args: Any) -> None:
        if any(isinstance(a, Tensor) and a.requires_grad for a in args):
            refuse_grad()
        below_autograd(op, args)

    return run


def _metropolis_autograd(op: Any, written: slice) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        refuse_metropolis_grad(args)
        return below_autograd(op, args, written)

    return run


for _namespace, _library in _libraries.items():
    _ops = getattr(torch.ops, _namespace)
    _kernels = {
        name: _in_place_autograd(getattr(_ops, name))
        for name in ("stanley_step_", "langevin_step_", "normal_")
    }
    for _name, _written in WRITTEN.items():
        _kernels[_name] = _metropolis_autograd(getattr(_ops, _name), _written)
    for _name, _kernel in _kernels.items():
        _library.impl(_name, _kernel, "Autograd")
        _library.impl(_name, _kernel, "ADInplaceOrView")  # under inference_mode


# Triton ------------------------------------------------------------------------------------------


def _triton_kernel(name: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        # These import Triton, so not before it is used.
        from stanley_fast.kernels import launch, launch_chain

        return getattr(launch_chain if name == "mlp_chain" else launch, name)(*args)

    return run


for _schema in (*_SCHEMAS, _CHAIN):
    _name = _schema.partition("(")[0]
    for _device in ("CUDA", "CPU"):  # on the CPU: Triton's interpreter
        _libraries[TRITON].impl(_name, _triton_kernel(_name), _device)
