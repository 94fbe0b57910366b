"""What a client computes does not depend on its padding, that is on the sizes of other clients."""

import functools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest
from problems import assert_close, batch_norm_problem, digits

from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Task
from fedjax_het.contract.masks import Route
from fedjax_het.local.training import local_training
from fedjax_het.models import from_flax
from fedjax_het.objectives import classification


def trained(model, data, max_batch, steps=2):
    """The result of client 0 in batches of its size."""
    local = local_training(
        model, data.pipeline, optax.sgd(0.1), classification(), max_batch=max_batch
    )
    task = Task(
        client=np.int32(0),
        key=jax.random.key(1),
        steps=np.int32(steps),
        loop_steps=np.int32(steps),
        batch=np.int32(3),
        learning_rate_scale=np.float32(1.0),
        exit=np.int32(model.num_blocks - 1),
        mask=None,
        row=None,
        shared=None,
    )
    run = functools.partial(local, Route(0, model.num_blocks - 1))
    return jax.jit(run)(model.init(jax.random.key(0)), data.device(), task)


class Net(nn.Module):
    """A network of a user, with flax's batch norm."""

    flat: bool = False

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(8)(x)
        if self.flat:
            x = x.reshape(-1, 4)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = x.reshape(-1, 8)
        return nn.Dense(10)(nn.relu(x))


@pytest.mark.parametrize("model", ["own", "flax"])
def test_a_client_of_three_samples_is_the_same_beside_a_client_of_forty(model):
    sizes = {3: digits((3, 3)), 40: digits((3, 40))}
    network = batch_norm_problem().model if model == "own" else from_flax(Net(), (64,), 10)
    alone, beside = (trained(network, data, most) for most, data in sizes.items())
    # One sum over 3 terms, another over 40 of which 37 are zero.
    assert_close(alone.stats, beside.stats, rtol=1e-5, atol=1e-7)
    assert_close(alone.delta, beside.delta, rtol=1e-5, atol=1e-7)
    # The moments of the three samples, by hand.
    data, start = sizes[40], network.init(jax.random.key(0))
    x = data.x[data.client_samples(0)].astype(np.float64)
    dense = jax.tree.leaves_with_path(start.params["blocks"][0])
    bias, kernel = (np.float64(leaf) for path, leaf in dense if "Dense" in str(path))
    z = x @ kernel + bias
    once = trained(network, data, 40, steps=1)
    means = [leaf for path, leaf in jax.tree.leaves_with_path(once.stats) if "mean" in str(path)]
    np.testing.assert_allclose(means[0], 0.1 * z.mean(axis=0), rtol=1e-5, atol=1e-6)


def test_rows_that_are_not_samples_are_refused_rather_than_normalised_with_padding():
    network = from_flax(Net(flat=True), (64,), 10)
    with pytest.raises(InputError, match=r"batch norm of \[6, 4\] in a batch of 3 samples"):
        trained(network, digits((3, 3)), 3)
