"""Microbenchmarks: `python -m benchmarks` runs every stem, `python -m benchmarks likelihood_score --quick` one."""
