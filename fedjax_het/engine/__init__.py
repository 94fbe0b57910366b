"""Runs cohorts: programs, rows, routes, rounds in batches, clients in flight, devices."""
