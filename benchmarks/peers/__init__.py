"""Other frameworks on the same work, side by side; `compare` runs them and prints ratios.

One file per contender. Every contender runs its own simulation loop on the cohorts, the batches and
the initial weights of a `Work`, which `works` records from a run of this library. The peers live in
an environment of their own (`requirements.txt`), for their pins exclude each other's and ours.
"""
