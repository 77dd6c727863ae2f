"""Calls as CUDA graphs: eager torch without its launches."""

from __future__ import annotations

import torch

from stanley_fast.bench.timing import Run


def captured(run: Run, warm: Run | None = None) -> Run:
    """`run` as one CUDA graph: a call replays it.

    Args:
        run: what is captured; its tensors must stay where they are.
        warm: called before, on a stream aside, so that kernels are compiled and loaded outside the
            capture; `run` itself unless told.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        (warm or run)()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    torch.clear_autocast_cache()  # weights that autocast rounds are rounded in the graph
    with torch.cuda.graph(graph):
        run()
    torch.clear_autocast_cache()
    return graph.replay
