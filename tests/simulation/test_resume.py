"""A run that is killed at any moment and resumed is bit for bit the run that was never killed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import chex
import jax
import numpy as np
import pytest
from problems import digits_problem, fleet

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.engine.engine import make_engine
from fedjax_het.models import with_compute_dtype
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.runtime import compilation_cache
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

ROUNDS = 60
OPTIONS = {"checkpoint_every": 3, "eval_every": 2, "seed": 3}
UNSTABLE = ("wall_s", "compile_s", "compiled_programs")


# RunOptions, steps, and clients trained side by side: with more than one, results wait in slots.
METHODS = {
    "fedyogi": ({"clients_per_round": 3}, ROUNDS, 1),
    "fedbuff": ({"clients_per_round": 6, "buffer_size": 2}, 24, 4),
    "prfl": (
        {
            "recovery": None,
            "density": {"interval": 3},
            "interval_s": 0.02,
            "links": {"slack_s": 0.0},
        },
        24,
        4,
    ),
}


def method(name="fedyogi"):
    """Sampling, jitter and a server optimiser or buffers: randomness and state of every kind."""
    base = digits_problem(hidden=(8,))
    problem = Problem(base.model, base.data, fleet(8, compute_jitter=0.3))
    training = {"learning_rate": 0.1, "batch_size": 4}
    return build(name, problem, **training, **METHODS[name][0]), problem


def run(workdir, name="fedyogi", **changes):
    algorithm, problem = method(name)
    config = {"algorithm": {"name": name, "learning_rate": 0.1}}
    _, rounds, chunk = METHODS[name]
    options = {"config": config, "rounds": rounds, "chunk": chunk, **OPTIONS, **changes}
    return simulate(algorithm, problem, workdir=workdir, **options)


def stable(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [{k: v for k, v in row.items() if k not in UNSTABLE} for row in rows]


def save(workdir, result):
    """Leaves the final model and the method's state beside the records, bit for bit."""
    leaves = jax.tree.leaves((result.variables, result.state))
    np.savez(Path(workdir) / "final.npz", *map(np.asarray, leaves))


# What a process runs; pauses after every step and within every checkpoint help to aim. All runs
# that are compared are such processes: what this one compiled before must not matter.
PROGRAM = """
import functools, sys, time
import jax
sys.path.insert(0, {tests!r})
import test_resume
from fedjax_het.simulation import checkpoints as checkpoint
from fedjax_het.simulation import journal

def pausing(function, seconds):
    @functools.wraps(function)
    def slow(*arguments):
        result = function(*arguments)
        time.sleep(seconds)
        return result
    return slow

journal.Journal.write = pausing(journal.Journal.write, 0.01)
checkpoint._digest = pausing(checkpoint._digest, 0.05)
result = test_resume.run({workdir!r}, {name!r})
test_resume.save({workdir!r}, result)
"""


def start(workdir, name="fedyogi"):
    tests = str(Path(__file__).parent)
    program = PROGRAM.format(tests=tests, workdir=str(workdir), name=name)
    path = os.pathsep.join([*sys.path, tests])
    environment = {
        **os.environ,
        "PYTHONPATH": path,
        "JAX_PLATFORMS": "cpu",
        # The processes of a test share what they compile, also if they are killed meanwhile.
        compilation_cache.ENVIRONMENT: str(Path(workdir).parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def wait_for(process, condition, seconds=300):
    for _ in range(int(seconds / 0.002)):
        if condition():
            return
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    pytest.fail("the process did not get there in time")


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()


def lines(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def in_checkpoint(workdir, step):
    """Whether the checkpoint of a step has begun to appear but has no digest yet."""
    target = workdir / "checkpoints" / f"{step:08d}"
    return target.exists() and not (target / "digest.json").exists()


def waiting(workdir):
    """Results that wait in the newest whole checkpoint."""
    whole = sorted((workdir / "checkpoints").glob("*/digest.json"))
    if not whole:
        return 0
    return json.loads((whole[-1].parent / "meta.json").read_text())["flight"]["waiting"]


def finish(workdir, name="fedyogi", process=None):
    process = process or start(workdir, name)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    with np.load(workdir / "final.npz") as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """Killed between steps, during a checkpoint, and again; then finished by one more process."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    early, late = np.random.default_rng(0).integers([2, 25], [4, 45])
    moments = [
        lambda: lines(killed) >= early,  # about the first checkpoint
        lambda: any(in_checkpoint(killed, step) for step in range(6, ROUNDS, 3)),
        lambda: lines(killed) >= late,
    ]
    for moment in moments:
        process = start(killed)
        wait_for(process, moment)
        kill(process)
        assert lines(killed) <= ROUNDS
    with open(killed / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 4')  # torn by the kill
    for resumed, uninterrupted in zip(finish(killed), finish(whole), strict=True):
        np.testing.assert_array_equal(resumed, uninterrupted)
    assert stable(killed) == stable(whole)
    assert (killed / "clients.jsonl").read_bytes() == (whole / "clients.jsonl").read_bytes()
    records = [RunRecord.load(workdir) for workdir in (killed, whole)]
    for name in ("virtual_s", "bytes_up", "bytes_down", "flops", "tasks", "final_accuracy"):
        assert records[0].summary[name] == records[1].summary[name]


@pytest.mark.parametrize("name", ["fedbuff", pytest.param("prfl", marks=pytest.mark.slow)])
def test_killed_with_results_in_flight(name, tmp_path):
    """Killed when trained results wait in slots that a checkpoint holds."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process, other = start(killed, name), start(whole, name)
    wait_for(process, lambda: lines(killed) >= 10 and waiting(killed) > 0)
    kill(process)
    assert lines(killed) <= METHODS[name][1]
    resumed, uninterrupted = finish(killed, name), finish(whole, name, other)
    for one, two in zip(resumed, uninterrupted, strict=True):
        np.testing.assert_array_equal(one, two)
    assert stable(killed) == stable(whole)
    assert (killed / "clients.jsonl").read_bytes() == (whole / "clients.jsonl").read_bytes()
    assert max(row["in_flight"] for row in stable(killed)[1:]) > 0


@pytest.fixture(scope="module")
def short():
    """Six rounds of the same method on one compiled engine."""
    algorithm, problem = method()
    engines = {"engine": make_engine(algorithm, problem, chunk=1), "evaluator": Evaluator(problem)}

    def run(workdir, algorithm=algorithm, problem=problem, **changes):
        options = {**OPTIONS, "chunk": 1, "rounds": 6, "checkpoint_every": 2, **changes}
        own = engines if engines["engine"].holds(algorithm) else {}
        return simulate(algorithm, problem, workdir=workdir, **own, **options)

    return run


@pytest.mark.parametrize(
    "damage", ["truncate", "delete", "no digest", "deep digest", "no file", "garbage"]
)
def test_a_torn_checkpoint_falls_back_to_the_one_before(short, tmp_path, damage):
    wanted = short(tmp_path / "whole")
    short(tmp_path / "torn", rounds=4)
    newest = tmp_path / "torn" / "checkpoints" / "00000004"
    files = sorted(p for p in (newest / "arrays").rglob("*") if p.is_file())
    largest = max(files, key=lambda p: p.stat().st_size)
    if damage == "truncate":
        os.truncate(largest, largest.stat().st_size // 2)
    elif damage == "delete":
        largest.unlink()
    elif damage == "no digest":
        (newest / "digest.json").unlink()
    elif damage == "deep digest":
        (newest / "digest.json").write_text("[" * 100_000)
    elif damage == "no file":
        (newest / "digest.json").unlink()
        os.mkfifo(newest / "digest.json")
    else:
        (newest / "meta.json").write_text("{")
    result = short(tmp_path / "torn")
    chex.assert_trees_all_equal(result.variables, wanted.variables)
    chex.assert_trees_all_equal(result.state, wanted.state)
    assert result.record.clients == wanted.record.clients
    assert stable(tmp_path / "torn") == stable(tmp_path / "whole")
    assert newest.exists()  # written anew


def test_all_checkpoints_torn_starts_over(short, tmp_path):
    wanted = short(tmp_path / "whole")
    short(tmp_path / "torn", rounds=4)
    for digest in (tmp_path / "torn" / "checkpoints").glob("*/digest.json"):
        digest.unlink()
    result = short(tmp_path / "torn")
    chex.assert_trees_all_equal(result.variables, wanted.variables)
    assert stable(tmp_path / "torn") == stable(tmp_path / "whole")


@pytest.mark.parametrize(
    "tail", [b'{"step": 5, "virtual_s": 1.', b"\x00" * 64, b'{"step": 5}\n{"step": 6}\n']
)
def test_rows_after_the_checkpoint_are_cut(short, tmp_path, tail):
    wanted = short(tmp_path / "whole")
    short(tmp_path / "torn", rounds=4)
    for name in ("metrics.jsonl", "clients.jsonl"):
        with open(tmp_path / "torn" / name, "ab") as file:
            file.write(tail)
    result = short(tmp_path / "torn")
    chex.assert_trees_all_equal(result.variables, wanted.variables)
    assert stable(tmp_path / "torn") == stable(tmp_path / "whole")


def test_two_checkpoints_are_kept(short, tmp_path):
    short(tmp_path)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["00000004", "00000006"]


def test_rows_that_a_checkpoint_counts_on_must_be_there(short, tmp_path):
    short(tmp_path, rounds=4)
    os.truncate(tmp_path / "clients.jsonl", 10)
    with pytest.raises(InputError, match=r"clients\.jsonl: 10 bytes"):
        short(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config": {"algorithm": {"learning_rate": 0.2}}}, r"learning_rate: 0\.1 -> 0\.2"),
        ({"seed": 4}, "seed: 3 -> 4"),
    ],
)
@pytest.mark.parametrize("checkpoint", [True, False])
def test_another_configuration_is_refused_by_name(short, tmp_path, changes, words, checkpoint):
    config = {"algorithm": {"learning_rate": 0.1}}
    short(tmp_path, rounds=2, config=config)
    rows = (tmp_path / "clients.jsonl").read_bytes()
    if not checkpoint:  # killed before the first one
        for digest in (tmp_path / "checkpoints").glob("*/digest.json"):
            digest.unlink()
    with pytest.raises(InputError, match=words):
        short(tmp_path, **{"config": config, **changes})
    assert (tmp_path / "clients.jsonl").read_bytes() == rows


def test_another_algorithm_is_refused(short, tmp_path):
    short(tmp_path, rounds=2)
    algorithm, _ = method()
    with pytest.raises(InputError, match="algorithm: 'fedyogi' -> 'fedavg'"):
        short(tmp_path, algorithm=algorithm._replace(name="fedavg"))


def test_another_precision_is_refused(short, tmp_path):
    short(tmp_path, rounds=2)
    _, problem = method()
    mixed = replace(problem, model=with_compute_dtype(problem.model, "bfloat16"))
    with pytest.raises(InputError, match="compute_dtype: 'float32' -> 'bfloat16'"):
        short(tmp_path, problem=mixed)
