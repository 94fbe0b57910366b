"""What FedEL's tensors cost: prices from the model's own backward pass, and the way to them."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het import models
from fedjax_het.algorithms.fedel.tensors import TensorTimes, tensor_times
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


def test_price_of_the_papers_figure_3():
    # methods/fedel.md check 5: tensors 2 and 4 of five.
    rng = np.random.default_rng(0)
    w, g = rng.uniform(1, 2, 5), rng.uniform(1, 2, 5)
    names = tuple("abcde")
    times = TensorTimes(names, np.arange(5), w, g, np.full(5, 4), 5)
    chosen = np.array([[False, True, False, True, False]])
    paper = w[1] + w[3] + g[2] + g[3] + g[4]
    assert times.cost(chosen, np.array([4]), "exclusive")[0] == pytest.approx(paper)
    assert times.cost(chosen, np.array([4]), "inclusive")[0] == pytest.approx(paper + g[1])
    # methods/fedel.md check 7: what lies behind the exit costs nothing.
    nearer = times.cost(chosen, np.array([3]), "exclusive")[0]
    assert nearer == pytest.approx(paper - g[4])
    assert np.isinf(times.chain(np.array([2]))[0, 3:]).all()
    assert times.cost(np.zeros((1, 5), bool), np.array([4]), "exclusive")[0] == 0.0
