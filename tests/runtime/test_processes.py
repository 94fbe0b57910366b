"""Two processes of two devices each: one result, one writer, and a resumed run among them."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from problems import digits_problem, one_by_one

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.runtime import processes
from fedjax_het.simulation.simulate import simulate

METHODS = ("in blocks", "one by one")
OPTIONS = {"eval_every": 2, "checkpoint_every": 2, "chunk": 1, "devices": 2}

PROGRAM = """
import sys
from fedjax_het.runtime import processes
port, process, workdir, rounds = sys.argv[1:]
processes.join(f"127.0.0.1:{port}", 2, int(process))
import jax
import numpy as np
import test_processes
assert len(jax.devices()) == 4
for name in test_processes.METHODS:
    result = test_processes.run(name, int(rounds), f"{workdir}/{name}")
    assert result.record.metrics[-1]["step"] == int(rounds)
    np.savez(f"{workdir}/{name}-{process}.npz", *jax.tree.leaves(result.variables))
"""


def run(name, rounds, workdir=None):
    problem = digits_problem(hidden=(8,))
    training = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 5}
    algorithm = build("fedyogi", problem, **training)
    if name == "one by one":
        algorithm = one_by_one(algorithm)
    return simulate(algorithm, problem, rounds=rounds, workdir=workdir, **OPTIONS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(program, *arguments):
    """Runs a program in two processes, and gives their exit states, output and errors."""
    here = str(Path(__file__).parent)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*sys.path, here]),
        "JAX_PLATFORMS": "cpu",
    }
    port = str(free_port())
    started = [
        subprocess.Popen(
            [sys.executable, *program, *(a.format(port=port, process=process) for a in arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        said = [process.communicate(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


def load(path):
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


@pytest.mark.slow
def test_two_processes_agree_with_each_other_and_with_one(tmp_path):
    for rounds in ("2", "4"):  # the second time it is resumed
        for status, _, errors in together(
            ["-c", PROGRAM], "{port}", "{process}", str(tmp_path), rounds
        ):
            assert status == 0, errors
    for name in METHODS:
        alone = run(name, 4)
        models = [load(tmp_path / f"{name}-{process}.npz") for process in range(2)]
        for a, b, c in zip(
            *models, [*map(np.asarray, jax.tree.leaves(alone.variables))], strict=True
        ):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, rtol=2e-5, atol=2e-6)
        lines = (tmp_path / name / "clients.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len(rows) == len(alone.record.clients)
        for row, other in zip(rows, alone.record.clients, strict=True):
            assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)
            assert {**row, "loss": 0} == {**other, "loss": 0}


CONFIG = """
def get_config():
    from ml_collections import ConfigDict
    return ConfigDict({
        "data": {"source": "digits", "num_clients": 4, "partition": {"name": "iid"}},
        "model": {"name": "mlp", "hidden": (8,)},
        "fleet": {"name": "uniform"},
        "algorithm": {"name": "fedavg", "learning_rate": 0.1},
        "run": {"rounds": 1, "devices": 2},
    })
"""


def test_the_launcher_joins_processes_and_one_speaks(tmp_path):
    (tmp_path / "tiny.py").write_text(CONFIG)
    place = tmp_path / "run"
    (first, out, errors), (second, other, more) = together(
        ["-m", "launch.train"],
        f"--config={tmp_path / 'tiny.py'}",
        f"--workdir={place}",
        "--coordinator=127.0.0.1:{port}",
        "--num_processes=2",
        "--process_id={process}",
    )
    assert (first, second) == (0, 0), errors + more
    assert "test accuracy" in out
    assert "accuracy" not in other
    assert (place / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("127.0.0.1:1", 2, None), "must be given all three"),
        ((None, 2, 0), "must be given all three"),
        (("127.0.0.1:1", 2, 2), "must lie in 0..num_processes-1"),
        (("127.0.0.1:1", 0, 0), "must lie in 0..num_processes-1"),
    ],
)
def test_processes_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        processes.join(*arguments)


@pytest.mark.parametrize(
    ("flags", "asked", "found"),
    [
        ("", (8, 3, 2), "3"),  # more than cores, the first that can be, too late
        ("", (1,), "1"),
        ("--xla_force_host_platform_device_count=2", (3,), "2"),
    ],
)
def test_a_cpu_is_divided_before_jax_has_its_devices(flags, asked, found):
    lines = [
        "import os, jax; os.cpu_count = lambda: 4",
        "from fedjax_het.runtime.processes import divide_cpu",
        *(f"divide_cpu({devices}); n = {devices} < 8 and jax.device_count()" for devices in asked),
        "print(n)",
    ]
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
