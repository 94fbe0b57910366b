"""Every test runs with strict promotion: a silent cast or broadcast is a bug here."""

import gc
import os
import sys
from pathlib import Path

# Set before JAX is imported, and passed on to the processes that tests start.
os.environ.setdefault(
    "XLA_FLAGS",
    # Two virtual devices, so that sharded cohorts are tested without accelerators.
    "--xla_force_host_platform_device_count=2 "
    # Programs run once or twice here: those of XLA's older emitter compile in half the time.
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1",
)
# Less optimisation, the same mathematics.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# All processes of a session share what they compile, and so does the next session.
os.environ.setdefault(
    "FEDJAX_HET_COMPILATION_CACHE", str(Path(__file__).parents[1] / ".cache" / "compiled")
)

import jax
import program_flags
import pytest
from absl import logging as absl_logging

from fedjax_het import cli
from fedjax_het.common.errors import InputError
from fedjax_het.data import load
from fedjax_het.runtime import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
compilation_cache.enable()


def pytest_collection_finish():
    """Modules live as long as the process: the collector need not visit them while JAX traces."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Lets programs go before there are more than a process may map (65,530 areas on Linux)."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def full_compile():
    """For tests of what the compiler makes of a program, and of long runs."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def data_dir():
    """Directory with some of the larger public sets, or a skip that says how to provide it."""
    path = os.environ.get("FEDJAX_HET_DATA")
    if not path or not os.path.isdir(path):
        pytest.skip("FEDJAX_HET_DATA does not name a directory with the public data sets")
    return path


@pytest.fixture
def real(data_dir):
    """Function that loads a published set by name, or skips where its files are not at hand."""

    def loaded(name, load=load, **options):
        try:
            return load(name, data_dir, **options)
        except InputError as error:
            if "no file" not in str(error):
                raise
            pytest.skip(str(error))

    return loaded


@pytest.fixture
def fedjax_het(monkeypatch, capsys):
    """Runs `fedjax-het ARGS` in this process; gives the exit status, output and errors."""
    verbosity = absl_logging.get_verbosity()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedjax-het", *map(str, arguments)])
        with program_flags.of_one_program(), pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    yield run
    absl_logging.set_verbosity(verbosity)
