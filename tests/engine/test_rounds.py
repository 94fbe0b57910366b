"""Blocks of rounds: the same records and models as one round after another, bit for bit."""

import functools
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, digits_problem, fleet, one_by_one, scalar_problem

from fedjax_het.algorithms import build, parts
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import ClientResult
from fedjax_het.contract.plan import Schedule
from fedjax_het.engine.engine import make_engine
from fedjax_het.problem import Problem
from fedjax_het.simulation import stopwatch
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 4}
JITTER = digits_problem(hidden=(8,))
JITTER = Problem(JITTER.model, JITTER.data, fleet(8, compute_jitter=0.3))
METHODS = {
    "fedyogi": TRAINING,
    "fedpmt": {**TRAINING, "depths": (1, 2), "schedule": "inverse"},
    # Sometimes nobody finishes.
    "drop_stragglers": {**TRAINING, "clients_per_round": 1, "deadline_s": 0.06},
    "fedprox": {**TRAINING, "deadline_s": 0.06},
    "feddrop": TRAINING,
}
ROUNDS = 9
UNSTABLE = ("wall_s", "compile_s", "compiled_programs")


def without(row, *names):
    return {name: value for name, value in row.items() if name not in names}


def rows_of(result, *names):
    """The metrics without what the wall decides, and without the given columns."""
    return [without(row, *UNSTABLE, *names) for row in result.record.metrics]


MEASURED = ("accuracy", "loss", "client_accuracy_mean", "client_accuracy_worst_decile")


@pytest.mark.parametrize("name", METHODS)
def test_a_block_is_its_rounds(name):
    algorithm = build(name, JITTER, **METHODS[name])
    run = functools.partial(
        simulate, algorithm, JITTER, rounds=ROUNDS, chunk=1, evaluator=Evaluator(JITTER)
    )
    whole = run(eval_every=100)
    assert whole.faults == []
    # One round a program, and the same program with fewer rounds to a block.
    for pieces in (run(eval_every=1), run(eval_every=100, checkpoint_every=2)):
        chex.assert_trees_all_equal(pieces.variables, whole.variables)
        chex.assert_trees_all_equal(pieces.state, whole.state)
        assert pieces.record.clients == whole.record.clients
        assert rows_of(pieces, *MEASURED) == rows_of(whole, *MEASURED)
        assert pieces.record.metrics[-1]["accuracy"] == whole.record.metrics[-1]["accuracy"]
    # Rounds whose merge and step are programs of their own.
    apart = simulate(one_by_one(algorithm), JITTER, rounds=ROUNDS, chunk=1, eval_every=100)
    assert_close(apart.variables, whole.variables, rtol=2e-5, atol=2e-6)
    assert_close(apart.state, whole.state, rtol=2e-4, atol=1e-6)
    for a, b in zip(apart.record.clients, whole.record.clients, strict=True):
        assert without(a, "loss") == without(b, "loss")
        assert (a["loss"] is None) == (b["loss"] is None)
        assert a["loss"] is None or a["loss"] == pytest.approx(b["loss"], rel=1e-4)
    if name == "drop_stragglers":
        assert {row["merged"] for row in whole.record.metrics[1:]} == {0, 1}
    if name == "fedpmt":
        assert whole.record.metrics[1]["info"]["infeasible_clients"] == 3


def test_routes_of_coming_rounds_are_compiled_along():
    algorithm = build("fedpmt", JITTER, **{**TRAINING, "clients_per_round": 1})
    engine = make_engine(algorithm, JITTER, chunk=1)
    record = simulate(algorithm, JITTER, rounds=8, chunk=1, engine=engine).record
    assert len({row["first_block"] for row in record.clients}) == 2
    assert engine.programs == 1


def test_a_run_is_planned_no_further_than_it_goes():
    """Capacities may be known for the rounds of the run alone."""
    known = dict.fromkeys(range(3), 1.0)
    capacity = lambda round: np.full(8, known[round])
    algorithm = build("fedpmt", JITTER, **TRAINING, capacity=capacity)
    result = simulate(algorithm, JITTER, rounds=3, chunk=1, eval_every=100)
    assert result.record.metrics[-1]["step"] == 3


@pytest.mark.parametrize("batch_s", [0.0, 1e9], ids=["slow machine", "fast machine"])
def test_a_round_that_can_never_start_is_reported_when_its_turn_comes(
    tmp_path, monkeypatch, batch_s
):
    """Whatever the speed of the machine, which decides how many rounds make a batch."""
    monkeypatch.setattr(stopwatch, "_LONGEST_S", batch_s)
    base = scalar_problem((3, 4))
    algorithm = nudging(base)
    refuse = InputError("no more rounds")

    def tasks(situation):
        if situation.round == 3:
            raise refuse
        return algorithm.plan.tasks(situation)

    halting = algorithm._replace(plan=Schedule(tasks))
    assert simulate(halting, base, rounds=3, eval_every=100).record.metrics[-1]["step"] == 3
    scores = Scores(base, [0.0, 1.0])
    reached = simulate(halting, base, rounds=9, target=1.0, eval_every=2, evaluator=scores)
    assert reached.record.metrics[-1]["step"] == 2
    with pytest.raises(InputError, match="no more rounds"):
        simulate(halting, base, rounds=9, eval_every=100, workdir=tmp_path)
    # What was computed before is on record.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 3]


class Scores(Evaluator):
    """Sees the given accuracies, one after another."""

    def __init__(self, problem, accuracies):
        super().__init__(problem)
        self._accuracies = iter(accuracies)

    def __call__(self, variables, target=None):
        return {**super().__call__(variables, target), "accuracy": next(self._accuracies)}


def nudging(problem, *, step=None, value=lambda task: jnp.float32(1.0)):
    """FedAvg whose clients move every parameter by `value(task)`."""
    algorithm = build("fedavg", problem, learning_rate=0.1)

    def local(route, start, data, task):
        del route, data
        delta = jax.tree.map(lambda w: jnp.broadcast_to(value(task), w.shape), start.params)
        return ClientResult(delta, start.stats, value(task), task.steps)

    return algorithm._replace(local=local, update=step or parts.replace)


def test_updates_that_are_not_finite_are_named_in_their_round():
    problem = scalar_problem((3, 4, 5, 6))
    bad = nudging(problem, value=lambda task: jnp.where(task.client == 2, jnp.nan, 1.0))
    result = simulate(bad, problem, rounds=5, eval_every=100)
    assert result.faults == []
    assert [row["nonfinite"] for row in result.record.metrics[1:]] == [[2]] * 5
    assert [row["merged"] for row in result.record.metrics[1:]] == [3] * 5
    np.testing.assert_allclose(result.variables.params["blocks"][0]["w"], 5.0)


@pytest.mark.parametrize(
    "step",
    [
        lambda state, old, merged: ((), merged.variables._replace(stats=())),
        lambda state, old, merged: (jnp.float32(0), merged.variables),
        lambda state, old, merged: (
            state,
            old._replace(params=jax.tree.map(lambda w: w[None], merged.variables.params)),
        ),
    ],
)
def test_a_step_must_return_what_it_was_given(step):
    problem = scalar_problem((3, 4))
    with pytest.raises(InputError, match="update of fedavg"):
        simulate(nudging(problem, step=step), problem, rounds=2)
