"""The parts of gpu_suite.py: what a GPU must show."""
