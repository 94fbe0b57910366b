"""Campaigns of faults: kills, failing writes, bad updates, hostile options and damaged files.

`docs/reliability.md` says what they hold and how to run them. What a campaign's processes need of
their environment is set here, before anything imports JAX.
"""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tiny programs that run once or twice: a compiler that does little, and a store of its own that all
# processes share, also if they are killed.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("FEDJAX_HET_COMPILATION_CACHE", str(Path("runs/faults/compiled").absolute()))
