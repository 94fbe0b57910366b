"""ADEL-FL's merge rules: what is unbiased, what is not and by how much, and what never moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adel_helpers import draws
from problems import make_chunk

from fedjax_het.algorithms.adel.depths import miss_probability, trained
from fedjax_het.algorithms.adel.merging import LayerMerge
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Variables

USERS, LAYERS, RATE, DRAWS = 6, 5, 2.2, 200_000
UNEQUAL = np.linspace(0.5, 4.0, USERS)
RNG = np.random.default_rng(0)
OLD = [RNG.normal(size=2).astype(np.float32) for _ in range(LAYERS)]
DELTA = [RNG.normal(0.5, 1.0, (USERS, 2)).astype(np.float32) for _ in range(LAYERS)]
IDS = {"blocks": tuple({"w": layer} for layer in range(LAYERS)), "exits": ()}


def tree(values):
    return {"blocks": tuple({"w": jnp.asarray(v)} for v in values), "exits": ()}


def nothing():
    return {"blocks": tuple({} for _ in range(LAYERS)), "exits": ()}


def merged(rule, missed, depth):
    """The model after one round: every client has its `DELTA`, and finished `depth` layers."""
    start = Variables(tree(OLD), nothing())
    rows, shared = LayerMerge(rule).inputs(missed)
    shared = jax.tree.map(jnp.asarray, shared)
    rows = jax.tree.map(jnp.asarray, rows)
    mask = jax.vmap(functools.partial(trained, IDS))(LAYERS - depth)
    chunk = make_chunk(start, jnp.ones(USERS), tree(DELTA), mask=mask, row=rows, shared=shared)
    merge = LayerMerge(rule).aggregator(IDS)
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda m: m[0], mask))
    acc = merge.add(merge.init((), start, shapes), chunk)
    new = merge.finalize(acc, start, shared).variables
    return jnp.stack([block["w"] for block in new.params["blocks"]])


@functools.cache
def after_many_rounds(rule, unequal=False):
    """float32[DRAWS, L, 2]: the step that each of many independent rounds takes."""
    rate = UNEQUAL if unequal else np.full(USERS, RATE)
    missed = miss_probability(LAYERS, rate)
    step = jax.jit(jax.vmap(lambda depth: merged(rule, missed, depth) - jnp.asarray(np.stack(OLD))))
    depth = jnp.asarray(draws(USERS, LAYERS, rate, DRAWS), jnp.int32)
    return np.asarray(step(depth), np.float64)


FULL = np.stack([d.mean(axis=0) for d in DELTA]).astype(np.float64)


def errors(steps, wanted):
    """Distance of the mean from `wanted`, in standard errors of the mean, [L, 2]."""
    spread = steps.std(axis=0) / np.sqrt(len(steps))
    return np.abs(steps.mean(axis=0) - wanted) / np.maximum(spread, 1e-6)


@pytest.mark.parametrize(("rule", "unequal"), [("corrected", False), ("ipw", False), ("ipw", True)])
def test_the_expected_step_is_that_of_fedavg(rule, unequal):
    """methods/adel_fl.md check 5."""
    assert np.max(errors(after_many_rounds(rule, unequal), FULL)) < 4


def test_rules_without_the_correction_fail_by_the_predicted_factor():
    """methods/adel_fl.md check 6, the negative controls."""
    q = miss_probability(LAYERS, RATE)[:, None]
    for rule, factor in (("mean", 1 - q**USERS), ("zero_fill", 1 - q)):
        steps = after_many_rounds(rule)
        assert np.max(errors(steps, factor * FULL)) < 4
        assert np.max(errors(steps, FULL)) > 20


def test_unequal_rates_defeat_the_common_correction():
    """methods/adel_fl.md check 6, second half, with the weights of methods/adel_fl.md 2.3."""
    steps = after_many_rounds("corrected", True)
    assert np.max(errors(steps, FULL)) > 20
    missed = miss_probability(LAYERS, UNEQUAL)
    depth = draws(USERS, LAYERS, UNEQUAL, 20_000, seed=1)
    weight = np.mean([LayerMerge("mean").weights(missed, d) for d in depth], axis=0)
    share = weight[:, 0] / weight[:, 0].mean()
    np.testing.assert_allclose(share, [0.001, 0.05, 0.31, 0.86, 1.77, 2.99], atol=0.06)
    fair = np.mean([LayerMerge("ipw").weights(missed, d) for d in depth], axis=0)
    np.testing.assert_allclose(fair[2:], 1.0, atol=0.12)


def test_the_two_forms_of_the_rule_agree():
    depth = np.asarray([1, 0, 3, 2, 5, 2])
    missed = miss_probability(LAYERS, np.full(USERS, RATE))
    p = np.prod(missed, axis=0)
    new = np.asarray(merged("corrected", missed, jnp.asarray(depth)))
    for layer in range(LAYERS):
        there = depth >= LAYERS - layer
        mean = np.mean(OLD[layer] + DELTA[layer][there], axis=0)
        wanted = (mean - p[layer] * OLD[layer]) / (1 - p[layer])
        np.testing.assert_allclose(new[layer], wanted, atol=1e-6)


def test_the_variance_is_the_exact_one_and_below_its_bounds():
    """methods/adel_fl.md 2.4, check 7."""
    q = miss_probability(LAYERS, RATE)
    p = q**USERS
    steps = after_many_rounds("corrected")
    found = np.mean(np.sum((steps - FULL) ** 2, axis=2), axis=0)
    depth = draws(USERS, LAYERS, RATE, DRAWS)
    for layer in range(LAYERS):
        k = np.sum(depth >= LAYERS - layer, axis=1)
        k = k[k > 0]
        sampling = np.mean((USERS - k) / (k * (USERS - 1.0)))
        spread = np.mean(np.sum((DELTA[layer] - FULL[layer]) ** 2, axis=1))
        wanted = (p[layer] * np.sum(FULL[layer] ** 2) + sampling * spread) / (1 - p[layer])
        assert found[layer] == pytest.approx(wanted, rel=0.02)
        largest = np.max(np.sum(DELTA[layer] ** 2, axis=1))
        assert found[layer] <= largest * (1 + p[layer]) / (1 - p[layer])


@pytest.mark.parametrize("rule", ["corrected", "ipw", "zero_fill", "mean"])
def test_with_time_for_everything_it_is_fedavg_and_with_none_nothing_moves(rule):
    """methods/adel_fl.md check 8, check 9; under jit, so a division by zero would show as NaN."""
    for rate, depth, wanted in ((200.0, LAYERS, FULL + np.stack(OLD)), (0.0, 0, np.stack(OLD))):
        missed = miss_probability(LAYERS, np.full(USERS, rate))
        new = jax.jit(functools.partial(merged, rule, missed))(jnp.full(USERS, depth, jnp.int32))
        np.testing.assert_allclose(new, wanted, atol=1e-6)
    np.testing.assert_array_equal(new, np.stack(OLD))


@pytest.mark.parametrize("rule", ["corrected", "ipw", "zero_fill"])
def test_a_layer_that_nobody_finished_keeps_its_bits(rule):
    missed = miss_probability(LAYERS, np.full(USERS, RATE))
    new = np.asarray(merged(rule, missed, jnp.asarray([1, 0, 2, 1, 0, 2], jnp.int32)))
    np.testing.assert_array_equal(new[:3], np.stack(OLD)[:3])
    assert np.all(new[3:] != np.stack(OLD)[3:])


def test_clients_out_of_reach_have_no_weight_rather_than_an_infinite_one():
    missed = miss_probability(LAYERS, np.asarray([0.0, 2.2, 2.2]))
    rows, shared = LayerMerge("ipw").inputs(missed)
    assert not rows["inverse_propensity"][0].any()
    assert np.all(np.isfinite(rows["inverse_propensity"]))
    np.testing.assert_allclose(
        shared["merge_probability"], 1 - np.prod(missed[1:], axis=0), rtol=1e-6
    )
    floored, _ = LayerMerge("ipw", floor=0.5).inputs(missed)
    assert np.max(floored["inverse_propensity"]) <= 2.0


def test_the_reported_weight_is_the_weight_that_merges():
    missed = miss_probability(LAYERS, UNEQUAL)
    depth = np.asarray([2, 0, 4, 5, 5, 1])
    for rule in ("corrected", "ipw", "zero_fill", "mean"):
        weight = LayerMerge(rule).weights(missed, depth)
        new = np.asarray(merged(rule, missed, jnp.asarray(depth)))
        wanted = [
            OLD[i] + np.sum(weight[:, i, None] * DELTA[i], axis=0) / USERS for i in range(LAYERS)
        ]
        np.testing.assert_allclose(new, wanted, rtol=1e-5, atol=1e-6)


def test_running_statistics_are_never_amplified():
    start = Variables(tree(OLD[:1]), {"blocks": ({"var": jnp.ones(2)},), "exits": ()})
    seen = jnp.asarray([[0.9, 0.9], [0.5, 0.7]], jnp.float32)
    mask = {"blocks": ({"w": jnp.asarray([True, True])},), "exits": ()}
    shared = {"merge_probability": jnp.asarray([0.25]), "clients": jnp.asarray(2.0)}
    rows = {"inverse_propensity": jnp.full((2, 1), 4.0)}
    for rule in ("corrected", "ipw", "zero_fill"):
        merge = LayerMerge(rule).aggregator({"blocks": ({"w": 0},), "exits": ()})
        chunk = make_chunk(
            start,
            jnp.ones(2),
            tree([DELTA[0][:2]]),
            stats_delta={"blocks": ({"var": seen - 1.0},), "exits": ()},
            mask=mask,
            row=rows,
            shared=shared,
        )
        shapes = jax.eval_shape(lambda: jax.tree.map(lambda m: m[0], mask))
        acc = merge.add(merge.init((), start, shapes), chunk)
        new = merge.finalize(acc, start, shared).variables
        np.testing.assert_allclose(new.stats["blocks"][0]["var"], [0.7, 0.8], rtol=1e-6)


def test_identical_full_width_clients_are_fedavg_and_unowned_elements_stay():
    """methods/adel_fl.md check 16: the element-wise mean over owners.

    HeteroFL-style baselines use it.
    """
    merge = masked_mean()
    start = Variables(tree(OLD[:1]), {"blocks": ({},), "exits": ()})
    delta = jnp.asarray([[1.0, 2.0], [1.0, 2.0]], jnp.float32)

    def run(owned):
        mask = {"blocks": ({"w": jnp.asarray(owned)},), "exits": ()}
        moved = tree([jnp.where(jnp.asarray(owned), delta, 0.0)])
        chunk = make_chunk(start, jnp.ones(2), moved, mask=mask)
        shapes = jax.eval_shape(lambda: jax.tree.map(lambda m: m[0], mask))
        acc = merge.add(merge.init((), start, shapes), chunk)
        return np.asarray(merge.finalize(acc, start, None)[0].params["blocks"][0]["w"])

    np.testing.assert_allclose(run([[True, True]] * 2), OLD[0] + [1.0, 2.0], rtol=1e-6)
    half = run([[True, False]] * 2)
    assert half[1] == OLD[0][1]
    np.testing.assert_allclose(run([[True, True], [True, False]]), OLD[0] + [1.0, 2.0], rtol=1e-6)
