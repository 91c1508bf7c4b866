"""Benchmarks by name, one file each; `eval.benchmark` says what stands in them."""
