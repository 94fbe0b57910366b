"""Samples that are dictionaries or tuples of arrays, from the data to the prediction."""

import dataclasses

import chex
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from problems import digits, digits_problem, fleet

from fedjax_het import load_model
from fedjax_het.algorithms import fedavg
from fedjax_het.common.errors import InputError
from fedjax_het.data import from_arrays
from fedjax_het.models import from_flax
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(10)(nn.relu(nn.Dense(8)(x)))


class OfParts(nn.Module):
    @nn.compact
    def __call__(self, x):
        left, right = x["parts"]
        x = jnp.concatenate([left, right * x["there"]], axis=-1)
        return nn.Dense(10)(nn.relu(nn.Dense(8)(x)))


def in_parts(x):
    return {"parts": (x[:, :32], x[:, 32:]), "there": np.ones((len(x), 1), np.float32)}


def problems():
    base = digits()
    owner = np.repeat(np.arange(base.num_clients), base.sizes)
    x, y = base.x[base.order], base.y[base.order]
    whole = from_arrays(x, y, base.test_x, base.test_y, clients=owner, num_classes=10)
    parts = from_arrays(
        in_parts(x), y, in_parts(base.test_x), base.test_y, clients=owner, num_classes=10
    )
    devices = fleet(base.num_clients)
    network = from_flax(OfParts(), parts.input_shape, input_dtype=parts.input_dtype)
    return (
        Problem(from_flax(Plain(), (64,)), whole, devices),
        Problem(network, parts, devices),
    )


def test_parts_of_a_sample_train_like_the_whole(tmp_path):
    whole, parts = problems()
    runs = [
        simulate(fedavg(problem, **TRAINING), problem, rounds=2, workdir=tmp_path / str(i))
        for i, problem in enumerate((whole, parts))
    ]
    chex.assert_trees_all_close(runs[0].variables.params, runs[1].variables.params, rtol=1e-6)
    trained = load_model(tmp_path / "1", model=parts.model)
    outputs, _ = whole.model.apply(runs[0].variables, whole.data.test_x)
    np.testing.assert_allclose(
        trained.predict(in_parts(whole.data.test_x)), outputs, rtol=1e-5, atol=1e-6
    )


def test_masks_and_tokens_keep_their_kind():
    x = {"tokens": np.zeros((6, 4), np.int64), "mask": np.ones((6, 4), bool)}
    data = from_arrays(x, np.arange(6) % 2, x, np.arange(6) % 2, clients=[0, 0, 0, 1, 1, 1])
    assert data.input_shape == {"tokens": (4,), "mask": (4,)}
    assert {k: v.name for k, v in data.input_dtype.items()} == {"tokens": "int32", "mask": "bool"}
    other = {**x, "mask": ~x["mask"]}
    changed = from_arrays(other, np.arange(6) % 2, x, np.arange(6) % 2, clients=[0, 0, 0, 1, 1, 1])
    assert data.fingerprint() != changed.fingerprint()


def test_parts_that_do_not_fit_are_refused():
    _, parts = problems()
    data = parts.data
    with pytest.raises(InputError, match=r"model input \(64,\), data \{'parts'"):
        dataclasses.replace(parts, model=digits_problem().model)
    x = {"a": np.zeros((6, 2)), "b": np.zeros((5, 2))}
    with pytest.raises(InputError, match=r"6 samples in x\['a'\], 5 .*equally many"):
        from_arrays(x, np.zeros(6, int), x, np.zeros(6, int), clients=[0] * 6)
    bad = {"a": np.full((6, 2), np.nan)}
    with pytest.raises(InputError, match=r"x\['a'\]: 6 samples are not finite"):
        from_arrays(bad, np.zeros(6, int), bad, np.zeros(6, int), clients=[0] * 6)
    with pytest.raises(InputError, match=r"normalise = .*inputs of several parts"):
        dataclasses.replace(data, normalise=(0.0, 1.0))
