"""FedAT by hand: rounds inside tiers, merges across them, and weights against the fast ones."""

import dataclasses
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from problems import digits_problem, fleet, nudge, scalar_problem, values_of

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedat import equal_parts, tiers_of
from fedjax_het.contract.selection import Candidates, Pool
from fedjax_het.fleet.availability import from_intervals

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
# Clients 0, 1, 2 from slow to fast, so tier 0 has the clients 1 and 2.
PROBLEM = scalar_problem((1, 1, 1), blocks=1)
SECONDS = np.asarray([4.0, 1.5, 1.0])


def halved(value=lambda task: (task.client + 1).astype(jnp.float32)):
    """FedAT with two tiers, in which client i makes w / 2 + i + 1 of w in `SECONDS`."""
    method = build("fedat", PROBLEM, tiers=2, **TRAINING)
    tasks = method.plan.tasks

    def timed(situation):
        plan = tasks(situation)
        none = np.zeros(len(plan.clients))
        seconds = SECONDS[plan.clients]
        timing = plan.timing._replace(download_s=none, upload_s=none, compute_s=seconds)
        return plan._replace(timing=timing)

    moved = nudge(PROBLEM, value=value).local

    def local(route, start, data, task):
        result = moved(route, start, data, task)
        (block,), (change,) = start.params["blocks"], result.delta["blocks"]
        delta = {"blocks": ({"w": change["w"] - block["w"] / 2},), "exits": ()}
        return result._replace(delta=delta)

    return method._replace(plan=fh.Schedule(timed), local=local)


# Seconds, tier, and the global model after the merge. In the first two steps only tier 0 has ended
# rounds, and its weight is the number of rounds of tier 1.
GOLDEN = [
    (1.5, 0, 0.0),
    (3.0, 0, 0.0),
    (4.0, 1, (1 * 2.5 + 2 * 1.0) / 3),  # = 1.5
    (4.5, 0, (1 * 2.5 + 3 * 1.0) / 4),  # began at 3 s, from 0; = 1.375
    (6.0, 0, (1 * (1.375 / 2 + 2.5) + 4 * 1.0) / 5),  # = 1.4375
    (7.5, 0, (1 * (1.4375 / 2 + 2.5) + 5 * 1.0) / 6),
    (8.0, 1, (2 * (1.4375 / 2 + 2.5) + 5 * (1.5 / 2 + 1.0)) / 7),  # began at 4 s, from 1.5
]


def test_two_tiers_by_hand():
    for rounds in (2, 5, len(GOLDEN)):
        result = fh.simulate(halved(), PROBLEM, rounds=rounds)
        assert result.faults == []
        assert values_of(result.variables)[0] == pytest.approx(GOLDEN[rounds - 1][2], rel=1e-6)
    told = [(row["virtual_s"], row["info"]["tier"]) for row in result.record.metrics[1:]]
    assert told == [(at_s, tier) for at_s, tier, _ in GOLDEN]
    assert np.asarray(result.state.updates).tolist() == [5.0, 2.0]
    versions = [row["version"] for row in result.record.clients if row["client"] == 0]
    assert versions == [0, 3]


def test_a_tier_whose_updates_are_not_finite_does_not_count():
    broken = halved(lambda task: jnp.where(task.client == 0, jnp.nan, jnp.float32(1.0)))
    result = fh.simulate(broken, PROBLEM, rounds=4)
    assert [row["info"]["tier"] for row in result.record.metrics[1:]] == [0, 0, -1, 0]
    assert np.asarray(result.state.updates).tolist() == [3.0, 0.0]
    assert values_of(result.variables)[0] == 0.0


def test_tiers_have_equal_sizes_and_break_ties_by_id():
    assert tiers_of(np.asarray([3.0, 1.0, 2.0, 1.0, 3.0]), 2).tolist() == [1, 0, 0, 0, 1]
    assert equal_parts(7, 3).tolist() == [3, 2, 2]
    # No tier is asked for more clients than it has.
    for n in range(1, 20):
        for tiers in range(1, n + 1):
            sizes = equal_parts(n, tiers)
            assert all(np.all(equal_parts(c, tiers) <= sizes) for c in range(tiers, n + 1))


def test_one_tier_is_fedprox():
    problem = digits_problem()
    options = {**TRAINING, "mu": 0.5, "clients_per_round": 8}
    one = fh.simulate(build("fedat", problem, tiers=1, **options), problem, rounds=2)
    prox = fh.simulate(build("fedprox", problem, **options), problem, rounds=2)
    for a, b in zip(one.variables.params["blocks"], prox.variables.params["blocks"], strict=True):
        np.testing.assert_allclose(a["Dense_0"]["kernel"], b["Dense_0"]["kernel"], atol=1e-6)
    assert one.record.metrics[-1]["virtual_s"] == prox.record.metrics[-1]["virtual_s"]


def test_every_tier_has_its_share_at_work():
    problem = digits_problem()
    method = build("fedat", problem, tiers=3, clients_per_round=5, **TRAINING)
    result = fh.simulate(method, problem, rounds=9)
    assert result.faults == []
    tier = tiers_of(
        fh.algorithms.parts.durations_s(
            problem, fh.TrainingOptions(**TRAINING), -(-problem.data.sizes // 4)
        ),
        3,
    )
    for row in result.record.metrics[1:]:
        tasks = [task for task in result.record.clients if task["step"] == row["step"]]
        assert {int(tier[task["client"]]) for task in tasks} == {row["info"]["tier"]}
        assert len(tasks) == [2, 2, 1][row["info"]["tier"]]
        assert row["in_flight"] == 5 - len(tasks)


def test_a_tier_waits_until_one_of_its_clients_is_on():
    # The slow client is off from 4 to 6 s, when its first round ends.
    on = from_intervals([[(0, 4), (6, 99)], [(0, 99)], [(0, 99)]], [99, 99, 99])
    problem = dataclasses.replace(PROBLEM, fleet=fleet(3, availability=on))
    result = fh.simulate(halved(), problem, rounds=6)
    assert result.faults == []
    began = [row["dispatched_s"] for row in result.record.clients if row["client"] == 0]
    assert began == [0.0]
    longer = fh.simulate(halved(), problem, rounds=8)
    began = [row["dispatched_s"] for row in longer.record.clients if row["client"] == 0]
    assert began == [0.0, 6.0]


def test_the_selection_belongs_to_the_tiers():
    method = halved()
    choose = method.select.choose
    rng = np.random.default_rng(0)
    candidates = Candidates(0, 0.0, Pool(np.arange(3)), 3, rng, np.ones(3))
    ids, at_work = choose(method.select.init(3), candidates)
    assert sorted(ids.tolist()) == [0, 1, 2]
    assert at_work.tolist() == [2, 1]
    ids, again = choose(at_work, replace(candidates, pool=Pool(np.asarray([0])), wanted=1))
    assert ids.size == 0
    assert again.tolist() == [2, 1]
    with pytest.raises(fh.InputError, match="select oort of fedat: cannot be composed: each tier"):
        fh.compose(method, fh.select.oort())
