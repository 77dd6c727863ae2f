"""Algorithm 1: learning an energy-based model. `Trainer._iteration` reads beside the paper."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stanley_fast import checkpoint, checks, keys, mlp, ops, settings
from stanley_fast.chain import NonFiniteError, sample
from stanley_fast.divergence import DivergedError, advice
from stanley_fast.metrics_log import MetricsLog
from stanley_fast.reference import STREAM_NOISE, STREAM_STARTS
from stanley_fast.saves import BEST, LAST_GOOD, Saves
from stanley_fast.starts import Start
from stanley_fast.terminal import interrupt_held, progress_bar, say
from stanley_fast.transition import Sampler

__all__ = ["Data", "DivergedError", "MakeOptimizer", "Trainer"]

Data = Tensor | Callable[[int, Tensor], Tensor]
MakeOptimizer = Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]

# Blocks of noise an iteration may use of each key, more than any does: so what one iteration draws
# moves no other.
BLOCKS_PER_ITERATION = 2**32


class Trainer:
    """Fits f to data by Algorithm 1.

    Args:
        f: the log-density, an nn.Module (B, ...) -> (B,).
        data: a tensor (n, ...) of observations, from which minibatches are drawn with replacement;
            or data(n, key) -> (n, ...).
        sampler: `Stanley(...)`, `Langevin(...)` or any other that `sample` takes.
        start: where chains start: `NoiseStart`, `DataStart` or `ReplayBuffer`.
        optimizer: a torch optimizer of f's parameters, or parameters -> optimizer; any that steps
            without a closure.
        steps: K, transitions per iteration.
        batch_size: m = M, observations and chains per iteration.
        key: int64 (2,); it alone decides data, starts and noise. Not changed.
        schedule: iteration (from 0) -> what its learning rate is multiplied by;
            see `warm_up_and_decay`.
        ema: decay in (0, 1) of a moving average of the weights, which `model` then is.
        autocast: torch.bfloat16 or float16 for f's own operations; states, steps and losses stay
            float32.
        grad_clip: largest norm of the parameters' gradient.
        data_noise: standard deviation of normal noise added to observations.
        energy_l2: weight of mean f(x)^2 over observations and chains, which keeps energies near 0.
        max_gap: the run has diverged when the energy gap is beyond this, either way.
        rollbacks: how many times a run that diverges goes back to its newest checkpoint by itself
            and on from there with half the learning rate. It says so on stderr.
        folder: where checkpoint.pt, metrics.csv and, if it is installed, TensorBoard's files go.
        checkpoint_every, log_every: in iterations.
        keep: how many of the newest checkpoints stay; more than one are in checkpoints/ as well.
        evaluate: evaluate(trainer) -> more figures for metrics.csv, at iteration 0 and every
            `evaluate_every`.
        best_by: a figure of `evaluate`, smaller being better, by which best.pt is chosen.
        progress: a progress bar on stderr, if tqdm is installed.
        notes: plain values stored in the checkpoint, for whoever rebuilds f from it.

    Attributes:
        model: f with the averaged weights, or f itself without `ema`: what to sample from.
        iteration: how many are complete.
        metrics: figures of the last one: "gap" is mean f(x) - mean f(z_K).
        rolled_back: how often it has been so far.

    Raises:
        TypeError, ValueError: an argument that makes no sense.

    Source: Algorithm 1.

    >>> from stanley_fast import energies, samplers, starts
    >>> target = energies.GaussianMixture(torch.zeros(1, 2), 1.0)
    >>> trainer = Trainer(
    ...     energies.MLPEnergy((2, 8, 1)), target.sample, samplers.Stanley(0.1, noise_scale=0.1),
    ...     start=starts.NoiseStart(), optimizer=torch.optim.Adam, steps=5, batch_size=16,
    ...     key=keys.key(0), progress=False,
    ... )
    >>> trainer.fit(10)
    >>> trainer.iteration
    10
    """

    def __init__(
        self,
        f: nn.Module,
        data: Data,
        sampler: Sampler,
        *,
        start: Start,
        optimizer: torch.optim.Optimizer | MakeOptimizer,
        steps: int,
        batch_size: int,
        key: Tensor,
        schedule: Callable[[int], float] | None = None,
        ema: float | None = None,
        autocast: torch.dtype | None = None,
        grad_clip: float | None = None,
        data_noise: float = 0.0,
        energy_l2: float = 0.0,
        max_gap: float = 1e6,
        rollbacks: int = 0,
        folder: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 500,
        log_every: int = 100,
        keep: int = 1,
        evaluate: Callable[[Trainer], Mapping[str, float]] | None = None,
        evaluate_every: int = 1000,
        best_by: str | None = None,
        progress: bool = True,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        _check_types(f, data, sampler, start)
        _check_counts(
            steps=steps, batch_size=batch_size, checkpoint_every=checkpoint_every,
            log_every=log_every, evaluate_every=evaluate_every, keep=keep,
        )  # fmt: skip
        for name, value in (("data_noise", data_noise), ("energy_l2", energy_l2)):
            settings.not_negative(name, value)
        for name, bound in (("grad_clip", grad_clip), ("max_gap", max_gap)):
            if bound is not None and not bound > 0:
                raise ValueError(f"{name} must be positive, got {bound}")
        settings.count("rollbacks", rollbacks)
        if rollbacks and folder is None:
            raise ValueError(f"rollbacks need a folder of checkpoints, got {rollbacks} and None")
        if ema is not None and not 0 < ema < 1:
            raise ValueError(f"ema must be in (0, 1) or None, got {ema}")
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be bfloat16, float16 or None, got {autocast}")
        checks.key(key)
        if not (isinstance(optimizer, torch.optim.Optimizer) or callable(optimizer)):
            raise TypeError(
                "optimizer must be a torch.optim.Optimizer, or make one of parameters, got "
                f"{optimizer!r}"
            )

        self.f, self.data, self.sampler, self.start = f, data, sampler, start
        self.optimizer = (
            optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(f.parameters())
        )
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.schedule = None if schedule is None else LambdaLR(self.optimizer, schedule)
        self.average = (
            None if ema is None else AveragedModel(f, multi_avg_fn=get_ema_multi_avg_fn(ema))
        )
        self.steps, self.batch_size = steps, batch_size
        self.grad_clip = math.inf if grad_clip is None else grad_clip
        self.data_noise, self.energy_l2, self.max_gap = data_noise, energy_l2, max_gap
        self.rollbacks, self.rolled_back = rollbacks, 0
        self.saves = Saves(folder, keep)
        self.folder = self.saves.folder
        self.checkpoint_every, self.log_every = checkpoint_every, log_every
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.best_by, self.best = best_by, math.inf
        self.progress, self.notes = progress, dict(notes or {})

        device = next(f.parameters()).device
        self.autocast = torch.autocast(device.type, autocast, enabled=autocast is not None)
        self.keys = keys.split(key, 3).to(device)
        self.chain_key, self.data_key, self.start_key = self.keys.unbind()  # views of the three
        self.iteration = 0
        self.metrics: dict[str, float] = {}

    @property
    def model(self) -> nn.Module:
        """f with the averaged weights, or f itself without `ema`."""
        return self.f if self.average is None else self.average.module

    def fit(self, iterations: int) -> None:
        """Trains until `iterations` are complete, counted from the run's beginning (T).

        The first Ctrl-C lets the iteration end and writes a checkpoint; a second stops at once.

        Raises:
            DivergedError: the run left the finite numbers or its bound. The last good state is
                written, and the message says where and what to try.
            KeyboardInterrupt: after Ctrl-C.
            FileExistsError: the folder holds another run.
        """
        self.saves.claim()
        with (
            progress_bar(iterations, self.progress) as show,
            interrupt_held() as interrupted,
        ):
            while True:
                try:
                    return self._fit(iterations, show, interrupted)
                except DivergedError as error:
                    self._roll_back(error)

    def _fit(
        self, iterations: int, show: Callable[[int, float], None], interrupted: threading.Event
    ) -> None:
        with MetricsLog(self.folder, self._columns(), self.iteration) as log:
            if self.iteration == 0:
                self._log(log)
                self._save_with(log)
            show(self.iteration, self.metrics.get("gap", 0.0))
            while self.iteration < iterations and not interrupted.is_set():
                self._iteration()
                self._log(log)
                if self.iteration % self.checkpoint_every == 0 or self.iteration == iterations:
                    self._save_with(log)
                show(self.iteration, self.metrics["gap"])
            if interrupted.is_set():
                self._save_with(log)
                raise KeyboardInterrupt

    def _iteration(self) -> None:
        """Algorithm 1 for one t. What can fail does so before anything is changed."""
        # Line 8, first because chains may start at data: m observations.
        x = self._observations()
        z0 = self.start.start(self.batch_size, self.start_key, x)
        # Lines 3 to 7: M chains, K transitions each, the stepsize from Eq. 4.
        record = self._record() if (self.iteration + 1) % self.log_every == 0 else ()
        try:
            with self.autocast:
                chain = sample(
                    self.f, z0, self.sampler, self.steps, key=self.chain_key, record=record
                )
        except NonFiniteError as error:
            raise self._diverged(self.iteration + 1, str(error)) from error
        # Line 9: the gradient of -log p; observations and chains in one forward pass.
        points = torch.cat([x, chain.z])
        fused = mlp.fit(self.f, points, self.parameters)
        if fused is None:
            with self.autocast:
                values = self.f(points).to(points.dtype)
        else:
            values = fused.values()
        f_data, f_chain = values[: len(x)].mean(), values[len(x) :].mean()
        loss = f_chain - f_data
        if self.energy_l2:
            loss = loss + self.energy_l2 * values.square().mean()
        norm = self._backward(loss, values, fused)
        metrics = _figures(loss=loss, f_data=f_data, f_chain=f_chain, grad_norm=norm)
        self._check(metrics)
        # Line 10: theta.
        self.optimizer.step()
        if self.schedule is not None:
            self.schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.f)
        self.start.update(chain.z)
        self.keys[:, 1] += BLOCKS_PER_ITERATION
        self.iteration += 1
        self.metrics = metrics | {name: float(v.mean()) for name, v in chain.stats.items()}

    def _backward(self, loss: Tensor, values: Tensor, fused: mlp.Density | None) -> Tensor:
        """The parameters' gradient into their `grad`, clipped. Its norm before it was."""
        if fused is None:
            self.optimizer.zero_grad()
            loss.backward()
            grads = [p.grad for p in self.parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(grads)
        else:
            grads = [fused.backward(*torch.autograd.grad(loss, values))]
            norm = grads[0].norm()
        if self.grad_clip < math.inf:
            torch._foreach_mul_(grads, (self.grad_clip / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _observations(self) -> Tensor:
        """m observations, with noise if asked for; the data key alone decides."""
        n, key = self.batch_size, self.data_key
        if isinstance(self.data, Tensor):
            random = ops.normal((n,), key, stream=STREAM_STARTS, dtype=torch.float64)
            index = (torch.special.ndtr(random) * len(self.data)).long()
            x = self.data[index.clamp_(max=len(self.data) - 1)]
        else:
            x = self.data(n, key)
            if len(x) != n:
                raise ValueError(f"data({n}, key) must return ({n}, ...), got {list(x.shape)}")
        if self.data_noise:
            noise = ops.normal(x.shape, key, stream=STREAM_NOISE, dtype=x.dtype)
            x = x + self.data_noise * noise
        return x

    def _check(self, metrics: dict[str, float]) -> None:
        if not all(map(math.isfinite, metrics.values())):
            figures = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
            raise self._diverged(self.iteration + 1, f"NaN or infinity among {figures}")
        if abs(metrics["gap"]) > self.max_gap:
            what = f"the energy gap {metrics['gap']:.4g} is beyond max_gap = {self.max_gap:g}"
            raise self._diverged(self.iteration + 1, what, lagging=metrics["gap"] > 0)

    def _diverged(self, iteration: int, what: str, lagging: bool = False) -> DivergedError:
        """Writes the state before the failed iteration, if it is good; says what to try."""
        last_good, where = self.saves.newest, ""
        if last_good is not None:
            earlier = ""
            if iteration > self.iteration and self._is_finite():
                earlier = f", an earlier one in {last_good.name}"
                last_good = self.saves.save_as(LAST_GOOD, self.state_dict())
            where = f" The last good state is in {last_good}{earlier}."
        return DivergedError(
            iteration,
            f"training diverged at iteration {iteration}: {what}.{where} Try a smaller learning "
            f"rate, grad_clip, energy_l2, or {advice(self.sampler, lagging)}.",
            last_good,
        )

    def _roll_back(self, error: DivergedError) -> None:
        """To the newest checkpoint, with half the learning rate; raises `error` if it may not."""
        path, count = self.saves.newest, self.rolled_back + 1
        if path is None or not path.exists() or count > self.rollbacks:
            raise error
        self.load_state_dict(checkpoint.load(path))
        # A checkpoint from before earlier rollbacks has none of their halvings.
        factor = 0.5 ** (count - self.rolled_back)
        for group in self.optimizer.param_groups:
            group["lr"] *= factor
        if self.schedule is not None:
            self.schedule.base_lrs = [rate * factor for rate in self.schedule.base_lrs]
        self.rolled_back = count
        say(
            f"{error}\nRolled back to iteration {self.iteration}, learning rate halved to "
            f"{self.optimizer.param_groups[0]['lr']:.3g} ({count} of {self.rollbacks} rollbacks)."
        )

    def _is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.parameters)

    def _record(self) -> tuple[str, ...]:
        return tuple(name for name in self.sampler.records if name != "log_density")

    def _columns(self) -> tuple[str, ...]:
        return ("gap", "loss", "f_data", "f_chain", "grad_norm", *self._record())

    def _log(self, log: MetricsLog) -> None:
        """A row of metrics.csv, if one is due."""
        figures = self.metrics if self.iteration % self.log_every == 0 else {}
        if self.evaluate is not None and self.iteration % self.evaluate_every == 0:
            try:
                figures = {**self.metrics, **self.evaluate(self)}
            except NonFiniteError as error:
                raise self._diverged(self.iteration, f"evaluation: {error}") from error
            self._save_if_best(figures)
        if figures:
            log.write(self.iteration, figures)

    def _save_if_best(self, figures: Mapping[str, float]) -> None:
        if self.best_by is not None and figures.get(self.best_by, math.inf) < self.best:
            self.best = figures[self.best_by]
            self.saves.save_as(BEST, self.state_dict())

    def _save_with(self, log: MetricsLog) -> None:
        log.sync()
        self.save()

    def save(self) -> None:
        """Writes folder/checkpoint.pt, if there is a folder. Only good states are written."""
        if not self._is_finite():
            raise self._diverged(self.iteration, "a parameter is NaN or infinite")
        self.saves.save(self.iteration, self.state_dict())

    def resume(self, path: str | os.PathLike[str] | None = None) -> None:
        """Goes on from a checkpoint; folder/checkpoint.pt unless told.

        On the same machine and thread count the run ends as if it had never stopped, bit for bit.
        The optimizer's settings, learning rate included, are the checkpoint's: to change one, set
        it in `optimizer.param_groups` afterwards.

        Raises:
            ValueError: neither path nor folder.
            FileNotFoundError, CheckpointError: see `checkpoint.load`.
                Or the checkpoint is of something else.
        """
        path = self.saves.newest if path is None else Path(path)
        if path is None:
            raise ValueError("path must be given when the trainer has no folder")
        state = checkpoint.load(path)
        try:
            self.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            reason = checkpoint.first_line(error)
            raise checkpoint.CheckpointError(f"{path} is of another run: {reason}") from error
        self.saves.resumed(path)

    def state_dict(self) -> dict[str, Any]:
        """All that decides the rest of the run."""
        state = {
            "iteration": self.iteration,
            "f": self.f.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "rolled_back": self.rolled_back,
            "best": self.best,
            "metrics": self.metrics,
            "start": self.start.state_dict(),
            "keys": self.keys,
            "torch_rng": torch.get_rng_state(),  # for an f with dropout
            "notes": self.notes,
        }
        if self.keys.is_cuda:
            state["cuda_rng"] = torch.cuda.get_rng_state(self.keys.device)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave, torch's default generator included."""
        self.f.load_state_dict(state["f"])
        for part, saved in ((self.average, state["average"]), (self.schedule, state["schedule"])):
            if (part is None) != (saved is None):
                raise ValueError("one has averaged weights or a schedule that the other lacks")
            if part is not None:
                part.load_state_dict(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.rolled_back, self.best = state["rolled_back"], state["best"]
        self.metrics = state["metrics"]
        self.start.load_state_dict(state["start"])
        self.keys.copy_(state["keys"])
        self.iteration, self.notes = state["iteration"], state["notes"]
        torch.set_rng_state(state["torch_rng"])
        if "cuda_rng" in state and self.keys.is_cuda:
            torch.cuda.set_rng_state(state["cuda_rng"], self.keys.device)


def _figures(**values: Tensor) -> dict[str, float]:
    """Numbers from 0-dim tensors, in one wait for the device; and the energy gap."""
    numbers = torch.stack([v.detach() for v in values.values()]).tolist()
    figures = dict(zip(values, numbers, strict=True))
    return {"gap": figures["f_data"] - figures["f_chain"], **figures}


def _check_types(f: object, data: object, sampler: object, start: object) -> None:
    if not isinstance(f, nn.Module):
        raise TypeError(f"f must be an nn.Module, got {f!r}")
    if not isinstance(data, Tensor) and not callable(data):
        raise TypeError(f"data must be a tensor (n, ...) or data(n, key), got {data!r}")
    if isinstance(data, Tensor) and (data.dim() == 0 or len(data) == 0):
        raise ValueError(f"data must hold at least one observation, got {list(data.shape)}")
    if not isinstance(sampler, Sampler):
        raise TypeError(f"sampler must be a Sampler such as Stanley(...), got {sampler!r}")
    if not isinstance(start, Start):
        raise TypeError(f"start must be a Start such as NoiseStart(...), got {start!r}")


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        settings.count(name, count, 1)
