"""Timings: `python -m benchmarks.data` of the data path, `python -m benchmarks.parts` of a step and its parts."""
