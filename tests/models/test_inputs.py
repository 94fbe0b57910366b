"""Samples of one array, and of dictionaries and tuples of arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.profile import measure
from fedjax_het.models import BlockModel, build, flax_block
from fedjax_het.models.block import Block
from fedjax_het.models.inputs import as_shapes, batch_of, batch_size, check_samples
from fedjax_het.models.mlp import Dense


def test_shapes_and_dtypes_of_a_batch():
    one = batch_of([3, 4], jnp.float32, 2)
    assert (one.shape, one.dtype) == ((2, 3, 4), jnp.float32)
    scalars = batch_of((), jnp.int32, 5)
    assert scalars.shape == (5,)
    pair = batch_of(as_shapes([(3,), [2, 2]]), (jnp.int32, jnp.bool_), 2)
    assert [(a.shape, a.dtype) for a in pair] == [((2, 3), jnp.int32), ((2, 2, 2), jnp.bool_)]
    assert batch_size(pair) == 2


PAIR = {"shape": {"a": (3,), "b": ()}, "dtype": {"a": jnp.float32, "b": jnp.bool_}}
GOOD = {"a": jnp.ones((2, 3)), "b": jnp.ones(2, bool)}


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (jnp.ones((2, 3)), "structure"),
        ({"a": GOOD["a"]}, "structure"),
        ({**GOOD, "b": jnp.ones(2)}, r"x\['b'\] = float32\[2\].*bool\[batch\]"),
        ({**GOOD, "b": jnp.ones(3, bool)}, r"x\['b'\] = bool\[3\]"),
        ({**GOOD, "a": jnp.ones((2, 4))}, r"x\['a'\] = float32\[2, 4\].*float32\[batch, 3\]"),
    ],
)
def test_samples_that_do_not_fit_are_refused(x, message):
    check_samples(GOOD, "pair", PAIR["shape"], PAIR["dtype"])
    with pytest.raises(ValueError, match=message):
        check_samples(x, "pair", PAIR["shape"], PAIR["dtype"])


def gathered():
    """A first block without parameters that joins the arrays of a sample, by hand."""

    def apply(params, stats, x, *, train, key):
        return jnp.concatenate([x["a"], x["b"].astype(jnp.float32)[:, None]], 1), stats

    return Block("join", lambda key, x: ({}, {}), apply)


def test_a_model_of_dictionaries_runs_and_is_priced():
    blocks = (gathered(), flax_block("fc", Dense(5)))
    model = BlockModel("pair", blocks, PAIR["shape"], 5, input_dtype=PAIR["dtype"])
    variables = model.init(jax.random.key(0))
    kernel = variables.params["blocks"][1]["Dense_0"]["kernel"]
    outputs = model.apply(variables, GOOD)[0]
    np.testing.assert_allclose(outputs, np.ones((2, 4)) @ kernel, rtol=1e-5)
    assert [z.shape for z in model.activation_shapes(2)] == [(2, 4), (2, 5)]
    assert cost_table(model).forward_flops.tolist() == [0, 2 * 4 * 5]
    assert measure(model, batch=2, repeats=1).num_blocks == 2


def test_models_by_name_take_one_array():
    with pytest.raises(ValueError, match=r"'mlp' with input_shape.*from_flax"):
        build("mlp", PAIR["shape"], 5)
    with pytest.raises(ValueError, match=r"input_dtype.*structure of input_shape"):
        BlockModel("pair", (gathered(),), PAIR["shape"], 5)
