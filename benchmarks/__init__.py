"""Benchmarks: ratios of times that are measured in the same run."""
