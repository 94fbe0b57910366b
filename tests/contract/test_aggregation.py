"""The masked weighted mean that lies under every merge."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import assert_close, make_chunk, scalars, values_of

from fedjax_het.contract.aggregation import (
    align,
    masked_mean,
    normalised_mean,
    plain_mean,
    weighted_sum,
)
from fedjax_het.contract.algorithm import Variables

MEAN = masked_mean()


def variables(blocks, stats=None):
    nothing = tuple({} for _ in blocks)
    return Variables(
        {"blocks": tuple(blocks), "exits": ()},
        {"blocks": nothing if stats is None else tuple(stats), "exits": ()},
    )


def tree(blocks):
    return {"blocks": tuple(blocks), "exits": ()}


def chunk(start, weight, delta, mask=None, stats_delta=None):
    fields = {} if stats_delta is None else {"stats_delta": stats_delta}
    return make_chunk(start, weight, delta, mask=mask, **fields)


def merge(start, chunks):
    mask = chunks[0].mask
    shapes = None if mask is None else jax.eval_shape(lambda: jax.tree.map(lambda m: m[0], mask))
    acc = MEAN.init((), start, shapes)
    for part in chunks:
        acc = MEAN.add(acc, part)
    return MEAN.finalize(acc, start, None)[:2]


def one_vector(value=0.0, width=3):
    return variables([{"w": jnp.full(width, value, jnp.float32)}])


def random_chunk(seed, clients=5, width=3):
    rng = np.random.default_rng(seed)
    delta = tree([{"w": jnp.asarray(rng.standard_normal((clients, width)), jnp.float32)}])
    mask = tree([{"w": jnp.asarray(rng.random((clients, width)) < 0.5)}])
    return rng.uniform(0.5, 2.0, clients), delta, mask


def test_without_masks_it_is_the_weighted_mean():
    start = one_vector(1.0)
    weight, delta, _ = random_chunk(0)
    merged, info = merge(start, [chunk(start, weight, delta)])
    wanted = 1.0 + weight @ np.asarray(delta["blocks"][0]["w"]) / weight.sum()
    np.testing.assert_allclose(merged.params["blocks"][0]["w"], wanted, rtol=1e-6)
    np.testing.assert_allclose(info["merged_weight"], [weight.sum()], rtol=1e-6)


def test_a_mask_of_ones_changes_nothing():
    start = one_vector(1.0)
    weight, delta, mask = random_chunk(1)
    ones = jax.tree.map(jnp.ones_like, mask)
    assert_close(
        merge(start, [chunk(start, weight, delta, ones)]),
        merge(start, [chunk(start, weight, delta)]),
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_properties_of_the_masked_mean(seed):
    """The contributors' mean; old bits where there is none (methods/baselines.md check 1)."""
    start = one_vector(0.1)
    weight, delta, mask = random_chunk(seed)
    merged, _ = merge(start, [chunk(start, weight, delta, mask)])
    values = np.asarray(merged.params["blocks"][0]["w"])
    d, m = np.asarray(delta["blocks"][0]["w"]), np.asarray(mask["blocks"][0]["w"])
    old = np.asarray(start.params["blocks"][0]["w"])
    for j in range(3):
        held = m[:, j]
        if not held.any():
            assert values[j] == old[j]
            continue
        wanted = old[j] + np.average(d[held, j], weights=weight[held])
        np.testing.assert_allclose(values[j], wanted, rtol=1e-5, atol=1e-6)
        span = old[j] + d[held, j]
        assert span.min() - 1e-5 <= values[j] <= span.max() + 1e-5  # convex hull
    # Weights are relative, and the order of the clients is no information.
    scaled, _ = merge(start, [chunk(start, 7.0 * weight, delta, mask)])
    assert_close(scaled, merged)
    back = jax.tree.map(lambda a: a[::-1], (delta, mask))
    turned, _ = merge(start, [chunk(start, weight[::-1], *back)])
    assert_close(turned, merged)


def test_a_stream_of_chunks_equals_one():
    start = one_vector()
    weight, delta, mask = random_chunk(2, clients=6)
    whole, _ = merge(start, [chunk(start, weight, delta, mask)])
    parts = [
        chunk(start, weight[s], *jax.tree.map(lambda a, s=s: a[s], (delta, mask)))
        for s in (slice(0, 1), slice(1, 4), slice(4, 6))
    ]
    assert_close(merge(start, parts)[0], whole)


def test_weight_zero_is_absence():
    start = one_vector(2.0)
    weight, delta, mask = random_chunk(3)
    weight[2] = 0.0
    without = jax.tree.map(lambda a: jnp.delete(a, 2, axis=0), (delta, mask))
    with_it, _ = merge(start, [chunk(start, weight, delta, mask)])
    left_out, _ = merge(start, [chunk(start, np.delete(weight, 2), *without)])
    assert_close(with_it, left_out)
    nobody, _ = merge(start, [chunk(start, np.zeros(5), delta, mask)])
    chex.assert_trees_all_equal(nobody, start)


def test_leaves_that_a_route_left_out_count_for_nobody():
    start = variables([{"w": jnp.ones(2)}, {"w": jnp.ones(2)}])
    ones = jnp.ones(2, bool)
    mask = tree([{"w": ~ones}, {"w": ones}])
    skipped = chunk(start, [1.0, 3.0], tree([{"w": None}, {"w": jnp.ones((2, 2))}]), mask)
    full = chunk(
        start, [4.0, 0.0], tree([{"w": jnp.full((2, 2), 5.0)}] * 2), tree([{"w": ones}] * 2)
    )
    merged, info = merge(start, [skipped, full])
    np.testing.assert_allclose(merged.params["blocks"][0]["w"], [6.0, 6.0])
    np.testing.assert_allclose(merged.params["blocks"][1]["w"], 1 + (4 * 1 + 4 * 5) / 8)
    np.testing.assert_allclose(info["merged_weight"], [4.0, 8.0])


def test_channel_masks_broadcast_against_kernels():
    """Widths 2 and 4 of 4 with values 1 and 3 give (2, 2, 3, 3); methods/baselines.md check 7."""
    start = variables([{"kernel": jnp.zeros((2, 4)), "bias": jnp.zeros(4)}])
    kept = jnp.asarray([[True, True, False, False], [True] * 4])
    values = jnp.asarray([1.0, 3.0])
    delta = tree(
        [
            {
                "kernel": jnp.broadcast_to(values[:, None, None], (2, 2, 4)),
                "bias": jnp.broadcast_to(values[:, None], (2, 4)),
            }
        ]
    )
    mask = tree([{"kernel": kept, "bias": kept}])
    merged, _ = merge(start, [chunk(start, [1.0, 1.0], delta, mask)])
    np.testing.assert_allclose(merged.params["blocks"][0]["bias"], [2, 2, 3, 3])
    np.testing.assert_allclose(merged.params["blocks"][0]["kernel"], [[2, 2, 3, 3]] * 2)


def test_statistics_are_averaged_over_those_who_trained_the_block():
    stats = [{"mean": jnp.zeros(2)}, {"mean": jnp.zeros(2)}]
    start = variables([{"w": jnp.zeros(())}, {"w": jnp.zeros(())}], stats)
    mask = tree([{"w": jnp.asarray([True, False])}, {"w": jnp.asarray([True, True])}])
    moved = jnp.asarray([[2.0, 2.0], [6.0, 6.0]])
    part = chunk(
        start,
        [1.0, 3.0],
        tree([{"w": jnp.ones(2)}] * 2),
        mask,
        tree([{"mean": moved * jnp.asarray([[1.0], [0.0]])}, {"mean": moved}]),
    )
    merged, _ = merge(start, [part])
    np.testing.assert_allclose(merged.stats["blocks"][0]["mean"], [2.0, 2.0])
    np.testing.assert_allclose(merged.stats["blocks"][1]["mean"], [5.0, 5.0])


def test_gradients_are_finite_where_nobody_trained():
    start = one_vector()

    def total(delta):
        mask = tree([{"w": jnp.asarray([[True, False, False]])}])
        return jnp.sum(merge(start, [chunk(start, [1.0], delta, mask)])[0].params["blocks"][0]["w"])

    grad = jax.grad(total)(tree([{"w": jnp.ones((1, 3))}]))["blocks"][0]["w"]
    np.testing.assert_allclose(grad, [[1.0, 0.0, 0.0]])


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 3)])
def test_weighted_sum_against_numpy(shape):
    rng = np.random.default_rng(0)
    coefficient = rng.standard_normal(shape).astype(np.float32)
    values = rng.standard_normal((4, 2, 3)).astype(np.float32)
    aligned = coefficient.reshape((4,) + (1,) * (3 - len(shape)) + shape[1:])
    got = weighted_sum(jnp.asarray(coefficient), jnp.asarray(values))
    np.testing.assert_allclose(got, (aligned * values).sum(0), rtol=1e-5, atol=1e-6)


def test_align_broadcasts_from_the_right():
    like = jnp.zeros((2, 3))
    np.testing.assert_array_equal(align(jnp.asarray([1.0, 2.0, 3.0]), like), [[1, 2, 3]] * 2)
    np.testing.assert_array_equal(align(jnp.asarray(5.0), like), np.full((2, 3), 5.0))


def merged_value(aggregator, values, mask, steps=None, weight=None):
    """Clients bring `values` of one scalar from a model at 1; returns the new value."""
    model = scalars([1.0])
    n = len(values)
    shapes = {"blocks": ({"w": jax.ShapeDtypeStruct((), bool)},), "exits": ()}
    stacked = {"blocks": ({"w": jnp.asarray(mask, bool)},), "exits": ()}
    delta = jnp.asarray([v - 1.0 if m else 0.0 for v, m in zip(values, mask)], jnp.float32)
    chunk = make_chunk(
        model,
        weight or [1.0] * n,
        {"blocks": ({"w": delta},), "exits": ()},
        mask=stacked,
        steps=jnp.asarray(steps or [1] * n, jnp.int32),
    )
    acc = aggregator.add(aggregator.init((), model, shapes), chunk)
    merged = aggregator.finalize(acc, model, None).variables
    return float(values_of(merged)[0])


def test_masked_mean_of_the_contributors():
    # methods/fedel.md check 12
    for aggregator in (masked_mean(), normalised_mean()):
        assert merged_value(aggregator, [2, 5, 4], [1, 0, 1]) == pytest.approx(3.0)
        assert merged_value(aggregator, [4, 2, 5], [1, 1, 0]) == pytest.approx(3.0)
        assert merged_value(aggregator, [2, 2, 4, 4], [1, 1, 1, 1]) == pytest.approx(3.0)
        assert merged_value(aggregator, [2, 5, 4], [0, 0, 0]) == 1.0


def test_plain_mean_is_diluted_by_frozen_copies():
    # What methods/fedel.md A12 compares the masked mean with.
    assert merged_value(plain_mean(), [2, 5, 4], [1, 0, 1]) == pytest.approx(1 + 4 / 3)
    assert merged_value(plain_mean(), [2, 5, 4], [0, 0, 0]) == 1.0


def test_nova_normalises_by_local_steps():
    # methods/baselines.md check 9: (1 * 2/2 + 3 * 6/6) / 2 per step, times 4 steps on average, over
    # the holders only.
    merged = merged_value(normalised_mean(), [3, 9, 7], [1, 0, 1], steps=[2, 9, 6])
    assert merged == pytest.approx(1 + (2 / 2 + 6 / 6) / 2 * 4)
    weighted = merged_value(
        normalised_mean(), [3, 9, 7], [1, 0, 1], steps=[2, 9, 6], weight=[3, 1, 1]
    )
    assert weighted == pytest.approx(1 + (3 + 1) / 4 * (3 * 2 + 6) / 4)
