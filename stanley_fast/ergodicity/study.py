"""Ergodicity, seen: how fast chains forget where they started, and how far from f they end.

Theorem 1 and Eq. 10 say that the law of STANLEY's chain after k transitions comes to its stationary
law at a geometric rate rho^k, and take that law for the target. The two are looked at apart: the
distance to the sampler's own limit law over k, with the rate fitted to it; and the limit law's
distance to the target, beside the closed form of what unadjusted STANLEY samples.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from stanley_fast import keys
from stanley_fast.distances import Floor
from stanley_fast.ergodicity import drift, limit_law
from stanley_fast.ergodicity.convergence import FEWEST, Bench, Convergence, measure
from stanley_fast.ergodicity.problems import PROBLEMS, Problem


@dataclass(frozen=True)
class Study:
    """What `study` returns.

    Attributes:
        chains: per sampler.
        floors: by target, the sliced Wasserstein and energy distances of two exact sets.
        outward: by target, the largest cosine of z and grad f far out, which H1 wants below 0.
        rows: one per target and sampler.
        variances: STANLEY's limit law in one dimension, beside the closed form.
    """

    chains: int
    floors: dict[str, tuple[Floor, Floor]]
    outward: dict[str, float]
    rows: list[Convergence]
    variances: list[limit_law.Variance]


def study(
    names: Sequence[str],
    key: Tensor,
    *,
    chains: int = 2000,
    budget: int | None = None,
    jobs: int = 1,
    problems: Mapping[str, Problem] = PROBLEMS,
    progress: bool = False,
) -> Study:
    """Runs every sampler of every problem; the samplers of a problem have the same starts.

    Args:
        names: of the problems.
        key: int64 (2,); decides everything but the seconds.
        chains: per sampler, 10 or more.
        budget: evaluations of f per chain, 10 or more; the problem's own unless told.
        jobs: pairs of target and sampler at a time, each in its own process with one thread.
        problems: where the names are looked up.
        progress: show a progress bar over the pairs.

    Raises ValueError: an unknown name or none; too few chains, evaluations or jobs.
    """
    check(names, chains, budget, jobs, problems)
    chosen = {name: problems[name] for name in names}
    tasks = [
        _Task(name, problem, sampler, chains, problem.budget if budget is None else budget, key)
        for name, problem in chosen.items()
        for sampler in problem.samplers
    ]
    steps = 1000 if budget is None else budget
    return Study(
        chains,
        {name: Bench(problem, chains, key).floors() for name, problem in chosen.items()},
        {name: drift.outward(problem.target, key) for name, problem in chosen.items()},
        list(_in_parallel(tasks, jobs, progress)),
        limit_law.variances(keys.split(key, 8)[7], chains, steps),
    )


def check(
    names: Sequence[str],
    chains: int,
    budget: int | None,
    jobs: int,
    problems: Mapping[str, Problem] = PROBLEMS,
) -> None:
    """ValueError if `study` would refuse these."""
    if not names or len(set(names)) != len(names):
        raise ValueError(f"targets must be one or more, all different, got {tuple(names)}")
    for name in names:
        if name not in problems:
            raise ValueError(f"targets must be of {', '.join(problems)}, got {name!r}")
    smallest = (("chains", chains, 10), ("steps", budget, FEWEST), ("jobs", jobs, 1))
    for what, value, least in smallest:
        if value is not None and value < least:
            raise ValueError(f"{what} must be {least} or more, got {value}")


@dataclass(frozen=True)
class _Task:
    target: str
    problem: Problem
    sampler: str
    chains: int
    budget: int
    key: Tensor


def _run(task: _Task) -> Convergence:
    bench = Bench(task.problem, task.chains, task.key)
    return measure(bench, task.target, task.sampler, task.budget)


def _in_parallel(tasks: Sequence[_Task], jobs: int, progress: bool) -> Iterator[Convergence]:
    """The tasks' results in order, `jobs` at a time. On Ctrl-C the processes are stopped."""
    from tqdm import tqdm

    if jobs == 1:
        yield from tqdm(map(_run, tasks), total=len(tasks), unit="run", disable=not progress)
        return
    context = multiprocessing.get_context("spawn")  # a fork of a threaded torch may hang
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, _start_worker) as pool:
        try:
            done = pool.map(_run, tasks)
            yield from tqdm(done, total=len(tasks), unit="run", disable=not progress)
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops its workers
    torch.set_num_threads(1)
