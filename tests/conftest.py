"""Every test runs with strict promotion: a silent cast or broadcast is a bug here."""

import atexit
import gc
import os
import tempfile
from pathlib import Path

# Two virtual devices, so that sharded cohorts are tested on a machine without accelerators.
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Many tests compile the same program. The directory is this process's own, for JAX does not
    # write its cache atomically; name one in the environment to keep programs between runs.
    _cache = tempfile.TemporaryDirectory(prefix="fedjax_het_tests_")
    atexit.register(_cache.cleanup)
    jax.config.update("jax_compilation_cache_dir", _cache.name)
    # Processes that the tests start keep their programs here, not in the user's home.
    os.environ.setdefault("FEDJAX_HET_COMPILATION_CACHE", os.path.join(_cache.name, "store"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Lets programs go before there are more than a process may map (65,530 areas on Linux)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="module")
def quick_compile():
    """For modules that compile many small programs: less optimisation, the same mathematics."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def full_compile(quick_compile):
    """For tests, in such a module, of what the compiler makes of a program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def data_dir():
    """Directory with the larger public sets, or a skip that says how to provide it."""
    path = os.environ.get("FEDJAX_HET_DATA")
    if not path or not os.path.isdir(path):
        pytest.skip("FEDJAX_HET_DATA does not name a directory with the public data sets")
    return path
