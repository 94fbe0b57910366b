"""Every test runs with strict promotion: a silent cast or broadcast is a bug here."""

import os

# Two virtual devices, so that sharded cohorts are tested on a machine without accelerators.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def data_dir():
    """Directory with the larger public sets, or a skip that says how to provide it."""
    path = os.environ.get("FEDJAX_HET_DATA")
    if not path or not os.path.isdir(path):
        pytest.skip("FEDJAX_HET_DATA does not name a directory with the public data sets")
    return path
