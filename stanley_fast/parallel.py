"""Runs in processes of their own, some at a time."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


class WorkerDiedError(RuntimeError):
    """The process of a run ended without a word."""


def in_parallel(
    run: Callable[[Task], Result], tasks: Sequence[Task], jobs: int, progress: bool
) -> Iterator[Result]:
    """What `run` makes of the tasks, in order, `jobs` at a time. On Ctrl-C the processes are
    stopped.

    Each process gets its share of the cores. Raises WorkerDiedError: one was killed.
    """
    from tqdm import tqdm

    context = multiprocessing.get_context("spawn")  # a fork of a threaded torch may hang
    jobs = min(jobs, len(tasks))
    threads = max(1, torch.get_num_threads() // jobs)
    with (
        ProcessPoolExecutor(jobs, context, _start_worker, (threads,)) as pool,
        tqdm(total=len(tasks), unit="run", disable=not progress, dynamic_ncols=True) as bar,
    ):
        try:
            for future in [pool.submit(run, task) for task in tasks]:
                yield future.result()
                bar.update()
        except BrokenProcessPool as error:
            raise WorkerDiedError("the process of a run was killed: out of memory?") from error
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise


def _start_worker(threads: int) -> None:
    torch.set_num_threads(threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which stops its workers
