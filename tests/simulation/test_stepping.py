"""A simulation that is stepped by hand, and several seeds in one call."""

from typing import get_type_hints

import chex
import pytest
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.training import TrainingKeywords
from fedjax_het.common.errors import InputError
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.options import RunKeywords

OPTIONS = {"rounds": 5, "eval_every": 2, "checkpoint_every": 2, "chunk": 1}
TRAINING = {"learning_rate": 0.1, "batch_size": 4}
RECOVERY = {"patience": 1, "validate_on": "test"}
METHODS = {
    "fedavg": {},
    "fedasync": {},
    "prfl": {"density": {"interval": 2}, "recovery": RECOVERY},
}
WALL = {"wall_s", "compile_s", "compiled_programs"}


def problem():
    return digits_problem(hidden=(8,))


def method(name="fedavg"):
    return build(name, problem(), **TRAINING, **METHODS[name])


def without_wall(rows):
    return [{k: v for k, v in row.items() if k not in WALL} for row in rows]


@pytest.mark.parametrize("name", METHODS)
def test_steps_by_hand_are_the_whole_run(name):
    algorithm = method(name)
    whole = fh.simulate(algorithm, problem(), **OPTIONS)
    rows = []
    with fh.Simulation(algorithm, problem(), **OPTIONS) as run:
        assert run.rounds_done == 0
        while not run.done:
            rows.append(run.step())
            assert run.rounds_done == rows[-1]["step"] == len(rows)
            assert run.now_s == rows[-1]["virtual_s"]
        record = run.record
    chex.assert_trees_all_equal(run.variables, whole.variables)
    chex.assert_trees_all_equal(run.state, whole.state)
    assert without_wall(record.metrics) == without_wall(whole.record.metrics)
    assert record.clients == whole.record.clients
    assert without_wall(rows)[-1]["accuracy"] == record.metrics[-1]["accuracy"]


def test_the_record_of_a_run_that_is_not_over(tmp_path):
    with fh.Simulation(method(), problem(), **OPTIONS, workdir=tmp_path) as run:
        run.step()
        early = run.record
        assert early.summary["steps"] == 1
        assert [row["step"] for row in early.metrics] == [0, 1]
        run.step()
        run.step()
    with pytest.raises(InputError, match=r"summary\.json: does not exist"):
        RunRecord.load(tmp_path)
    # The next simulation goes on from the newest checkpoint.
    with fh.Simulation(method(), problem(), **OPTIONS, workdir=tmp_path) as run:
        assert run.rounds_done == 2
        while not run.done:
            run.step()
        late = run.record
    whole = fh.simulate(method(), problem(), **OPTIONS)
    assert without_wall(late.metrics) == without_wall(whole.record.metrics)
    assert late.clients == whole.record.clients


def test_a_failure_loses_nothing(tmp_path):
    algorithm = method()
    plan = algorithm.plan

    def failing(state, variables, situation):
        if situation.round == 2:
            raise RuntimeError("out of luck")
        return plan(state, variables, situation)

    with fh.Simulation(
        algorithm._replace(plan=failing), problem(), **OPTIONS, workdir=tmp_path
    ) as run:
        run.step()
        run.step()
        with pytest.raises(RuntimeError, match="out of luck"):
            run.step()
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(rows) == 3  # the initial model and two steps


def test_several_seeds_are_the_runs_that_each_is_alone(tmp_path):
    algorithm = method()
    runs = fh.simulate(algorithm, problem(), seeds=(3, 1), **OPTIONS, workdir=tmp_path)
    for seed, run in zip((3, 1), runs, strict=True):
        alone = fh.simulate(algorithm, problem(), seed=seed, **OPTIONS)
        chex.assert_trees_all_equal(run.variables, alone.variables)
        assert run.record.summary["seed"] == seed
        assert RunRecord.load(tmp_path / f"seed{seed}") == run.record
    table = fh.report.compare({"FedAvg": runs}, targets=(0.2,))
    assert table.out_dir is None
    assert "FedAvg" in table.table()
    single = fh.report.compare({"FedAvg": runs[0]}, out_dir=tmp_path / "page")
    assert (single.out_dir / "report.html").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": ()}, "seeds = .*at least one"),
        ({"seeds": (1, 1)}, "seeds = .*different"),
        ({"seeds": (0, 1), "seed": 2}, "seed = 2 beside seeds"),
        ({"seeds": (0, -1)}, "seed = -1"),
    ],
)
def test_seeds_that_cannot_be_run_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        fh.simulate(method(), problem(), rounds=1, **options)


def test_typed_keywords_name_the_fields_of_their_options():
    pairs = ((TrainingKeywords, fh.TrainingOptions), (RunKeywords, fh.RunOptions))
    for keywords, options in pairs:
        assert get_type_hints(keywords) == get_type_hints(options)
