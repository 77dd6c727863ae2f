"""What is known so far: a results file that later calls go on from.

A process appends its rows to a file of its own; when it has ended they join the results, which are
written anew as a whole. So an interruption costs the rows of the processes that it met.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Lock
from typing import Any

from gpu.rows import Rows, load

Process = tuple[str, str, str]
"""Part, backend, dtype."""


def rows_of(path: Path, process: Process) -> Rows:
    """Where a process appends its rows, beside the results at `path`."""
    return Rows(path.with_suffix(f".{'-'.join(process)}.jsonl"), process[0], process[1])


class State:
    """Facts, rows and which processes are done, in a JSON file."""

    def __init__(self, path: Path, facts: dict[str, Any]) -> None:
        self.path, self.facts = path, facts
        self.rows: list[dict[str, Any]] = []
        self.done: list[Process] = []
        self._lock = Lock()  # processes end in threads

    @classmethod
    def load(cls, path: Path, facts: dict[str, Any], same: tuple[str, ...]) -> State:
        """What the file holds, or nothing yet.

        Raises ValueError: it is of another machine, torch or commit; `same` names what must be.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        state = cls(path, facts)
        if not path.exists():
            return state
        held = json.loads(path.read_text())
        was = held["facts"]
        other = [
            f"{name} {was.get(name)}, not {facts.get(name)}"
            for name in same
            if was.get(name) != facts.get(name)
        ]
        if other:
            raise ValueError(f"{path} is of {'; '.join(other)}")
        state.facts, state.rows = was, held["rows"]
        state.done = [tuple(process) for process in held["done"]]
        return state

    def rows_of(self, process: Process) -> Rows:
        """Empty: an interrupted call may have left some."""
        rows = rows_of(self.path, process)
        rows.path.unlink(missing_ok=True)
        return rows

    def finish(self, process: Process) -> None:
        """Takes a process's rows over, and writes the file."""
        rows = rows_of(self.path, process)
        with self._lock:
            self.rows += load(rows.path)
            self.done.append(process)
            self.save()
        rows.path.unlink(missing_ok=True)

    def forget(self, part: str) -> None:
        """So that it runs again."""
        self.done = [process for process in self.done if process[0] != part]
        self.rows = [row for row in self.rows if row["part"] != part]

    def save(self) -> None:
        """The old file or the new one, whenever this is interrupted."""
        content = {"facts": self.facts, "done": self.done, "rows": self.rows}
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(temporary, self.path)
