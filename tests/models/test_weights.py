"""Weights and biases of layers are told from the scales of norms, in every kind of model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.models import char_lstm, mlp, resnet20, transformer, unet, vgg11
from fedjax_het.models.weights import layer_parameters

MODELS = {
    "resnet": resnet20((8, 8, 3), width=2),
    "resnet with batch norm": resnet20((8, 8, 3), width=2, norm="batch"),
    "vgg": vgg11(width=1 / 16),
    "mlp": mlp((4,), 3, hidden=(5,), norm="group"),
    "transformer": transformer((6,), 7, layers=1, width=8, heads=2, hidden=8),
    "lstm": char_lstm((6,), 7, units=4),
    "unet": unet((16, 16, 3), 2),
}


def split(params):
    """The paths of the tensors of layers, and of the others."""
    paths, _ = jax.tree.flatten_with_path(params)
    flags = jax.tree.leaves(layer_parameters(params))
    names = [(jax.tree_util.keystr(path), leaf) for path, leaf in paths]
    yes = {name: leaf for (name, leaf), flag in zip(names, flags, strict=True) if flag}
    return yes, {name: leaf for name, leaf in names if name not in yes}


def module(path):
    return path.split("[")[-2].lower()


@pytest.mark.parametrize("name", MODELS)
def test_norms_are_told_from_layers(name):
    layers, norms = split(MODELS[name].shapes.params)
    assert layers
    assert bool(norms) == (name != "lstm")
    assert not any("norm" in module(path) for path in layers)
    assert all("norm" in module(path) and leaf.ndim == 1 for path, leaf in norms.items())
    assert {path.rpartition("[")[2] for path in norms} <= {"'scale']", "'bias']"}


def test_biases_and_embeddings_count():
    layers, _ = split(MODELS["transformer"].shapes.params)
    assert {"symbol", "bias"} <= {path.split("'")[-2] for path in layers}
    layers, _ = split(MODELS["lstm"].shapes.params)
    assert {"symbol", "states", "bias"} <= {path.split("'")[-2] for path in layers}
    assert any(leaf.ndim == 1 for leaf in layers.values())


def test_a_module_is_the_innermost_one():
    kernel, vector = jnp.zeros((2, 2)), jnp.zeros(2)
    params = {"block": {"table": kernel, "norm": {"scale": vector}, "extra": vector}}
    flags = layer_parameters(params)
    assert flags == {"block": {"table": True, "norm": {"scale": False}, "extra": True}}
    assert layer_parameters(({"w": np.float32(0)},)) == ({"w": False},)
