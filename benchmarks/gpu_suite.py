#!/usr/bin/env python3
"""Everything a GPU must show: correctness, then timings, in calls of under eight minutes.

    STANLEY_FAST_CUDA=1 pip install --no-build-isolation --no-deps .    # fails if there is no nvcc
    python benchmarks/gpu_suite.py --out results                    # until it says: all is done
    python benchmarks/gpu_suite.py --out results --only toy,cifar   # the paper's runs, 3 min each

    python benchmarks/gpu_suite.py --device cpu --out dry    # cpp, and Triton's interpreter

It needs torch, this package, installed, and Triton where there is one. Parts run in processes of
their own, so that one that crashes or hangs takes nothing along. Each process's rows are in
gpu_suite_DEVICE.json in --out as soon as it ends; the same command goes on from there, after an
interruption too, and skips what is done. It prints each row with its target, and ends with 0 if all
is done and right, 1 if anything was wrong or did not run, 2 if the limit left something for the
next call. A missed speed target is reported, but is no error.
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

# Seconds for one process of each part, beside --steady in the long ones. Values run in a process
# per backend and dtype, several at a time: on a GPU most of their time is Triton's compiler.
LIMITS = {"correctness": 140, "large": 60, "graphs": 120, "chains": 90, "timings": 130, "conv": 180}
LIMITS |= {"training": 120, "toy": 60, "cifar": 60}
LONG = ("toy", "cifar")  # the paper's runs, which go on for --steady seconds
WHATEVER_BACKEND = ("timings", "conv", "training")
WHOLE = 465  # seconds for a call, unless told
DTYPES = ("float32", "float64", "float16", "bfloat16")
PRECISIONS = {"toy": ("float32",), "cifar": ("float32", "tf32", "bfloat16")}
SAME = ("gpu", "cuda", "torch", "triton", "version", "commit")  # in all calls of one results file


class Process(NamedTuple):
    part: str
    backend: str
    dtype: str


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    default = ",".join(part for part in LIMITS if part not in LONG)
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--only", default=default, help=f"parts, separated by commas; {default} unless told")
    add("--out", type=Path, default=Path(__file__).parent / "results")
    add("--limit", type=float, default=WHOLE, metavar="S", help=f"of a call, {WHOLE} unless told")
    add("--steady", type=float, default=180, metavar="S", help="of toy and cifar, 180 unless told")
    add("--data", type=Path, help="images for cifar: .npy, .npz, .zip or folder; else synthetic")
    add("--samples", type=int, default=0, help="so many of each cifar run, as .npy, for FID")
    add("--again", action="store_true", help="run these parts though they are done")
    add("--commit", help="recorded where the package does not know it")
    add("--process", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.only = args.only.split(",")
    unknown = set(args.only) - set(LIMITS)
    if unknown:
        parser.error(f"--only must name some of {', '.join(LIMITS)}, got {', '.join(unknown)}")
    if args.data is not None and not args.data.exists():
        parser.error(f"--data must exist, got {args.data}")
    if args.samples < 0 or not args.steady > 0:
        parser.error(
            f"--samples must be 0 or more and --steady positive, got {args.samples}, {args.steady}"
        )
    most = max(seconds(args, part) for part in args.only)
    if args.limit < most:
        parser.error(f"--limit must be at least {most:g}, a process's of these parts, "
                     f"got {args.limit:g}")  # fmt: skip
    return args


def seconds(args: argparse.Namespace, part: str) -> float:
    """How long a process of a part may take."""
    return LIMITS[part] + (args.steady if part in LONG else 0.0)


def main() -> int:
    args = arguments()
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported, here and in the processes
    if args.process:
        run_part(Process(*args.process), args)
        return 0
    facts = machine_facts(args)
    state = open_results(args, facts)
    print(json.dumps(facts, indent=1), flush=True)
    call, begin = {"date": facts["date"], "seconds": 0}, time.monotonic()
    state.facts["calls"] = [*state.facts.get("calls", []), call]
    backends = wanted_backends(args.device, facts["backends"], state)
    left: list[Process] = []
    for part in args.only:
        with ThreadPoolExecutor(workers(part)) as pool:
            runs = {
                process: pool.submit(start, args, process, begin + args.limit, state)
                for process in processes(part, backends)
                if process not in state.done
            }
        left += [process for process, run in runs.items() if not run.result()]
        call["seconds"] = round(time.monotonic() - begin)
        state.save()
    return conclude(state, left)


def open_results(args: argparse.Namespace, facts: dict[str, Any]) -> Any:
    """What earlier calls left, less what is to run again."""
    from gpu.state import State

    path = args.out / f"gpu_suite_{args.device}.json"
    try:
        state = State.load(path, facts, SAME)
    except ValueError as error:
        if not args.again:
            sys.exit(f"gpu_suite: {error}: add --again to replace it, or choose another --out")
        state = State(path, facts)
    for part in ("suite", *(args.only if args.again else ())):
        state.forget(part)
    return state


def conclude(state: Any, left: list[Process]) -> int:
    """Prints what was found, and how to go on."""
    from gpu import rows

    print(f"\n{rows.summary(state.rows)}\nall rows: {state.path}")
    if left:
        names = ", ".join(" ".join(process) for process in left)
        print(f"The limit left {names} for the next call: the same command.")
    else:
        print("All is done.")
    return 1 if rows.failed(state.rows) else 2 if left else 0


def processes(part: str, backends: list[str]) -> list[Process]:
    if part in PRECISIONS:
        return [Process(part, "all", precision) for precision in PRECISIONS[part]]
    if part in WHATEVER_BACKEND:
        return [Process(part, "all", "all")]
    if part == "chains":  # which only Triton has on a GPU
        return [Process(part, "triton", "all")] if "triton" in backends else []
    dtypes = DTYPES if part == "correctness" else ("all",)
    return [Process(part, backend, dtype) for backend in backends for dtype in dtypes]


def workers(part: str) -> int:
    """What is timed or takes much memory runs alone."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // 2)) if part == "correctness" else 1


def wanted_backends(device: str, known: dict[str, str | None], state: Any) -> list[str]:
    """Those to run. One that is missing is a failure, unless it is Triton that is not installed."""
    from gpu.rows import FAIL, NOT_RUN

    wanted = ["cuda", "triton"] if device == "cuda" else ["cpp", "triton"]
    suite = Process("suite", "all", "all")
    rows = state.rows_of(suite)
    for name in wanted:
        if known[name] is not None:
            absent = name == "triton" and importlib.util.find_spec("triton") is None
            rows.add(f"backend {name}", NOT_RUN if absent else FAIL, detail=known[name])
    state.finish(suite)
    return [name for name in wanted if known[name] is None]


def start(args: argparse.Namespace, process: Process, deadline: float, state: Any) -> bool:
    """Runs a process; one that ends badly is a failing row. False where no time is left for it."""
    from gpu.rows import FAIL

    limit = seconds(args, process.part)
    if deadline - time.monotonic() < limit:
        return False
    command = [sys.executable, "-X", "faulthandler", __file__, *sys.argv[1:]]
    rows, how = state.rows_of(process), ""
    try:
        ended = subprocess.run([*command, "--process", *process], timeout=limit, check=False)
        if ended.returncode != 0:
            how = f"the process ended with {ended.returncode}; its last words are above"
    except subprocess.TimeoutExpired:
        how = f"stopped after {limit:.0f} s"
    if how:
        rows.add("the whole part", FAIL, dtype=process.dtype, detail=how)
    state.finish(process)
    return True


def run_part(process: Process, args: argparse.Namespace) -> None:
    """In the process of its own."""
    import torch
    from gpu import chains, conv, correctness, graphs, large, runs, timings, training
    from gpu.state import rows_of

    import stanley_fast as sf

    part, backend, dtype = process
    device = args.device
    rows = rows_of(args.out / f"gpu_suite_{device}.json", process)
    if device == "cpu" or part == "correctness":
        torch.set_num_threads(1)
    if part in LONG:
        asked = runs.Options(args.steady, args.data, args.samples, args.out)
        name = f"the paper's {part} run"
        timings.guarded(rows, name, runs.run, rows, part, dtype, device, asked)
    elif part in WHATEVER_BACKEND:
        {"timings": timings, "conv": conv, "training": training}[part].run(rows, device)
    else:
        with sf.use_backend(backend):
            if part == "correctness":
                correctness.run(rows, backend, device, getattr(torch, dtype))
            else:
                {"large": large, "graphs": graphs, "chains": chains}[part].run(
                    rows, backend, device
                )


def machine_facts(args: argparse.Namespace) -> dict[str, Any]:
    """The CPU's facts, and the GPU's as its driver tells them; nothing is changed."""
    import torch

    from stanley_fast.bench import machine

    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_suite: torch sees no CUDA device; --device cpu makes a dry run")
    found = machine.facts(args.device)
    found["commit"] = found["commit"] or args.commit
    found["device"] = args.device
    return found


if __name__ == "__main__":
    sys.exit(main())
