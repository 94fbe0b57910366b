"""Under a barrier, rounds of a merge that keeps values are those of a merge that keeps none."""

import dataclasses

import numpy as np
import pytest
from problems import digits_problem, fleet

import fedjax_het as fh
from fedjax_het.transforms import on_plateau

OPTIONS = {"learning_rate": 0.1, "batch_size": 4}
FEEDBACK = fh.compress.top_k(0.5, error_feedback=True)


def test_cohorts_wait_until_enough_clients_are_on():
    """One device is on from the start, seven from 5 s on."""
    on = [np.array([[0.0, 1000.0]])] + [np.array([[5.0, 1000.0]])] * 7
    late = fh.fleet.from_intervals(on, [1000.0] * 8)
    problem = dataclasses.replace(digits_problem(), fleet=fleet(8, availability=late))

    def tasks(method, *steps):
        made = fh.compose(method(problem, **OPTIONS, clients_per_round=4), *steps)
        rows = fh.simulate(made, problem, rounds=2).record.clients
        return [(row["step"], row["client"], row["dispatched_s"] >= 5) for row in rows]

    plain = sorted(tasks(fh.algorithms.fedavg))
    assert [late for _, _, late in plain] == [True] * 8
    assert sorted(tasks(fh.algorithms.fedavg, FEEDBACK)) == plain
    assert sorted(tasks(fh.algorithms.scaffold)) == plain


@pytest.mark.parametrize("behind", [True, False])
def test_scores_reach_the_plan(behind):
    problem = digits_problem()
    method = fh.algorithms.fedavg(problem, **OPTIONS)
    if not behind:
        method = fh.compose(method, FEEDBACK)
    method = on_plateau(method, 1)
    if behind:
        method = fh.compose(method, FEEDBACK)
    scores = iter([0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    with fh.Simulation(method, problem, rounds=5) as run:
        scales = []
        run._server.unseen.score = next(scores)
        while not run.done:
            row = run.step()
            scales.append(row["info"]["learning_rate_scale"])
            run._server.unseen.score = next(scores)
    assert scales == pytest.approx([1.0, 1.0, 0.9, 0.9, 0.81])


def test_fresh_losses_are_asked_for_before_rounds_with_memory():
    problem = digits_problem()
    method = fh.algorithms.scaffold(problem, **OPTIONS, clients_per_round=2)
    method = fh.compose(method, fh.select.power_of_choice(d=4, fresh=True))
    result = fh.simulate(method, problem, rounds=2)
    assert result.faults == []
    statuses = [(row["step"], row["status"]) for row in result.record.clients]
    assert statuses == [(s, w) for s in (1, 2) for w in ["probed"] * 4 + ["merged"] * 2]
