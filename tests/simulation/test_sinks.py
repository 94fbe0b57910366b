"""Sinks: what they get is what `metrics.jsonl` has, and none of them can end a run."""

import hashlib
import json
import logging
import math
import sys

import pytest
from problems import digits_problem

from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_lines
from fedjax_het.simulation.simulate import simulate
from fedjax_het.simulation.sinks import SINKS

ROUNDS = 4


class Listed:
    """A sink that keeps what it gets, and fails from a step on."""

    def __init__(self, fails_at=math.inf):
        self.rows, self.fails_at, self.closed = {}, fails_at, False

    def write(self, step, numbers):
        if step >= self.fails_at:
            raise ConnectionError("the server\nis gone")
        self.rows[step] = dict(numbers)

    def close(self):
        self.closed = True


def run(workdir, *sinks, rounds=ROUNDS):
    problem = digits_problem()
    algorithm = build("fedavg", problem, learning_rate=0.1, batch_size=4)
    options = {"name": "a run", "checkpoint_every": 2, "eval_every": 1}
    return simulate(algorithm, problem, rounds=rounds, workdir=workdir, sinks=sinks, **options)


def numbers_of(workdir):
    """The numbers of `metrics.jsonl` by step."""
    rows = {}
    for row in read_lines(workdir / "metrics.jsonl"):
        named = {k: v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
        rows[row["step"]] = named
    return rows


@pytest.fixture
def listed(monkeypatch):
    def add(name, sink):
        opened = []

        def opener(run):
            opened.append(run)
            return sink

        monkeypatch.setitem(SINKS, name, opener)
        return opened

    return add


def test_a_sink_of_one_s_own_gets_every_number(tmp_path, listed):
    sink = Listed()
    opened = listed("mine", sink)
    run(tmp_path, "mine")
    assert sink.rows == numbers_of(tmp_path)
    assert list(sink.rows) == list(range(ROUNDS + 1))
    assert sink.closed
    (told,) = opened
    assert (told.workdir, told.name) == (tmp_path, "a run")
    assert told.config["run"]["seed"] == 0


def test_a_sink_that_fails_is_left_out_and_the_run_goes_on(tmp_path, listed, caplog):
    bad, good = Listed(fails_at=2), Listed()
    listed("bad", bad)
    listed("good", good)
    with caplog.at_level(logging.WARNING, logger="absl"):
        result = run(tmp_path / "with", "bad", "good")
    (warning,) = [r.getMessage() for r in caplog.records if "sink" in r.getMessage()]
    assert "sink 'bad' failed (ConnectionError: the server is gone)" in warning
    assert "\n" not in warning
    assert list(bad.rows) == [0, 1]
    assert good.rows == numbers_of(tmp_path / "with")
    assert result.record.clients == run(tmp_path / "without").record.clients


def test_a_sink_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    def opener(run):
        raise OSError("no route\nto host")

    monkeypatch.setitem(SINKS, "far", opener)
    with pytest.raises(
        InputError, match=r"^sinks with 'far': cannot be opened \(OSError: no route"
    ):
        run(tmp_path, "far")
    # Its directory is free again.
    run(tmp_path)


@pytest.mark.parametrize(
    ("sink", "library", "extra"),
    [
        ("wandb", "wandb", "wandb"),
        ("mlflow", "mlflow", "mlflow"),
        ("trackio", "trackio", "trackio"),
        ("tensorboard", "tensorboardX.event_file_writer", "tracking"),
    ],
)
def test_a_missing_library_names_its_extra(tmp_path, monkeypatch, sink, library, extra):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        InputError, match=rf"not installed; install it with .*fedjax-het\[{extra}\]"
    ):
        run(tmp_path, sink)


def same(found, wanted):
    """Whether numbers by step and name agree, in the single precision of some trackers."""
    assert found.keys() == wanted.keys()
    for step, numbers in wanted.items():
        assert found[step] == pytest.approx(numbers, rel=1e-6), step


def wandb_records(path):
    """The records of an offline run: messages in the blocks of a LevelDB log, behind 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    log, place, whole = path.read_bytes(), 7, b""
    assert log[:4] == b":W&B"
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        length, kind = int.from_bytes(log[place + 4 : place + 6], "little"), log[place + 6]
        if left < 7 or kind == 0:
            place += left
            continue
        whole += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a complete message, or the last part of one
            yield Record.FromString(whole)
            whole = b""


def test_wandb_offline_has_the_rows_of_a_run_and_of_its_continuation(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run(tmp_path, "wandb", rounds=2)
    run(tmp_path, "wandb")
    found, ids = {}, set()
    for path in sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            if record.HasField("run"):
                ids.add(record.run.run_id)
            if record.HasField("history"):
                items = {
                    item.key or ".".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                step = record.history.step.num
                found[step] = {k: v for k, v in items.items() if not k.startswith("_")}
    same(found, numbers_of(tmp_path))
    place = str(tmp_path.absolute()).encode()
    assert ids == {hashlib.sha256(place).hexdigest()[:16]}


# MLflow 3.17 uses a loader that SQLAlchemy 2.1 is about to drop.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_in_a_local_file_has_the_rows_of_a_run_and_of_its_continuation(
    tmp_path, monkeypatch
):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run(tmp_path / "run", "mlflow", rounds=2)
    run(tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path}/run/mlflow.db")
    experiment = client.get_experiment_by_name("fedjax-het")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED"
    assert one.info.run_name == "a run"
    assert one.data.params["run.seed"] == "0"
    found = {}
    for name in one.data.metrics:
        for point in client.get_metric_history(one.info.run_id, name):
            found.setdefault(point.step, {})[name] = point.value
    same(found, numbers_of(tmp_path / "run"))


def test_tensorboard_s_own_reader_has_the_rows(tmp_path):
    pytest.importorskip("tensorboardX")
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tmp_path, "tensorboard")
    events = reading.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {}
    for name in events.Tags()["scalars"]:
        for point in events.Scalars(name):
            found.setdefault(point.step, {})[name] = point.value
    same(found, numbers_of(tmp_path))
