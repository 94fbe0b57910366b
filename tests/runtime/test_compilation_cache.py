"""Compiled programs outlive their process, whole or not at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.runtime import compilation_cache
from fedjax_het.runtime.compilation_cache import ENVIRONMENT, Cache, store

PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from fedjax_het.runtime import compilation_cache
from fedjax_het.runtime.compiling import Compiler
compiler = Compiler()
f = compiler.compile(lambda x: jnp.sum(jnp.sin(x) @ x), np.eye(8, dtype=np.float32))
cache = compilation_cache.enable()
print(float(f(np.eye(8, dtype=np.float32))).hex())
print(cache is not None and len(list(cache.own.iterdir())))
"""


def run(folder, **environment):
    """The program in a process of its own; returns what it printed."""
    plain = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    settings = {ENVIRONMENT: str(folder), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        env={**plain, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def entries(folder):
    return {path.name: path.stat().st_ino for path in folder.glob("*/*") if path.is_file()}


@pytest.mark.slow
def test_second_process_reads_what_the_first_compiled(tmp_path):
    first = run(tmp_path)
    kept = entries(tmp_path)
    assert kept
    assert run(tmp_path) == first
    assert entries(tmp_path) == kept
    assert not list(tmp_path.glob("*/process-*"))


@pytest.mark.slow
def test_off_keeps_nothing_and_a_directory_given_to_jax_is_left_alone(tmp_path):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    assert run("off")[1] == "False"
    assert run(mine, JAX_COMPILATION_CACHE_DIR=str(theirs))[1] == "False"
    assert not mine.exists()
    assert list(theirs.iterdir())


def test_store_is_in_the_users_cache_directory_unless_named(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert store().parent == tmp_path / "fedjax_het" / "compiled"
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "else"))
    assert store().parent == tmp_path / "else"
    for word in ("off", "OFF", "0", ""):
        monkeypatch.setenv(ENVIRONMENT, word)
        assert store() is None


def test_entries_are_shared_whole(tmp_path):
    one, other = Cache(tmp_path), Cache(tmp_path)
    (one.own / "a-cache").write_bytes(b"program")
    assert not (tmp_path / "a-cache").exists()
    one.publish()
    (other.own / "a-cache").write_bytes(b"another")
    other.close()
    assert (tmp_path / "a-cache").read_bytes() == b"program"
    one.close()
    late = Cache(tmp_path)
    assert (late.own / "a-cache").read_bytes() == b"program"
    late.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a-cache"]


def test_what_a_killed_process_was_writing_reaches_nobody(tmp_path):
    killed = Cache(tmp_path)
    (killed.own / "a-cache").write_bytes(b"prog")
    late = Cache(tmp_path)
    assert not (late.own / "a-cache").exists()


def test_oldest_entries_and_left_directories_go(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 20)
    left = Path(tmp_path, "process-left")
    left.mkdir()
    os.utime(left, (0, 0))
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(b"0123456789")
        os.utime(tmp_path / name, (2e9 - age, 2e9 - age))
    cache = Cache(tmp_path)
    assert sorted(path.name for path in cache.own.iterdir()) == ["middle", "new"]
    cache.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]


def test_place_that_cannot_be_written_to_is_refused_if_it_was_named(monkeypatch, tmp_path):
    taken = tmp_path / "file"
    taken.write_text("")
    monkeypatch.setenv(ENVIRONMENT, str(taken))
    with pytest.raises(InputError, match=f"{ENVIRONMENT}={taken}.*off"):
        compilation_cache.open_store(taken / "store")
    monkeypatch.delenv(ENVIRONMENT)
    assert compilation_cache.open_store(taken / "store") is None
