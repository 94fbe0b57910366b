"""Flower's own transports come to the model of the simulation: `make flower`.

The app is that of the documentation, `docs/flower_app`. `flwr run` hands it to a SuperLink on the
loopback.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import fedjax_het as fh
from fedjax_het.common.jsonio import read_lines

pytest.importorskip(
    "flwr", reason="Flower is not installed; run: make flower", exc_type=ImportError
)

APP = Path(__file__).parents[2] / "docs" / "flower_app"
BIN = Path(sys.executable).parent
# Processes start slowly on a busy machine, and each imports JAX.
PATIENCE_S = 900
# Ray gives its own processes 30 s to start, which no option changes.
RAY_TRIES = 5
NODES = 2
# Lines that stand for the winner in `task.py`, and the number of rounds.
METHODS = {
    "fedpmt": ("fh.algorithms.fedpmt(problem, learning_rate=0.1, batch_size=32)", 5),
    "fedel": ("fh.algorithms.fedel(problem, learning_rate=0.1, batch_size=32)", 5),
    "fedavg": ("fh.algorithms.fedavg(problem, learning_rate=0.1, batch_size=32)", 2),
    "fedprox": ("fh.algorithms.fedprox(problem, mu=0.1, learning_rate=0.1, batch_size=32)", 2),
    "fedadam": ("fh.algorithms.fedadam(problem, learning_rate=0.1, batch_size=32)", 2),
    "heterofl": ("fh.algorithms.heterofl(problem, learning_rate=0.1, batch_size=32)", 2),
}


def written(folder, name):
    """A copy of the app with another winner."""
    shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"))
    task = folder / "digits_app" / "task.py"
    text, line = task.read_text(), METHODS[name][0]
    changed = re.sub(r"^method = .*$", f"method = {line}", text, flags=re.M)
    if name == "fedel":
        changed = changed.replace("hidden=(32, 16))", "hidden=(32, 16), exits=True)")
    assert (changed == text) == (name == "fedpmt")  # the app of the documentation as it stands
    task.write_text(changed)
    return folder


def made(folder):
    """The names that the module `task` of an app defines."""
    names: dict = {}
    exec((folder / "digits_app" / "task.py").read_text(), names)
    return names


def ports(count):
    """Free ports of the loopback."""
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Network:
    """A SuperLink on the loopback, its processes, and their logs.

    Args:
      place: empty directory.
      options: further options of the SuperLink.
    """

    def __init__(self, place, *options):
        self._place, self._running = place, []
        self.port, *self._ports = ports(1 + NODES)
        (place / "home").mkdir()
        (place / "home" / "config.toml").write_text(
            f'[superlink.here]\naddress = "127.0.0.1:{self.port}"\ninsecure = true\n'
            f"options.num-supernodes = {NODES}\n"
            "options.backend.client-resources.num-cpus = 1\n"
            "options.backend.init-args.num-cpus = 1\n"
        )
        self._environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "JAX_PLATFORMS": "cpu",
            "FLWR_HOME": str(place / "home"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "NO_PROXY": "127.0.0.1",
        }
        self.start(
            "flower-superlink",
            "--insecure",
            "--disable-runtime-dependency-installation",
            *("--host", "127.0.0.1", "--port", str(self.port), *options),
        )
        try:
            self._await_port(self.port)
        except BaseException:
            self.close()
            raise

    def start(self, program, *arguments):
        """Starts a program, which ends with the network."""
        with (self._place / f"{program}-{len(self._running)}.log").open("w") as log:
            self._running.append(
                subprocess.Popen(
                    [BIN / program, *arguments],
                    env=self._environment,
                    cwd=self._place,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def node(self, k, samples):
        """Starts the SuperNode of a client whose samples are in a file."""
        self.start(
            "flower-supernode",
            "--insecure",
            *("--superlink", f"127.0.0.1:{self.port}"),
            *("--host", "127.0.0.1", "--port", str(self._ports[k])),
            *("--node-config", f"partition-id={k} samples='{samples}'"),
        )

    def run(self, app, workdir, rounds):
        """Runs an app to its end; fails with all logs if it comes to none."""
        config = f"rounds={rounds} workdir='{workdir}'"
        for _ in range(RAY_TRIES):
            done = subprocess.run(
                [BIN / "flwr", "run", str(app), "here", "--stream", "--run-config", config],
                env=self._environment,
                cwd=self._place,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=PATIENCE_S,
            )
            if "node timed out during startup" not in done.stdout:
                break
        assert (workdir / "summary.json").exists(), f"{self.logs}\n--- run\n{done.stdout[-8000:]}"

    @property
    def logs(self):
        """The last lines of every log."""
        files = sorted(self._place.glob("*.log"))
        return "\n".join(f"--- {file.name}\n{file.read_text()[-2000:]}" for file in files)

    def _await_port(self, port):
        began = time.monotonic()
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            assert time.monotonic() - began < PATIENCE_S, self.logs
            time.sleep(0.2)

    def close(self):
        """Ends every process of the network, and what its processes started and left behind."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        for process in self._running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
        began = time.monotonic()
        while left := self._processes():
            assert time.monotonic() - began < PATIENCE_S, left
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def _processes(self):
        """Ids of all processes that have the Flower home of this network in their environment."""
        mark = f"FLWR_HOME={self._environment['FLWR_HOME']}".encode()
        found = []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark in (place / "environ").read_bytes().split(b"\0"):
                    found.append(int(place.name))
        for process in self._running:
            process.poll()  # so that none stays as a zombie
        return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """A SuperLink that simulates the nodes."""
    place = tmp_path_factory.mktemp("engine")
    with contextlib.closing(Network(place, "--simulation")) as network:
        yield network


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """A SuperLink and its SuperNodes, each with the samples of its client in a file."""
    place = tmp_path_factory.mktemp("devices")
    data = made(APP)["data"]
    with contextlib.closing(Network(place)) as network:
        for k in range(NODES):
            mine, file = data.client_samples(k), place / f"samples{k}.npz"
            np.savez(file, x=data.x[mine], y=data.y[mine])
            network.node(k, file)
        yield network


def compared(folder, workdir, rounds):
    """Prints and asserts how far the model of a deployment is from that of the simulation."""
    task = made(folder)
    problem = task["problem"]
    expected = fh.simulate(task["method"], problem, rounds=rounds, seed=0)
    model = fh.load_model(workdir)
    pairs = zip(jax.tree.leaves(model.variables), jax.tree.leaves(expected.variables), strict=True)
    apart = max(float(np.max(np.abs(np.asarray(a) - np.asarray(b)))) for a, b in pairs)
    rows = [row for row in read_lines(workdir / "metrics.jsonl") if row["step"]]
    charged = [sum(row[f"bytes_{way}"] for row in rows) for way in ("down", "up")]
    sent = [sum(row["info"][f"payload_bytes_{way}"] for row in rows) for way in ("down", "up")]
    print(
        f"{expected.record.summary['algorithm']}: {rounds} rounds, largest difference {apart:.2g}; "
        f"bytes down {sent[0]} (charged {charged[0]}), up {sent[1]} (charged {charged[1]})"
    )
    assert [row["step"] for row in rows] == list(range(1, rounds + 1))
    assert all(row["info"]["silent_clients"] == 0 for row in rows)
    assert apart < 1e-5
    start = problem.model.init(jax.random.key(0))
    assert any(
        np.any(a != b) for a, b in zip(jax.tree.leaves(model.variables), jax.tree.leaves(start))
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_messages_keep_their_shapes_in_records():
    from fedjax_het.export.message import Message
    from fedjax_het.export.transport import message_of, records

    arrays = {"a": np.float32(3), "b": np.arange(6, dtype=np.int32).reshape(2, 3).T}
    sent = Message({name: np.asarray(a) for name, a in arrays.items()}, {"x": 0.1, "y": "z"})
    back = message_of(records(sent))
    assert back.words == sent.words
    for name, array in sent.arrays.items():
        assert (back.arrays[name].shape, back.arrays[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(back.arrays[name], array)


@pytest.mark.parametrize("name", METHODS)
def test_simulation_engine(engine, name, tmp_path):
    app, rounds = written(tmp_path / "app", name), METHODS[name][1]
    engine.run(app, tmp_path / "run", rounds)
    compared(app, tmp_path / "run", rounds)


@pytest.mark.parametrize("name", ["fedpmt", "fedel"])
def test_superlink_with_two_supernodes(devices, name, tmp_path):
    app, rounds = written(tmp_path / "app", name), METHODS[name][1]
    devices.run(app, tmp_path / "run", rounds)
    compared(app, tmp_path / "run", rounds)
