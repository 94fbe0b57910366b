"""Benchmarks of single functions and mechanisms."""
