"""FedEL's parts: prices of tensors, importance, merges."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import problems
import pytest

from fedjax_het import models
from fedjax_het.algorithms.fedel import importance
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.contract.aggregation import masked_mean, normalised_mean, plain_mean
from fedjax_het.contract.algorithm import Variables
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.profile import MeasuredProfile, with_measured
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block


class _Branches(nn.Module):
    """Two paths from the input that meet again; named against the order of their use."""

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(6, name="z")(x))
        y = nn.Dense(4, name="m")(y)
        return nn.relu(y + nn.Dense(4, use_bias=False, name="a")(x))


def _branched():
    blocks = (
        flax_block("in", nn.Dense(4)),
        flax_block("branches", _Branches()),
        flax_block("out", nn.Dense(3)),
    )
    return BlockModel("branched", blocks, (5,), 3)


def test_tensors_come_in_the_order_of_the_computation_and_sum_to_the_cost_table():
    model = _branched()
    cost = cost_table(model)
    times = tensor_times(model, cost)
    assert times.names == (
        *("in/kernel", "in/bias"),
        *("branches/z/kernel", "branches/z/bias", "branches/m/kernel", "branches/m/bias"),
        "branches/a/kernel",
        *("out/kernel", "out/bias"),
    )
    biases = np.array([name.endswith("bias") for name in times.names])
    own = np.where(biases, 0.0, times.weight)
    by_block = np.bincount(times.block, own + times.through)
    inputs = np.array([0.0, *cost.input_grad_flops[1:]])
    np.testing.assert_array_equal(by_block, cost.weight_grad_flops + inputs)
    # A bias costs a sum over its block's output.
    np.testing.assert_array_equal(times.weight[biases], [4, 4, 4, 3])
    # index points from the parameters to the order.
    assert times.index[1]["a"]["kernel"] == 6
    assert times.index[1]["z"] == {"kernel": 2, "bias": 3}
    np.testing.assert_array_equal(times.size_bytes[:2], [80, 16])


def test_no_set_of_tensors_is_priced_below_its_backward_pass():
    model = _branched()
    times = tensor_times(model, cost_table(model))
    last = np.array([2])
    dense = {name: i for i, name in enumerate(times.names)}

    def cost(*names):
        chosen = np.zeros((1, times.num_tensors), bool)
        chosen[0, [dense[n] for n in names]] = True
        return times.cost(chosen, last, "exclusive")[0]

    out_x = 2 * 4 * 3  # the gradient handed to the branches
    assert cost("branches/a/kernel") == out_x + 2 * 4 * 4
    assert cost("branches/m/kernel") == out_x + 2 * 6 * 4
    assert cost("branches/z/kernel") == out_x + 2 * 6 * 4 + 2 * 4 * 6
    assert cost("branches/a/kernel", "branches/z/kernel") == out_x + 32 + 48 + 48
    assert cost("in/kernel") == out_x + 48 + 48 + 32 + 2 * 4 * 5


def test_a_measured_profile_replaces_the_prices_of_blocks():
    model = models.build("mlp", (8,), 4, hidden=(6, 5))
    table = cost_table(model)
    profile = MeasuredProfile(
        *("mlp", "test", 4, 1, table.names, 3),
        *((1.0, 1.0, 1.0), (3.0, 1.0, 2.0), (9.0, 4.0, 1.0), (0.0,) * 3, (0.0,) * 3),
    )
    cost = with_measured(table, profile)
    times = tensor_times(model, cost)
    kernels = times.weight[::2]
    np.testing.assert_allclose(kernels / kernels[1], [3, 1, 2])
    np.testing.assert_allclose(times.through[::2] / kernels[1], [0, 4, 1])


def test_local_importance_of_a_quadratic():
    # 14: L = |w|^2 / 2 and plain SGD give raw_k = -eta (1 - eta) |w_k|^2.
    params = {"a": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([[3.0]])}
    before = jax.tree.map(np.asarray, params)

    def loss(p):
        return 0.5 * optax.tree.norm(p, squared=True)

    for momentum in (None, 0.9):
        raw = importance.step_products(loss, optax.sgd(0.1, momentum), params)
        assert float(raw["a"]) == pytest.approx(-0.1 * 0.9 * 5, rel=1e-6)
        assert float(raw["b"]) == pytest.approx(-0.1 * 0.9 * 9, rel=1e-6)
    problems.assert_same(jax.tree.map(np.asarray, params), before)
    normal = importance.normalise(-jnp.stack([raw["a"], raw["b"]]))
    np.testing.assert_allclose(normal, [5 / 9, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(importance.normalise(jnp.zeros(3)), np.zeros(3))


def test_a_step_that_overshoots_makes_a_tensor_look_harmful_and_a_small_one_does_not():
    """On a quadratic of curvature 30 a step of 0.1 triples the error of a, a hundredth does not."""
    params = {"a": jnp.asarray([1.0]), "b": jnp.asarray([1.0])}

    def loss(p):
        return 15.0 * jnp.sum(p["a"] ** 2) + 0.5 * jnp.sum(p["b"] ** 2)

    real = importance.step_products(loss, optax.sgd(0.1), params)
    small = importance.step_products(loss, optax.chain(optax.sgd(0.1), optax.scale(0.01)), params)
    assert float(real["a"]) > 0 > float(real["b"])
    # Nearly in proportion to the squared gradients, 900 and 1.
    assert float(small["a"]) / float(small["b"]) == pytest.approx(900, rel=0.05)
    assert float(small["a"]) < 0


def _two_models(delta):
    def of(value):
        return Variables({"blocks": ({"w": jnp.asarray(value, jnp.float32)},), "exits": ()}, {})

    return of([1.0, 2.0]), of([1.0 + delta[0], 2.0 + delta[1]])


def test_global_importance_is_the_squared_movement():
    # 13: the step of the paper's formula cancels in the normalisation.
    index = ({"w": 0},)
    moved = importance.movement(index, *_two_models((0.1, -0.2)))
    assert float(moved[0]) / 0.1 == pytest.approx(0.5, rel=1e-5)
    three = jnp.asarray([0.5, 0.0, 2.0])
    np.testing.assert_allclose(importance.normalise(three), importance.normalise(three * 4))


def test_blend_of_local_and_global_importance():
    local = jnp.asarray([[1.0, 0.5, -1.0]])
    moved = jnp.asarray([1.0, 0.0, 4.0])
    np.testing.assert_allclose(
        importance.blend(local, moved, 0.6, False), [[0.7, 0.3, -0.2]], rtol=1e-6
    )
    # 13: beta 1 is ElasticTrainer; with beta 0 a tensor that nobody trained is never worth anything
    np.testing.assert_array_equal(importance.blend(local, moved, 1.0, False), local)
    assert float(importance.blend(local, moved, 0.0, False)[0, 1]) == 0.0
    assert float(importance.blend(local, moved, 0.0, True)[0, 1]) == 0.5
    # Before the first merge there is no global signal.
    np.testing.assert_array_equal(importance.blend(local, jnp.zeros(3), 0.0, False), local)


def _merge(aggregator, values, mask, steps=None, weight=None):
    """Clients bring `values` of one scalar from a model at 1; returns the new value."""
    model = problems.scalars([1.0])
    n = len(values)
    shapes = {"blocks": ({"w": jax.ShapeDtypeStruct((), bool)},), "exits": ()}
    stacked = {"blocks": ({"w": jnp.asarray(mask, bool)},), "exits": ()}
    delta = jnp.asarray([v - 1.0 if m else 0.0 for v, m in zip(values, mask)], jnp.float32)
    chunk = problems.make_chunk(
        model,
        weight or [1.0] * n,
        {"blocks": ({"w": delta},), "exits": ()},
        mask=stacked,
        row={"steps": jnp.asarray(steps or [1.0] * n, jnp.float32)},
    )
    acc = aggregator.add(aggregator.init((), model, shapes), chunk)
    merged, _ = aggregator.finalize(acc, model, None)
    return float(problems.values_of(merged)[0])


def test_masked_mean_of_the_contributors():
    # 12
    for aggregator in (masked_mean(), normalised_mean()):
        assert _merge(aggregator, [2, 5, 4], [1, 0, 1]) == pytest.approx(3.0)
        assert _merge(aggregator, [4, 2, 5], [1, 1, 0]) == pytest.approx(3.0)
        assert _merge(aggregator, [2, 2, 4, 4], [1, 1, 1, 1]) == pytest.approx(3.0)
        assert _merge(aggregator, [2, 5, 4], [0, 0, 0]) == 1.0


def test_plain_mean_is_diluted_by_frozen_copies():
    assert _merge(plain_mean(), [2, 5, 4], [1, 0, 1]) == pytest.approx(1 + 4 / 3)
    assert _merge(plain_mean(), [2, 5, 4], [0, 0, 0]) == 1.0


def test_nova_normalises_by_local_steps():
    # (1 * 2/2 + 3 * 6/6) / 2 per step, times 4 steps on average, over the holders only
    merged = _merge(normalised_mean(), [3, 9, 7], [1, 0, 1], steps=[2, 9, 6])
    assert merged == pytest.approx(1 + (2 / 2 + 6 / 6) / 2 * 4)
    weighted = _merge(normalised_mean(), [3, 9, 7], [1, 0, 1], steps=[2, 9, 6], weight=[3, 1, 1])
    assert weighted == pytest.approx(1 + (3 + 1) / 4 * (3 * 2 + 6) / 4)


class _Pool(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x @ jnp.ones((4, 4))


def test_blocks_without_tensors_are_paid_for_on_the_way():
    blocks = (
        flax_block("first", _Pool()),
        flax_block("in", nn.Dense(4)),
        flax_block("pool", _Pool()),
        flax_block("out", nn.Dense(3)),
    )
    model = BlockModel("pooled", blocks, (4,), 3)
    times = tensor_times(model, cost_table(model))
    np.testing.assert_array_equal(times.through, [0, 0, 2 * 4 * 3 + 2 * 4 * 4, 0])
    assert times.blocks_of(np.array([[True, False, False, True]])).tolist() == [
        [False, True, False, True]
    ]
