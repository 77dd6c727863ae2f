"""How fast this library is on a machine, beside plain PyTorch and what the machine can do at most.

`stanley-fast bench` runs `cases`; the repository's benchmarks/ take timing, baselines, ceilings and
results from here.
"""
