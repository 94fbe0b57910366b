"""DTFL's rounds: tiers merge into one model, and the scheduler decides who trains where."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    batch_norm_problem,
    exits_problem,
    make_chunk,
    one_round,
    situation,
)

from fedjax_het.algorithms import build
from fedjax_het.algorithms.dtfl import Scheduler
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.simulation.simulate import simulate

SGD = {"learning_rate": 0.1, "batch_size": 4}

# ---- merging -------------------------------------------------------------------------------------


def merged(problem, cuts, weights, values):
    """The mean of clients whose every leaf moved by their value, from zeros."""
    algorithm = build("dtfl", problem, **SGD)
    start = jax.tree.map(jnp.zeros_like, problem.model.init(jax.random.key(0)))
    row = {"cut": jnp.asarray(cuts, jnp.int32), "weight": jnp.asarray(weights, jnp.float32)}
    spread = lambda leaf: jnp.stack([jnp.full_like(leaf, v) for v in values])
    mask = jax.vmap(algorithm.mask, in_axes=(0, None))(row, None)
    delta, stats_delta = (jax.tree.map(spread, part) for part in start)
    chunk = make_chunk(start, weights, delta, stats_delta=stats_delta, mask=mask, row=row)
    merge = algorithm.merge
    acc = merge.init((), start, jax.tree.map(lambda leaf: leaf[0], mask))
    return merge.finalize(merge.add(acc, chunk), start, None)[:2]


def test_mixed_tiers_merge_by_samples_and_heads_within_their_tier():
    """Tiers 1 and 2, N = (1, 3), values 1 and 2: leaves become 1.75; methods/dtfl.md check 5."""
    problem = exits_problem()
    variables, info = merged(problem, [0, 1], [1.0, 3.0], [1.0, 2.0])
    for leaf in jax.tree.leaves(variables.params["blocks"]):
        np.testing.assert_allclose(leaf, 1.75)
    for head, value in zip(variables.params["exits"], (1.0, 2.0), strict=True):
        for leaf in jax.tree.leaves(head):
            np.testing.assert_allclose(leaf, value)
    # Every block got one contribution per client.
    np.testing.assert_allclose(info["merged_weight"], 4.0)


def test_heads_of_a_tier_count_alike_and_others_stay():
    """See methods/dtfl.md check 6."""
    problem = exits_problem()
    variables, _ = merged(problem, [1, 1], [1.0, 3.0], [1.0, 2.0])
    for leaf in jax.tree.leaves(variables.params["exits"][1]):
        np.testing.assert_allclose(leaf, 1.5)
    for leaf in jax.tree.leaves(variables.params["exits"][0]):
        np.testing.assert_array_equal(leaf, 0.0)


def test_running_statistics_of_both_halves_are_merged():
    problem = batch_norm_problem(exits=True)
    variables, _ = merged(problem, [0, 0], [1.0, 3.0], [1.0, 2.0])
    for leaf in jax.tree.leaves(variables.stats):
        np.testing.assert_allclose(leaf, 1.75)


def test_equal_clients_merge_to_themselves():
    """See methods/dtfl.md check 4."""
    problem = exits_problem()
    variables, _ = merged(problem, [0, 1, 0], [1.0, 3.0, 2.0], [0.5] * 3)
    for leaf in jax.tree.leaves(variables.params):
        np.testing.assert_allclose(leaf, 0.5, rtol=1e-6)


# ---- whole rounds --------------------------------------------------------------------------------


def test_tiers_follow_the_scheduler_and_the_round_is_its_bound():
    """Without noise the next round lasts what the scheduler said."""
    problem = exits_problem()
    algorithm = build("dtfl", problem, **SGD)
    result = simulate(algorithm, problem, rounds=3, execution="masked")
    metrics = result.record.metrics
    assert result.faults == []
    lasts = np.diff([m["virtual_s"] for m in metrics])
    for now, before in zip(metrics[2:], metrics[1:], strict=False):
        index = now["step"] - 1
        assert lasts[index] == pytest.approx(before["info"]["longest_s"], rel=1e-6)
    assert lasts[1] <= lasts[0]
    assert sum(metrics[-1]["info"]["tiers"]) == problem.num_clients
    cuts = {row["cut_block"] for row in result.record.clients if row["step"] == 3}
    assert cuts <= {0, 1}


def test_fixed_tiers_and_the_first_one():
    problem = exits_problem()
    fixed = build("dtfl", problem, scheduler=Scheduler(fixed_tier=[1, 2] * 4), **SGD)
    plan, _ = fixed.plan(fixed.init(None, None), None, situation(problem))
    assert [route.cut for route in plan.routes] == [0, 1] * 4
    first = build("dtfl", problem, scheduler=Scheduler(initial_tier=1), **SGD)
    plan, _ = first.plan(first.init(None, None), None, situation(problem))
    assert {route.cut for route in plan.routes} == {0}
    one = build("dtfl", problem, tiers=1, **SGD)
    plan, _ = one.plan(one.init(None, None), None, situation(problem))
    assert {route.cut for route in plan.routes} == {1}


def test_who_is_not_sampled_keeps_tier_and_history():
    problem = exits_problem()
    algorithm = build("dtfl", problem, clients_per_round=3, **SGD)
    result = simulate(algorithm, problem, rounds=1, execution="masked")
    seen = {row["client"] for row in result.record.clients}
    away = np.setdiff1d(np.arange(problem.num_clients), list(seen))
    assert np.isnan(result.state.ema_s[away]).all()
    assert (result.state.tier[away] == 1).all()
    assert np.isfinite(result.state.ema_s[list(seen), 1]).all()


def test_devices_take_the_tiers_they_can_hold():
    problem = exits_problem()
    batch = np.minimum(4, problem.data.sizes)
    small = problem.cost.memory_bytes(0, 0, int(batch[0]), 0)
    memory = np.full(problem.num_clients, np.inf)
    memory[0] = float(small)
    tight = replace(problem, fleet=replace(problem.fleet, memory_bytes=memory))
    algorithm = build("dtfl", tight, **SGD)
    state = algorithm.init(None, None)
    assert state.tier[0] == 0
    assert (state.tier[1:] == 1).all()


def test_unequal_routes_merge_into_one_accumulator():
    """Several tiers in one round: routed and masked agree, whatever the weights."""
    problem = batch_norm_problem((5, 8, 6), exits=True)
    algorithm = build("dtfl", problem, scheduler={"fixed_tier": 1}, **SGD)
    start = problem.model.init(jax.random.key(0))
    routed, _ = one_round(algorithm, problem, start)
    masked, _ = one_round(algorithm, problem, start, execution="masked")
    assert_close(routed, masked)


def test_clients_come_and_go():
    """Devices that are off are not asked; who returns goes on in the tier it had."""
    problem = exits_problem()
    n = problem.num_clients
    # Four clients are there in the first half of every cycle, the others in the second.
    early = np.arange(n) < n // 2
    shifts = from_intervals(
        [[(0.0, 0.5)] if first else [(0.5, 1.0)] for first in early], period_s=np.ones(n)
    )
    moving = replace(problem, fleet=replace(problem.fleet, availability=shifts))
    algorithm = build("dtfl", moving, clients_per_round=n // 2, **SGD)
    result = simulate(algorithm, moving, rounds=8, execution="masked")
    assert result.faults == []
    rows = result.record.clients
    for row in rows:
        place = row["dispatched_s"] % 1.0
        assert (place < 0.5) == bool(early[row["client"]])
    assert len({row["client"] for row in rows}) == n
    assert np.isfinite(result.state.ema_s).any(axis=1).all()
