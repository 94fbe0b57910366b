"""A disk that refuses in the middle of a run: one line, readable rows, and a run that goes on."""

import errno
import itertools
import json
import os
import re
from dataclasses import replace

import chex
import pytest
from disk import longest_file, refusing
from problems import digits_problem

import fedjax_het as fh
from fedjax_het import experiment
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_lines
from fedjax_het.common.writing import WriteError, refusal
from fedjax_het.engine.engine import make_engine
from fedjax_het.report import writer
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation import simulation as simulations
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.sinks import SinkRun, open_sinks

OPTIONS = {"rounds": 6, "eval_every": 2, "checkpoint_every": 2, "chunk": 1, "client_eval": "always"}
MEASURED = {"wall_s", "compile_s", "compiled_programs"}
# os.fsync in a run: config.json, the facts and the population; for each of three checkpoints three
# files of rows, meta.json and the digest; the model before the last checkpoint; the population and
# the summary.
BEGUN = 3
SYNCS = BEGUN + 3 * 5 + 1 + 2


@pytest.fixture(scope="module")
def run():
    """A run of six rounds on one compiled engine."""
    problem = digits_problem(hidden=(8,))
    algorithm = build("fedyogi", problem, learning_rate=0.1, batch_size=4, clients_per_round=3)
    shared = {
        "engine": make_engine(algorithm, problem, chunk=1),
        "evaluator": Evaluator(problem),
    }

    def run(workdir, **changes):
        options = {**OPTIONS, **shared, **changes}
        return fh.simulate(algorithm, problem, workdir=workdir, **options)

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    return run(workdir), workdir


def stable(workdir):
    rows = read_lines(workdir / "metrics.jsonl")
    tasks = [(workdir / name).read_bytes() for name in ("clients.jsonl", "clients_eval.jsonl")]
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in rows], tasks


def require_equal(result, workdir, whole):
    wanted, place = whole
    chex.assert_trees_all_equal(result.variables, wanted.variables)
    chex.assert_trees_all_equal(result.state, wanted.state)
    assert stable(workdir) == stable(place)
    assert RunRecord.load(workdir) == result.record


def counted(monkeypatch, owner, name, fails):
    """Replaces a function by one whose call number `fails`, from 0, finds the disk full."""
    original, calls = getattr(owner, name), itertools.count()

    def called(*arguments, **options):
        if next(calls) == fails:
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise error if owner is os else refusal("rows", error)
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, called)
    return calls


def safe_of(error):
    """The round that a message calls safe; None if it calls none safe."""
    message = str(error)
    assert re.fullmatch(r"[^\n]+: cannot be written \(No space left on device\); [^\n]+", message)
    assert "; free space, and run again; " in message
    if "no round is safe yet, so the run will start over" in message:
        return None
    return int(re.search(r"the run is safe up to round (\d+), and continues there$", message)[1])


def test_the_number_of_files_that_reach_the_disk(run, tmp_path, monkeypatch):
    calls = counted(monkeypatch, os, "fsync", None)
    run(tmp_path)
    assert next(calls) == SYNCS


@pytest.mark.parametrize("call", range(SYNCS))
def test_full_at_any_file_and_resumed(run, whole, tmp_path, monkeypatch, call):
    counted(monkeypatch, os, "fsync", call)
    with pytest.raises(InputError) as caught:
        run(tmp_path)
    monkeypatch.undo()
    # Each checkpoint is five calls; the one of round 2 comes after the files of the beginning.
    kept = sum(call >= BEGUN + after for after in (5, 10, 16))
    assert safe_of(caught.value) == [None, 2, 4, 6][kept]
    assert not list(tmp_path.glob("**/*.tmp"))
    if call >= BEGUN:
        # All lines are whole, and as many as were computed.
        assert len(read_lines(tmp_path / "metrics.jsonl")) == [3, 5, 7, 7][kept]
    require_equal(run(tmp_path), tmp_path, whole)


@pytest.mark.parametrize("call", range(11))
def test_full_at_any_row_and_resumed(run, whole, tmp_path, monkeypatch, call):
    counted(monkeypatch, writer, "append", call)
    with pytest.raises(InputError, match="rows: cannot be written") as caught:
        run(tmp_path)
    monkeypatch.undo()
    # Rows of seven steps, and of the clients at the steps 0, 2, 4 and 6.
    assert safe_of(caught.value) == ([None] * 5 + [2] * 3 + [4] * 3)[call]
    require_equal(run(tmp_path), tmp_path, whole)


def test_a_limit_of_the_system_in_the_middle(run, whole, tmp_path):
    """The rows of the tasks may not grow any more: the file ends with the last whole step."""
    size = (whole[1] / "clients.jsonl").stat().st_size
    refused = pytest.raises(InputError, match=r"clients\.jsonl: cannot be written \(File too large")
    with longest_file(size - 10), refused:
        run(tmp_path, checkpoint_every=100)
    rows = read_lines(tmp_path / "clients.jsonl")
    assert rows == read_lines(whole[1] / "clients.jsonl")[: len(rows)]
    assert [row["step"] for row in read_lines(tmp_path / "metrics.jsonl")] == list(range(6))
    require_equal(run(tmp_path, checkpoint_every=100), tmp_path, whole)


def test_a_run_that_lost_a_row_does_not_go_on(tmp_path, monkeypatch):
    """Rows after a gap would not be those of the run."""
    problem = digits_problem(hidden=(8,))
    algorithm = build("fedavg", problem, learning_rate=0.1, batch_size=4)
    with fh.Simulation(algorithm, problem, rounds=3, workdir=tmp_path) as simulation:
        counted(monkeypatch, writer, "append", 0)
        with pytest.raises(InputError, match="No space left"):
            simulation.step()
        monkeypatch.undo()
        with pytest.raises(InputError, match="already holds the rows of a run; resume that run"):
            simulation.step()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 1


def test_events_on_a_full_disk_are_one_line_too(tmp_path):
    """tensorboardX's own writer would wait for ever for the thread that the error has ended."""
    pytest.importorskip("tensorboardX")
    sink = open_sinks(["tensorboard"], SinkRun(tmp_path, "", {}))
    sink.write({"step": 1, "accuracy": 0.5, "info": {}, "ended": "no"})
    row = {"step": 2, **{f"column {i}": 1.0 for i in range(1000)}}
    refused = pytest.raises(WriteError, match=r"tensorboard: cannot be written \(File too large")
    with longest_file(5_000), refused:
        for _ in range(3):
            sink.write(row)
    sink.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"accuracy" in events.read_bytes()


# ---- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_page_in_a_directory_that_may_not_be_written_to(whole, monkeypatch, code):
    monkeypatch.setattr(os, "replace", refusing(code))
    with pytest.raises(WriteError, match=re.escape(os.strerror(code))) as caught:
        experiment.report(whole[1])
    assert re.fullmatch(r"[^\n]+report\.html: [^\n]+; [^\n]+", str(caught.value))
    assert not list(whole[1].glob(".*"))


def test_text_of_a_record_that_is_no_unicode(whole, tmp_path):
    """Only a file that somebody changed holds such a text; the page shows it."""
    record = whole[0].record
    config = json.loads(json.dumps({**record.config, "note": "half \udc80"}))
    changed = replace(record, config=config)
    fh.report.write_report(changed, tmp_path / "report.html")
    assert "half \\udc80" in (tmp_path / "report.html").read_text()


def test_a_name_that_no_file_can_hold_is_refused_at_the_start(run, tmp_path, monkeypatch):
    monkeypatch.setattr(simulations, "Engine", None)
    for name, words in (("half \udc80", "surrogate"), ("x" * 201, "at most 200")):
        with pytest.raises(InputError, match=words):
            run(tmp_path / "run", name=name)
    assert not (tmp_path / "run").exists()
