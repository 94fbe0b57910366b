"""Layers of the models that ADEL-FL was tried on, and what each depth costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adel_helpers import adel_problem
from problems import (
    assert_close,
    batch_norm_problem,
    differ,
    digits,
    exits_problem,
    fleet,
    one_round,
    situation,
)

from fedjax_het import models
from fedjax_het.algorithms import build
from fedjax_het.algorithms.adel.depths import layers_of, on_batch_statistics, trained
from fedjax_het.common.errors import InputError
from fedjax_het.data.federated import from_arrays
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.norm import GroupNorm
from fedjax_het.problem import Problem


def problem_of(name, shape, **options):
    """One black sample for each of three clients; nothing here is trained."""
    x, y = np.zeros((3, *shape), np.float32), np.zeros(3, np.int32)
    data = from_arrays(x, y, x, y, clients=np.arange(3), num_classes=10)
    return Problem(models.build(name, shape, 10, **options), data, fleet(3))


def leaves_by_depth(layers):
    """Number of tensors that each depth trains."""
    count = layers.number
    masks = [trained(layers.ids, jnp.int32(count - depth)) for depth in range(count + 1)]
    return [sum(bool(leaf) for leaf in jax.tree.leaves(mask)) for mask in masks]


@pytest.mark.parametrize(
    ("name", "options", "number"),
    [("mlp", {"hidden": (32, 16)}, 6), ("adel_cnn2", {}, 8)],
)
def test_the_authors_layers_are_tensors(name, options, number):
    layers = layers_of(problem_of(name, (28, 28, 1), **options), "tensor")
    assert layers.number == number
    assert leaves_by_depth(layers) == list(range(number + 1))
    last = layers.ids["blocks"][-1]["Dense_0"]
    assert (last["bias"], last["kernel"]) == (number - 1, number - 2)
    modules = layers_of(problem_of(name, (28, 28, 1), **options))
    assert modules.number == number // 2
    # Where a depth ends with a whole module, both ways of counting charge the same.
    np.testing.assert_allclose(layers.flops[2::2], modules.flops[1:])
    np.testing.assert_array_equal(layers.upload_bytes[2::2], modules.upload_bytes[1:])


@pytest.mark.parametrize(("name", "convolutions"), [("vgg11", 8), ("vgg13", 10)])
def test_vgg_has_a_layer_per_convolution_and_the_authors_two_virtual_ones(name, convolutions):
    problem = problem_of(name, (32, 32, 3), norm="batch", width=0.05)
    assert layers_of(problem).number == convolutions + 1
    layers = layers_of(problem, virtual_layers=2)
    assert layers.number == convolutions + 3
    # Depths 1, 2 and 3 train the classifier; every further one a convolution and its norm.
    assert leaves_by_depth(layers)[:6] == [0, 2, 2, 2, 6, 10]
    assert leaves_by_depth(layers)[-1] == 4 * convolutions + 2
    assert layers.first_block.tolist()[:6] == [convolutions] * 4 + [
        convolutions - 1,
        convolutions - 2,
    ]


def test_a_bias_alone_needs_no_weight_gradient():
    problem = adel_problem()
    layers, cost = layers_of(problem, "tensor"), problem.cost
    first = np.asarray([0, 2, 2, 1, 1, 0, 0])
    np.testing.assert_array_equal(layers.first_block[1:], first[1:])
    np.testing.assert_allclose(layers.flops[2], cost.step_flops(2))
    np.testing.assert_allclose(layers.flops[1], cost.step_flops(2) - cost.weight_grad_flops[2])
    np.testing.assert_allclose(layers.flops[3], cost.step_flops(1) - cost.weight_grad_flops[1])
    assert np.all(np.diff(layers.flops[1:]) > 0)
    assert layers.upload_bytes[1:].tolist() == [40, 680, 744, 2280, 2376, 8520]
    assert layers.upload_bytes[0] == 8520


def test_statistics_go_back_with_the_blocks_they_belong_to():
    problem = batch_norm_problem()
    layers = layers_of(problem)
    np.testing.assert_array_equal(
        layers.upload_bytes[1:],
        [problem.cost.upload_bytes(first) for first in reversed(range(layers.number))],
    )


def test_exit_heads_are_never_trained():
    layers = layers_of(exits_problem())
    mask = trained(layers.ids, jnp.int32(0))
    assert all(bool(leaf) for leaf in jax.tree.leaves(mask["blocks"]))
    assert not any(bool(leaf) for leaf in jax.tree.leaves(mask["exits"]))


def test_tensors_of_unknown_order_are_refused():
    blocks = (flax_block("norm", GroupNorm(2)), *adel_problem().model.blocks)
    model = BlockModel("norm_first", blocks, (64,), 10)
    problem = Problem(model, digits((5, 5)), fleet(2))
    with pytest.raises(InputError, match="granularity='module'"):
        layers_of(problem, "tensor")
    with pytest.raises(InputError, match="virtual_layers"):
        layers_of(problem, virtual_layers=-1)


@pytest.mark.parametrize("traced", [True, False])
def test_a_gradient_does_not_depend_on_the_depth_it_is_cut_at(traced):
    """With batch normalisation the whole forward pass is in training mode, reached or not."""
    problem = batch_norm_problem(traced_train=traced)
    algorithm = build("salf", problem, learning_rate=0.5, rounds=1, total_s=1.0, batch_scale=1e-3)
    variables = problem.model.init(jax.random.key(0))
    plan, _ = algorithm.plan(
        algorithm.init(variables, jax.random.key(0)), variables, situation(problem)
    )

    def after(first, execution):
        rows = {"first_layer": np.full(len(plan.clients), first, np.int32)}
        cut = plan._replace(rows=rows, routes=[r._replace(first=first) for r in plan.routes])
        return one_round(algorithm, problem, variables, cut, execution=execution)[0]

    last = problem.model.num_blocks - 1
    whole, cut = after(0, "routed"), after(last, "routed")
    assert_close(cut.params["blocks"][last], whole.params["blocks"][last])
    assert differ(cut.params["blocks"][last], variables.params["blocks"][last])
    assert_close(cut, after(last, "masked"))
    # Statistics of blocks that were not reached stay as they were.
    assert_close(cut.stats, variables.stats)
    assert not np.allclose(
        jax.tree.leaves(whole.stats["blocks"][0])[0], jax.tree.leaves(cut.stats["blocks"][0])[0]
    )
    assert on_batch_statistics(problem.model).blocks[0].traced_train
