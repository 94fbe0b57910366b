"""The clock on the wall decides when a run is seen, and nothing that it computes or refuses."""

import itertools

import chex
import pytest
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import read_lines
from fedjax_het.contract.plan import Schedule
from fedjax_het.engine.engine import make_engine
from fedjax_het.simulation import stopwatch
from fedjax_het.simulation.evaluation import Evaluator

ROUNDS = 12
OPTIONS = {"rounds": ROUNDS, "eval_every": 10, "checkpoint_every": 7, "chunk": 1}
MEASURED = {"wall_s", "compile_s", "compiled_programs"}
# Seconds between two looks at the clock: every batch is over at once, takes too long, or the one
# and the other in turn.
CLOCKS = {"fast": (0.0,), "slow": (60.0,), "uneven": (0.0, 60.0, 0.1, 0.0, 9.0)}


def set_clock(monkeypatch, name):
    times = itertools.accumulate(itertools.cycle(CLOCKS[name]))
    monkeypatch.setattr(stopwatch, "clock", lambda: next(times))


@pytest.fixture(scope="module")
def parts():
    problem = digits_problem(hidden=(8,))
    algorithm = build("fedavg", problem, learning_rate=0.1, batch_size=4, clients_per_round=3)
    return algorithm, problem, make_engine(algorithm, problem, chunk=1), Evaluator(problem)


def failing(algorithm, error):
    """The method, whose plan of the tenth round fails."""
    tasks = algorithm.plan.tasks

    def plan(situation):
        if situation.round == 9:
            raise error
        return tasks(situation)

    return algorithm._replace(plan=Schedule(plan))


def run(parts, workdir, error=None):
    """A run by batches: the simulation, their lengths, what was refused, and what is on disk."""
    algorithm, problem, engine, evaluator = parts
    shared = {"engine": engine, "evaluator": evaluator}
    if error is not None:
        algorithm, shared = failing(algorithm, error), {"evaluator": evaluator}
    batches, refused = [], ""
    with fh.Simulation(algorithm, problem, workdir=workdir, **OPTIONS, **shared) as simulation:
        try:
            while not simulation.done:
                batches.append(simulation.advance())
        except (InputError, RuntimeError) as raised:
            refused = str(raised)
    rows = read_lines(workdir / "metrics.jsonl")
    written = (
        [{name: value for name, value in row.items() if name not in MEASURED} for row in rows],
        (workdir / "clients.jsonl").read_bytes(),
        sorted(path.name for path in (workdir / "checkpoints").iterdir()),
    )
    return simulation, batches, refused, written


def test_results_and_records_are_those_of_any_clock(parts, tmp_path, monkeypatch):
    runs = {}
    for name in CLOCKS:
        set_clock(monkeypatch, name)
        runs[name] = run(parts, tmp_path / name)
    (fast, *_), (slow, *_) = runs["fast"], runs["slow"]
    # Batches end at the checkpoint of round 7 and at the evaluation of round 10.
    assert runs["fast"][1] == [1, 2, 4, 3, 2]
    assert runs["slow"][1] == [1] * ROUNDS
    assert runs["uneven"][1] not in (runs["fast"][1], runs["slow"][1])
    chex.assert_trees_all_equal(fast.variables, slow.variables)
    chex.assert_trees_all_equal(fast.state, slow.state)
    assert runs["fast"][2:] == runs["slow"][2:] == runs["uneven"][2:]
    assert runs["fast"][3][2] == ["00000007", "00000012"]


@pytest.mark.parametrize("kind", [InputError, RuntimeError])
def test_a_round_that_cannot_be_planned_costs_no_other(parts, tmp_path, monkeypatch, kind):
    """Nine rounds are recorded and round 10 is refused, however many a batch would have had."""
    runs = {}
    for name in CLOCKS:
        set_clock(monkeypatch, name)
        runs[name] = run(parts, tmp_path / name, kind("no plan for the tenth"))
    for _, batches, refused, (rows, _, kept) in runs.values():
        assert refused == "no plan for the tenth"
        assert sum(batches) == 9
        assert [row["step"] for row in rows] == list(range(10))
        assert kept == ["00000007"]
    assert runs["fast"][2:] == runs["slow"][2:] == runs["uneven"][2:]


def test_the_recorded_seconds_are_those_of_the_clock(parts, tmp_path, monkeypatch):
    """Sixty seconds pass between two looks; the compiler's own are taken off and listed."""
    set_clock(monkeypatch, "slow")
    run(parts, tmp_path)
    rows = read_lines(tmp_path / "metrics.jsonl")
    total = [row["wall_s"] + row["compile_s"] for row in rows]
    assert total == pytest.approx([60.0 * round(seconds / 60.0) for seconds in total])
    assert total == sorted(total)
