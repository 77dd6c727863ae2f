"""Prints the interleaved medians of all tests as one Markdown table."""

from __future__ import annotations

from typing import Any

import torch

from stanley_fast.backends import vector_level

HEAD = (
    "| elements | threads | form | ours, us | ns per element | naive / ours | tuned / ours |\n"
    "|---:|---:|---|---:|---:|---:|---:|"
)


def pytest_terminal_summary(terminalreporter: Any, config: Any) -> None:
    session = getattr(config, "_benchmarksession", None)
    infos = [b.extra_info for b in session.benchmarks] if session else []
    rows = [info for info in infos if "medians" in info]
    if not rows:
        return
    write = terminalreporter.write_line
    write(f"\ntorch {torch.__version__}, vector level {vector_level()}; interleaved medians\n")
    write(HEAD)
    for row in sorted(rows, key=lambda r: (r["size"], r["threads"], r["form"])):
        ours, naive, tuned = (row["medians"][name] for name in ("ours", "naive", "tuned"))
        write(
            f"| {row['size']:,} | {row['threads']} | {row['form']} | {ours * 1e6:.1f} "
            f"| {ours * 1e9 / row['size']:.2f} | {naive / ours:.1f} | {tuned / ours:.1f} |"
        )
