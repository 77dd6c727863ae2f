"""Algorithm 1: learning an energy-based model. `Trainer._iteration` reads beside the paper."""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stanley_fast import checkpoint, checks, keys, settings
from stanley_fast.algorithm import FIGURES, Algorithm
from stanley_fast.chain import NonFiniteError
from stanley_fast.divergence import DivergedError, advice
from stanley_fast.feed import BLOCKS_PER_ITERATION, Data, Feed
from stanley_fast.fusion import Misfit
from stanley_fast.metrics_log import MetricsLog
from stanley_fast.saves import BEST, LAST_GOOD, NEWEST, Saves
from stanley_fast.starts import Start
from stanley_fast.terminal import interrupt_held, progress_bar, say
from stanley_fast.training_graph import Burst, TrainingGraph
from stanley_fast.transition import Sampler
from stanley_fast.updates import MakeOptimizer, Updates

__all__ = ["Data", "DivergedError", "MakeOptimizer", "Trainer"]


class Trainer:
    """Fits f to data by Algorithm 1.

    Args:
        f: the log-density, an nn.Module (B, ...) -> (B,).
        data: a tensor (n, ...) of observations, from which minibatches are drawn with replacement;
            or data(n, key) -> (n, ...). Where it lies on the host, and says so by a `device` as
            tensors do, a GPU gets minibatches from pinned memory while it works.
        sampler: `Stanley(...)`, `Langevin(...)` or any other that `sample` takes.
        start: where chains start: `NoiseStart`, `DataStart` or `ReplayBuffer`.
        optimizer: a torch optimizer of f's parameters, or parameters -> optimizer; any that steps
            without a closure.
        steps: K, transitions per iteration.
        batch_size: m = M, observations and chains per iteration.
        key: int64 (2,); it alone decides data, starts and noise. Not changed.
        schedule: iteration (from 0) -> what its learning rate is multiplied by;
            see `warm_up_and_decay`.
        ema: decay in (0, 1) of a moving average of the weights, which `model` then has.
        autocast: compute f in bfloat16; states, steps and losses stay float32. Not for samplers
            that accept or reject, which compare values of f.
        grad_clip: largest norm of the parameters' gradient.
        data_noise: standard deviation of normal noise added to observations.
        energy_l2: weight of mean f(x)^2 over observations and chains, which keeps energies near 0.
        max_gap: the run has diverged when the energy gap is beyond this, either way.
        graph: on a GPU, run whole iterations from a CUDA graph (and where they can't be, chains).
            "auto" where possible, True insists, False runs neither from graphs. It needs an
            optimizer with fused=True, and an f that draws no random numbers in Python. The numbers
            are those of plain iterations, but for the order in which a GPU's libraries add up.
        rollbacks: how many times a run that diverges goes back to its newest checkpoint by itself
            and on from there with half the learning rate, saying so on stderr.
        folder: where checkpoint.pt, metrics.csv and, if it is installed, TensorBoard's files go.
        checkpoint_every, log_every: in iterations.
        keep: how many of the newest checkpoints stay; more than one are in checkpoints/ as well.
        evaluate: evaluate(trainer) -> more figures for metrics.csv, at iteration 0 and every
            `evaluate_every`.
        best_by: the figure of `evaluate` whose smallest value best.pt is of.
        progress: a progress bar on stderr, if tqdm is installed.
        notes: plain values stored in the checkpoint, for whoever rebuilds f from it.

    Attributes:
        iteration: how many are complete.
        metrics: figures of the last one: "gap" is mean f(x) - mean f(z_K).
        rung: how iterations are run, and why.
        rolled_back: how often it has been so far.

    Raises:
        TypeError, ValueError: an argument that makes no sense, or graph=True where that can't be.

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
        autocast: bool = False,
        grad_clip: float | None = None,
        data_noise: float = 0.0,
        energy_l2: float = 0.0,
        max_gap: float = 1e6,
        graph: bool | Literal["auto"] = "auto",
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
        checks.key(key)

        self.updates = Updates(f, optimizer, schedule, ema)
        self.optimizer = self.updates.optimizer
        self.rollbacks, self.rolled_back = rollbacks, 0
        self.saves, self.keep = Saves(folder, keep), keep
        self.folder = self.saves.folder
        self.checkpoint_every, self.log_every = checkpoint_every, log_every
        self.evaluate, self.evaluate_every = evaluate, evaluate_every
        self.best_by, self.best = best_by, math.inf
        self.progress, self.notes = progress, dict(notes or {})
        self.graph, self.rung = graph, ""
        self._check_settings()

        device = next(f.parameters()).device
        self.keys = keys.split(key, 3).to(device)
        self.algorithm = Algorithm(
            f,
            sampler,
            start,
            self.updates,
            self.keys,
            steps,
            batch_size,
            torch.autocast(device.type, torch.bfloat16) if autocast else nullcontext(),
            math.inf if grad_clip is None else grad_clip,
            energy_l2,
            max_gap,
        )
        self.feed = Feed(data, self.keys[1], data_noise)
        self._captured = TrainingGraph(self.algorithm)
        if graph is True:
            try:
                self._captured.check()
            except Misfit as misfit:
                raise ValueError(f"graph must be 'auto' or False here: {misfit}") from None
        self._began = False  # a plain iteration comes first: it makes what the others keep
        self.iteration = 0
        self.metrics: dict[str, float] = {}

    def _check_settings(self) -> None:
        for name in ("checkpoint_every", "log_every", "evaluate_every", "keep"):
            settings.count(name, getattr(self, name), 1)
        settings.count("rollbacks", self.rollbacks)
        if self.rollbacks and self.folder is None:
            raise ValueError(f"rollbacks must be 0 without a folder, got {self.rollbacks}")
        if self.graph not in (True, False, "auto"):
            raise ValueError(f"graph must be 'auto', True or False, got {self.graph!r}")
        if self.best_by is not None and self.evaluate is None:
            raise ValueError(f"best_by must be None without evaluate, got {self.best_by!r}")

    @property
    def f(self) -> nn.Module:
        """The log-density that learns."""
        return self.algorithm.f

    @property
    def sampler(self) -> Sampler:
        """What moves the chains."""
        return self.algorithm.sampler

    @property
    def start(self) -> Start:
        """Where they start."""
        return self.algorithm.start

    @property
    def model(self) -> nn.Module:
        """What to sample from: f with the averaged weights, or f itself without `ema`."""
        return self.updates.model

    def fit(self, iterations: int) -> None:
        """Trains until `iterations` are complete, counted from the run's beginning (T).

        The first Ctrl-C lets the iteration end, or those of a CUDA graph that are under way, and
        writes a checkpoint; a second stops at once.

        Raises:
            DivergedError: the run left the finite numbers or its bound. The last good state is
                written, and the message says where and what to try.
            KeyboardInterrupt: after Ctrl-C.
            FileExistsError: the folder holds another run.
        """
        self.saves.claim()
        with progress_bar(iterations, self.progress) as show, interrupt_held() as interrupted:
            while True:
                try:
                    return self._fit(iterations, show, interrupted)
                except DivergedError as error:
                    self._roll_back(error)

    def _fit(
        self, iterations: int, show: Callable[[int, float], None], interrupted: threading.Event
    ) -> None:
        if self.iteration and self.iteration != self.saves.iteration:
            self.save()  # resumed from another: checkpoint.pt goes first, then metrics.csv is cut
        with MetricsLog(self.folder, self._columns(), self.iteration) as log:
            if self.iteration == 0:
                self._log(log)
                self._save_with(log)
            show(self.iteration, self.metrics.get("gap", 0.0))
            while self.iteration < iterations and not interrupted.is_set():
                self._iterate(iterations)
                self._log(log)
                if self.iteration % self.checkpoint_every == 0 or self.iteration == iterations:
                    self._save_with(log)
                show(self.iteration, self.metrics["gap"])
            if interrupted.is_set():
                self._save_with(log)
                raise KeyboardInterrupt

    def _iterate(self, iterations: int) -> None:
        """One iteration; or some from a graph, none beyond the next at which something is due."""
        due = (self.checkpoint_every, self.log_every, self.evaluate_every)
        most = min(iterations - self.iteration, *(n - self.iteration % n for n in due))
        logged = (self.iteration + 1) % self.log_every == 0
        if not logged and (self.iteration + most) % self.log_every == 0:
            most -= 1  # it records
        try:
            burst = self._run_graph(most, logged)
        except Misfit as misfit:
            self.rung = f"step: call by call; iterations are not in a CUDA graph, because {misfit}"
            return self._iteration()
        self.iteration += burst.done
        self.metrics = burst.figures if burst.done else self.metrics
        if burst.error is not None:
            raise burst.error
        if burst.failed:
            self._iteration()  # says what is wrong

    def _run_graph(self, most: int, logged: bool) -> Burst:
        """See `TrainingGraph.run`."""
        if self.graph is False:
            raise Misfit("graph=False")
        try:
            if not self._began:
                self._captured.check()  # which reasons come first
                raise Misfit("it is the first")
            burst = self._captured.run(most, self.iteration, self.feed, self._record(logged))
        except Misfit as misfit:
            if self.graph is True and self._began:
                raise ValueError(f"graph must be 'auto' or False here: {misfit}") from None
            raise
        self.rung = f"graph: iterations in one CUDA graph, transitions {self._captured.transitions}"
        return burst

    def _iteration(self) -> None:
        """Algorithm 1 for one t. What can fail does so before anything is changed."""
        algorithm = self.algorithm
        # Line 8, first because chains may start at data: m observations.
        x = self.feed.draw(algorithm.batch_size, self.iteration)
        z0 = algorithm.starts(x)
        # Lines 3 to 7: M chains, K transitions each, the stepsize from Eq. 4.
        record = self._record((self.iteration + 1) % self.log_every == 0)
        try:
            chain = algorithm.chains(z0, record, graph=self.graph is not False)
        except NonFiniteError as error:
            raise self._diverged(self.iteration + 1, str(error)) from error
        # Line 9: the gradient of -log p.
        figures = algorithm.gradient(x, chain.z).tolist()
        metrics = dict(zip(FIGURES, figures, strict=True))
        self._check(metrics)
        # Line 10: theta.
        self.updates.step(self.iteration)
        self.start.update(chain.z)
        self.keys[:, 1] += BLOCKS_PER_ITERATION
        self.iteration += 1
        self._began = True
        self.metrics = metrics | {name: float(v.mean()) for name, v in chain.stats.items()}

    def _check(self, metrics: dict[str, float]) -> None:
        if not all(map(math.isfinite, metrics.values())):
            figures = ", ".join(f"{name} {value:g}" for name, value in metrics.items())
            raise self._diverged(self.iteration + 1, f"NaN or infinity among {figures}")
        most = self.algorithm.max_gap
        if abs(metrics["gap"]) > most:
            what = f"the energy gap {metrics['gap']:.4g} is beyond max_gap = {most:g}"
            raise self._diverged(self.iteration + 1, what, lagging=metrics["gap"] > 0)

    def _diverged(self, iteration: int, what: str, lagging: bool = False) -> DivergedError:
        """Writes the state before the failed iteration, if it is good; says what to try."""
        last_good, where = self.saves.newest, ""
        if last_good is not None:
            earlier = ""
            if iteration > self.iteration and self.updates.is_finite():
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
        if path is None or count > self.rollbacks:
            raise error
        state = checkpoint.load(path)
        self.load_state_dict({**state, "best": self.best, "notes": self.notes})
        # A checkpoint from before earlier rollbacks has none of their halvings.
        self.updates.slow_down(0.5 ** (count - self.rolled_back))
        self.rolled_back = count
        say(
            f"{error}\nRolled back to iteration {self.iteration}, learning rate halved to "
            f"{self.optimizer.param_groups[0]['lr']:.3g} ({count} of {self.rollbacks} rollbacks)."
        )

    def _record(self, logged: bool = True) -> tuple[str, ...]:
        """Statistics of an iteration's chains, if it has a row in metrics.csv."""
        return tuple(name for name in self.sampler.records if logged and name != "log_density")

    def _columns(self) -> tuple[str, ...]:
        return (*FIGURES, *self._record())

    def _log(self, log: MetricsLog) -> None:
        """A row of metrics.csv, if one is due."""
        figures = self.metrics if self.iteration % self.log_every == 0 else {}
        if self.evaluate is not None and self.iteration % self.evaluate_every == 0:
            try:
                found = {name: float(value) for name, value in self.evaluate(self).items()}
            except NonFiniteError as error:
                raise self._diverged(self.iteration, f"evaluation: {error}") from error
            figures = self.metrics | found
            self._save_if_best(figures)
        if figures:
            log.write(self.iteration, figures)

    def _save_if_best(self, figures: Mapping[str, float]) -> None:
        if self.best_by is None:
            return
        if self.best_by not in figures:
            names = ", ".join(figures)
            raise ValueError(f"best_by must be one of evaluate's {names}, got {self.best_by!r}")
        if figures[self.best_by] < self.best:
            self.best = figures[self.best_by]
            self.saves.save_as(BEST, self.state_dict())

    def _save_with(self, log: MetricsLog) -> None:
        log.sync()
        self.save()

    def save(self) -> None:
        """Writes folder/checkpoint.pt, if there is a folder. Only good states are written."""
        if not self.updates.is_finite():
            raise self._diverged(self.iteration, "a parameter is NaN or infinite")
        self.saves.save(self.iteration, self.state_dict())

    def resume(self, path: str | os.PathLike[str] | None = None) -> None:
        """Goes on from a checkpoint; folder/checkpoint.pt unless told.

        On the same machine and thread count the run ends as if it had never stopped, bit for bit.
        The optimizer's settings, learning rate included, are the checkpoint's: to change one, set
        it in `optimizer.param_groups` afterwards, or where there is a schedule in `updates.rates`.
        The schedule itself is this trainer's.

        Raises:
            ValueError: neither path nor folder.
            FileNotFoundError, CheckpointError: see `checkpoint.load`.
                Or the checkpoint is of something else.
        """
        if path is None:
            if self.folder is None:
                raise ValueError("path must be given when the trainer has no folder")
            path = self.folder / NEWEST
        state, before = checkpoint.load(path), copy.deepcopy(self.state_dict())
        try:
            self.load_state_dict(state)
        except (KeyError, ValueError, RuntimeError) as error:
            self.load_state_dict(before)
            reason = checkpoint.first_line(error)
            raise checkpoint.CheckpointError(f"{path} is of another run: {reason}") from error
        self.saves.resumed(Path(path), self.iteration)

    def state_dict(self) -> dict[str, Any]:
        """All that decides the rest of the run."""
        state = {
            "iteration": self.iteration,
            **self.updates.state_dict(),
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
        self.updates.load_state_dict(state)
        self.rolled_back, self.best = state["rolled_back"], state["best"]
        self.metrics = state["metrics"]
        self.start.load_state_dict(state["start"])
        self.keys.copy_(state["keys"])
        self.iteration, self.notes = state["iteration"], state["notes"]
        self.feed.start_at(self.keys[1], self.iteration)
        self._captured.restart()
        self._began = False
        torch.set_rng_state(state["torch_rng"])
        if "cuda_rng" in state and self.keys.is_cuda:
            torch.cuda.set_rng_state(state["cuda_rng"], self.keys.device)


def _check_types(f: object, data: object, sampler: object, start: object) -> None:
    for name, value, kind, wanted in (
        ("f", f, nn.Module, "an nn.Module"),
        ("sampler", sampler, Sampler, "a Sampler such as Stanley(...)"),
        ("start", start, Start, "a Start such as NoiseStart(...)"),
    ):
        if not isinstance(value, kind):
            raise TypeError(f"{name} must be {wanted}, got {value!r}")
    if not isinstance(data, Tensor) and not callable(data):
        raise TypeError(f"data must be a tensor (n, ...) or data(n, key), got {data!r}")
    if isinstance(data, Tensor) and (data.dim() == 0 or len(data) == 0):
        raise ValueError(f"data must hold at least one observation, got {list(data.shape)}")
