"""Benchmarks: ratios within one run, against a peer or a physical limit. `python -m benchmarks [NAME ...]`."""
