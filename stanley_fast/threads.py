"""How many threads torch computes with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def use_threads(n: int) -> Iterator[None]:
    """So many inside the with block.

    >>> with use_threads(1):
    ...     torch.get_num_threads()
    1
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def one_thread() -> Iterator[None]:
    """For nets too small for more: beside other runs a second thread costs many times its use, and
    in plain torch roundings would vary with their number.
    """
    with use_threads(1):
        yield
