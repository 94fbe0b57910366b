"""Copies of a command: what each gets of the machine, and that their work is the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.runtime import workers
from fedjax_het.runtime.workers import share_of_gpus

ROOT = Path(__file__).parents[2]
CONFIG = """
def get_config():
    return {
        "data": {"source": "digits", "num_clients": 4, "partition": {"name": "iid"}},
        "model": {"name": "mlp", "hidden": (8,)},
        "fleet": {"name": "speed_groups"},
        "algorithm": {"name": "fedavg", "learning_rate": 0.1},
        "run": {"rounds": ROUNDS, "checkpoint_every": 2},
        "compare": {"methods": {"A": {}, "B": {"name": "fedpmt"}}, "seeds": (0, 1)},
    }
"""
# What `python -m launch.compare` does, with an end after the runs and before their figures.
PROGRAM = """
import sys
from fedjax_het import cli, experiment

experiment.write_report = lambda record, path: None
experiment.compare_records = lambda records, targets, out=None: sys.exit(0)
if __name__ == "__main__":
    cli.compare()
"""


@pytest.mark.parametrize(
    ("workers", "gpus", "shares"),
    [
        (2, [], [{}, {}]),
        (2, ["0", "1", "2"], [{"gpus": "0,2"}, {"gpus": "1"}]),
        (2, ["GPU-a", "GPU-b"], [{"gpus": "GPU-a"}, {"gpus": "GPU-b"}]),
        (
            3,
            ["4", "6"],
            [{"gpus": gpu, "part": "0.450"} for gpu in ("4", "6", "4")],
        ),
    ],
)
def test_every_process_has_a_share_of_the_gpus(workers, gpus, shares):
    names = {"gpus": "CUDA_VISIBLE_DEVICES", "part": "XLA_PYTHON_CLIENT_MEM_FRACTION"}
    for index, share in enumerate(shares):
        expected = {names[key]: value for key, value in share.items()}
        assert share_of_gpus(index, workers, gpus, {}) == expected
        # A part that the user chose stays.
        kept = share_of_gpus(index, workers, gpus, {names["part"]: "0.1"})
        assert kept == {k: v for k, v in expected.items() if k != names["part"]}


@pytest.mark.parametrize(
    ("platforms", "visible", "gpus"),
    [("cpu", "0,1", []), ("cuda,cpu", "0, 1", ["0", "1"]), ("", "", []), ("tpu", "0", [])],
)
def test_gpus_are_those_that_jax_may_see(monkeypatch, platforms, visible, gpus):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert workers._gpus() == gpus


def test_more_processes_than_cores_are_refused(tmp_path):
    cores = len(workers._cores())
    with pytest.raises(InputError, match=rf"workers = {cores + 1}: .* {cores} processor cores"):
        workers.run(cores + 1, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_copies_share_the_cores_and_end_with_their_parent(tmp_path):
    """The copies of this program write their cores, and sleep."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, time\n"
        "from fedjax_het.runtime import workers\n"
        "if sys.argv[-1] == '--workers=1':\n"
        "    print(os.getpid(), *sorted(os.sched_getaffinity(0)), flush=True)\n"
        "    time.sleep(100)\n"
        "workers.run(2, 'out')\n"
    )
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("one core")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, str(program)], cwd=tmp_path, env=environment)
    logs = []
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            logs = [path.read_text().split() for path in sorted(tmp_path.glob("out/workers/*"))]
            if len(logs) == 2 and all(logs):
                break
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    assert [[int(core) for core in log[1:]] for log in logs] == [cores[0::2], cores[1::2]]
    for pid, *_ in logs:
        assert gone(int(pid))


def gone(pid):
    """Whether a process ends within a second; it stays a zombie where nobody waits for it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False


# ---- comparisons ---------------------------------------------------------------------------------


def begin(place, workdir, rounds, *arguments):
    config, program = place / "config.py", place / "program.py"
    config.write_text(CONFIG.replace("ROUNDS", str(rounds)))
    program.write_text(PROGRAM)
    command = [sys.executable, str(program), f"--config={config}", f"--workdir={workdir}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([*command, *arguments], cwd=place, env=environment)


def results(workdir):
    """What the runs leave, without what is measured on the wall."""
    found = {}
    for path in sorted(workdir.glob("*/seed*")):
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for row in rows:
            for name in ("wall_s", "compile_s", "compiled_programs"):
                del row[name]
        files = [(path / name).read_bytes() for name in ("clients.jsonl", "model.safetensors")]
        found[path.relative_to(workdir)] = (rows, files)
    return found


def wait_for(condition, process, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_processes_and_their_parent_give_the_runs_of_one_process(tmp_path):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core")
    rounds = 40
    alone = begin(tmp_path, tmp_path / "alone", rounds)
    assert alone.wait(300) == 0
    shared = tmp_path / "shared"

    def saved(count):
        return lambda: len(list(shared.glob("*/seed*/checkpoints/*/meta.json"))) >= count

    def children(process):
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    # The parent is killed, with it the copies; then one copy; what is left is done by the others.
    first = begin(tmp_path, shared, rounds, "--workers=2")
    wait_for(saved(2), first)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = begin(tmp_path, shared, rounds, "--workers=2")
    wait_for(lambda: len(children(second)) == 2, second)
    victim = children(second)[0]
    wait_for(saved(4), second)
    os.kill(victim, signal.SIGKILL)
    # A third process on the same directory, as on another machine.
    third = begin(tmp_path, shared, rounds)
    assert second.wait(300) == 0
    assert third.wait(300) == 0
    assert len(results(shared)) == 4
    assert results(shared) == results(tmp_path / "alone")
