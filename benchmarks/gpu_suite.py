#!/usr/bin/env python3
"""Everything a GPU must show, in one command of under eight minutes: correctness, then timings.

    STANLEY_FAST_CUDA=1 pip install --no-build-isolation --no-deps .    # fails if there is no nvcc
    python benchmarks/gpu_suite.py --out results

    python benchmarks/gpu_suite.py --device cpu --out dry    # cpp, and Triton's interpreter

It needs torch, this package, installed, and Triton where there is one. Parts run in processes of
their own, so that one that crashes or hangs takes nothing along, and every row is on disk as soon
as it is known. It prints each row, writes gpu_suite_DEVICE.json to --out, and ends with 1 if
anything was wrong or did not run. A missed speed target is reported, but is no error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

# Seconds for one process of each part. Values run in a process per backend and dtype, several at a
# time: on a GPU most of their time is Triton's compiler.
LIMITS = {
    "correctness": 140, "large": 60, "graphs": 60, "chains": 60, "conv": 120, "timings": 130,
}  # fmt: skip
WHOLE = 465  # seconds for all
DTYPES = ("float32", "float64", "float16", "bfloat16")


class Process(NamedTuple):
    part: str
    backend: str
    dtype: str


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--only", default=",".join(LIMITS), help="parts, separated by commas")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--commit", help="recorded where this is no git checkout")
    parser.add_argument("--process", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = args.only.split(",")
    unknown = set(args.only) - set(LIMITS)
    if unknown:
        parser.error(f"--only must name some of {', '.join(LIMITS)}, got {', '.join(unknown)}")
    return args


def main() -> int:
    args = arguments()
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, here and in the processes
    args.out.mkdir(parents=True, exist_ok=True)
    rows_file = args.out / f"gpu_suite_{args.device}.jsonl"
    if args.process:
        run_part(Process(*args.process), args.device, rows_file)
        return 0

    from gpu import rows

    rows_file.unlink(missing_ok=True)
    facts = machine_facts(args)
    print(json.dumps(facts, indent=1), flush=True)
    backends = wanted_backends(args.device, facts["backends"], rows.Rows(rows_file, "suite", ""))
    begin = time.monotonic()
    for part in args.only:
        with ThreadPoolExecutor(workers(part)) as pool:
            runs = [
                pool.submit(start, args, process, begin + WHOLE, rows_file)
                for process in processes(part, backends)
            ]
        for run in runs:
            run.result()  # raises what start raised
        facts["seconds"] = round(time.monotonic() - begin)
        save(facts, rows_file)
    known = rows.load(rows_file)
    rows_file.unlink()
    print(
        f"\n{rows.summary(known)}\n{facts['seconds']} s; all rows: {rows_file.with_suffix('.json')}"
    )
    return int(rows.failed(known))


def processes(part: str, backends: list[str]) -> list[Process]:
    if part in ("conv", "timings"):
        return [Process(part, "all", "all")]
    if part == "chains":  # which only Triton has on a GPU
        return [Process(part, "triton", "all")] if "triton" in backends else []
    dtypes = DTYPES if part == "correctness" else ("all",)
    return [Process(part, backend, dtype) for backend in backends for dtype in dtypes]


def workers(part: str) -> int:
    """What is timed or takes much memory runs alone."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2)) if part == "correctness" else 1


def wanted_backends(device: str, known: dict[str, str | None], suite: Any) -> list[str]:
    """Those to run. One that is missing is a failure, unless it is Triton that is not installed."""
    from gpu.rows import FAIL, NOT_RUN

    wanted = ["cuda", "triton"] if device == "cuda" else ["cpp", "triton"]
    for name in wanted:
        if known[name] is not None:
            absent = name == "triton" and importlib.util.find_spec("triton") is None
            suite.add(f"backend {name}", NOT_RUN if absent else FAIL, detail=known[name])
    return [name for name in wanted if known[name] is None]


def start(args: argparse.Namespace, process: Process, deadline: float, rows_file: Path) -> None:
    """Runs a process; one that ends badly, or finds no time left, is a failing row."""
    from gpu.rows import FAIL, Rows

    command = [sys.executable, "-X", "faulthandler", __file__, "--device", args.device]
    command += ["--out", str(args.out), "--process", *process]
    limit = max(1.0, min(LIMITS[process.part], deadline - time.monotonic()))
    how = ""
    try:
        ended = subprocess.run(command, timeout=limit, check=False).returncode
        if ended != 0:
            how = f"the process ended with {ended}; its last words are above"
    except subprocess.TimeoutExpired:
        how = f"stopped after {limit:.0f} s"
    if how:
        Rows(rows_file, process.part, process.backend).add(
            "the whole part", FAIL, dtype=process.dtype, detail=how
        )


def run_part(process: Process, device: str, rows_file: Path) -> None:
    """In the process of its own."""
    import torch
    from gpu import chains, conv, correctness, graphs, large, timings
    from gpu.rows import Rows

    import stanley_fast as sf

    part, backend, dtype = process
    rows = Rows(rows_file, part, backend)
    if device == "cpu" or part == "correctness":
        torch.set_num_threads(1)
    if part in ("conv", "timings"):
        {"conv": conv, "timings": timings}[part].run(rows, device)
        return
    with sf.use_backend(backend):
        if part == "correctness":
            correctness.run(rows, backend, device, getattr(torch, dtype))
        else:
            {"large": large, "graphs": graphs, "chains": chains}[part].run(rows, backend, device)


def save(facts: dict[str, Any], rows_file: Path) -> None:
    """The JSON file of what is known so far."""
    from gpu.rows import load

    content = {"facts": facts, "rows": load(rows_file)}
    rows_file.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n")


def machine_facts(args: argparse.Namespace) -> dict[str, Any]:
    """The CPU's facts, and the GPU's as its driver tells them; nothing is changed."""
    import torch

    from stanley_fast.bench import machine

    found = machine.facts()
    found["commit"] = found["commit"] or args.commit
    found["triton"] = version("triton")
    found["device"] = args.device
    if args.device == "cuda":
        if not torch.cuda.is_available():
            sys.exit("gpu_suite: torch sees no CUDA device; --device cpu makes a dry run")
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["multiprocessors"] = properties.multi_processor_count
        found["l2_bytes"] = properties.L2_cache_size
        found["memory_bytes"] = properties.total_memory
        found["cuda"] = torch.version.cuda
        found["nvidia_smi"] = nvidia_smi()
    return found


def version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def nvidia_smi() -> dict[str, str] | None:
    """Driver, clocks and power as they are before the runs."""
    asked = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    values = ran.stdout.splitlines()[0].split(",")
    return dict(zip(asked.split(","), (value.strip() for value in values), strict=True))


if __name__ == "__main__":
    sys.exit(main())
