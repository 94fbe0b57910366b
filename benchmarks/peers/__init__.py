"""Other frameworks on the same work; `compare` runs them and prints ratios.

Every contender has one file. It runs its own simulation loop on the cohorts, the batches and the
initial weights of a `Work`, which `works` records from a run of this library. The peers have a
separate environment (`requirements.txt`), because their version pins conflict with ours.
"""
