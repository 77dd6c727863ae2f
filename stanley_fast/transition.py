"""What a sampler is: `init` makes a chain's state, `step` moves it and says what happened."""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from stanley_fast.density import Density


class State(NamedTuple):
    """B chains between two transitions. `step` takes it over: its tensors may be written.

    Attributes:
        z: (B, ...).
        log_density: (B,), f at z, where the sampler keeps it from one transition to the next.
        grad: like z, the gradient of f at z, likewise.
        gamma: stepsizes that stay fixed over the chain; they broadcast to z.
    """

    z: Tensor
    log_density: Tensor | None = None
    grad: Tensor | None = None
    gamma: Tensor | None = None


class Info(NamedTuple):
    """What a transition says of itself; good until the next one.

    Log-density and gradient are those of the state it evaluated f at: where it starts, or, if it is
    accepted or rejected, where it ends.

    Attributes:
        log_density: (B,).
        grad: like z; None where the sampler needs none.
        gamma: stepsizes, if they were computed; they broadcast to z.
        accepted: bool (B,), whether the proposal was accepted; None if nothing is ever rejected.
        probability: float64 (B,), of its acceptance, min(1, alpha).
    """

    log_density: Tensor
    grad: Tensor | None = None
    gamma: Tensor | None = None
    accepted: Tensor | None = None
    probability: Tensor | None = None

    def stats(self) -> dict[str, Tensor]:
        """Means over chains and elements, 0-dim."""
        stats = {"log_density": self.log_density.mean()}
        if self.grad is not None:
            stats["grad_abs"] = self.grad.abs().mean()
        if self.probability is not None:
            stats["acceptance"] = self.probability.mean()
        return stats


@runtime_checkable
class Sampler(Protocol):
    """What a chain needs of a sampler; anyone's class will do.

    `sample` asks `init` once and `step` once per transition. Both evaluate f by a `Density`:
    `f.finite_value_and_grad(z)` also stops the chain where something is not finite.
    """

    @property
    def records(self) -> tuple[str, ...]:
        """The names `stats` knows, which `sample(record=...)` may ask for."""
        ...

    def init(self, z: Tensor, f: Density) -> State:
        """The first state: a copy of z, `f.start(z)`, and what the transitions keep."""
        ...

    def step(
        self,
        state: State,
        f: Density,
        key: Tensor,
        k: int,
        *,
        first: int = 0,
        total: int | None = None,
    ) -> tuple[State, Info]:
        """Transition k. The state is elements [first, first + z.numel()) of one of `total`."""
        ...

    def stats(self, info: Info) -> dict[str, Tensor]:
        """0-dim tensors by name."""
        ...
