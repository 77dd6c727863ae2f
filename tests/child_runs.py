"""Runs in processes of their own, which can be killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap

# A process per run would spend its time importing torch, so one process forks a child for each.
PREPARE = """
    import importlib.util, os, sys, torch
    import torch._dynamo  # the first optimizer would, in every child
    torch.set_num_threads(1)
    import stanley_fast as sf
    if importlib.util.find_spec("tensorboard"):
        import torch.utils.tensorboard

    def tell(word, number):
        os.write(1, f"{word} {number}\\n".encode())  # whole or not at all
"""
SERVE = """
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            run(*line.split())
            os._exit(0)
        tell("pid", child)
        tell("ended", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Runs:
    """A process that starts runs, and tells what they print.

    `script` defines run(*words); it may call tell(word, number).
    """

    def __init__(self, script: str) -> None:
        code = "".join(map(textwrap.dedent, (PREPARE, script, SERVE)))
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def start(self, *words: object) -> int:
        """Calls run(*words) in a child, whose process id it gives."""
        print(*words, file=self.process.stdin, flush=True)
        return self.wait_for("pid")

    def wait_for(self, word: str, value: int | None = None) -> int:
        """Until a run tells `word` with a number, of at least `value`."""
        for line in self.process.stdout or ():
            said, number = line.split()
            if said == word and (value is None or int(number) >= value):
                return int(number)
            assert said != "ended", f"it ended without a word of {word}"
        raise AssertionError("there is no process to tell anything")
