"""A run's ties to the terminal: progress bars and Ctrl-C."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def progress_bar(total: int, show: bool) -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr; call it with the iterations done and the energy gap."""
    if not show or importlib.util.find_spec("tqdm") is None:
        yield lambda done, gap: None
        return
    from tqdm import tqdm

    with tqdm(total=total, dynamic_ncols=True) as bar:

        def advance(done: int, gap: float) -> None:
            if bar.n == 0:
                bar.initial = done  # a resumed run's speed is of what it does itself
            bar.set_postfix_str(f"gap {gap:+.3f}", refresh=False)
            bar.update(done - bar.n)

        yield advance


def say(text: str) -> None:
    """A line on stderr, above a bar if there is one."""
    if importlib.util.find_spec("tqdm") is None:
        print(text, file=sys.stderr)
        return
    from tqdm import tqdm

    tqdm.write(text, file=sys.stderr)


@contextmanager
def interrupt_held() -> Iterator[threading.Event]:
    """The first Ctrl-C sets the event and nothing else; the second raises as usual.

    Does nothing outside the main thread, or where someone else handles Ctrl-C.
    """
    held = threading.Event()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield held
        return

    def hold(number: int, frame: FrameType | None) -> None:
        if held.is_set():
            raise KeyboardInterrupt
        held.set()

    signal.signal(signal.SIGINT, hold)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def counting_bar(total: int, what: str, show: bool) -> Iterator[Callable[[int], object]]:
    """A bar on stderr for work that is counted; call it with how many more are done."""
    if not show or importlib.util.find_spec("tqdm") is None:
        yield lambda more: None
        return
    from tqdm import tqdm

    with tqdm(total=total, desc=what, dynamic_ncols=True) as bar:
        yield bar.update
