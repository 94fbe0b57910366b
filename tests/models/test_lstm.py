"""The character LSTM against flax's cell, with its gradients and its price."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.lstm import Lstm, char_lstm
from fedjax_het.models.recurrence import recurrence

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 2)), jnp.float32)


def of_flax(params):
    """The parameters under the names of flax's cell, which has a layer per gate."""
    cell = {}
    for k, gate in enumerate("ifgo"):
        part = slice(4 * k, 4 * (k + 1))
        cell[f"i{gate}"] = {"kernel": params["inputs"]["kernel"][:, part]}
        bias = params["inputs"]["bias"][part]
        cell[f"h{gate}"] = {"kernel": params["states"][:, part], "bias": bias}
    return {"cell": cell}


class Flax(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.RNN(nn.OptimizedLSTMCell(4, name="cell"))(x)


def test_equals_the_cell_of_flax_with_all_gradients():
    params = Lstm(4).init(KEY, X[0])["params"]
    np.testing.assert_array_equal(params["inputs"]["bias"], np.repeat([0.0, 1.0, 0.0, 0.0], 4))

    def loss(params, x, run):
        y = run(params, x)
        return jnp.sum(jnp.sin(y) * jnp.arange(5.0).reshape(1, 5, 1)), y

    def steps(run):
        # Clients with their own samples, as in training.
        step = jax.value_and_grad(lambda *args: loss(*args, run), (0, 1), has_aux=True)
        return jax.vmap(step, (None, 0))(params, X)

    mine = jax.jit(lambda: steps(lambda p, x: Lstm(4).apply({"params": p}, x)))()
    theirs = jax.jit(lambda: steps(lambda p, x: Flax().apply({"params": of_flax(p)}, x)))()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), mine, theirs)


def test_a_step_multiplies_rows_in_order_of_time():
    # The gates of a layer, the largest arrays of a step, are nowhere transposed.
    layer = Lstm(4)
    params = layer.init(KEY, X[0])

    def loss(params):
        return jnp.sum(layer.apply(params, X[0]))

    batch, steps = X.shape[1:3]
    moved = [
        equation.invars[0].aval.shape
        for equation in jax.make_jaxpr(jax.grad(loss))(params).jaxpr.eqns
        if equation.primitive.name == "transpose"
    ]
    assert moved
    assert not [shape for shape in moved if 16 in shape and batch * steps <= np.prod(shape) / 16]


def test_states_and_cells_in_bfloat16():
    inputs, matrix = jnp.ones((2, 3, 8), jnp.bfloat16), jnp.ones((2, 8), jnp.bfloat16)
    y, pullback = jax.vjp(recurrence, inputs, matrix)
    assert y.dtype == jnp.bfloat16
    assert [g.dtype for g in pullback(y)] == [jnp.bfloat16] * 2


def test_predicts_everywhere_or_at_the_end():
    tokens = jnp.asarray([[0, 1, 2, 3], [0, 1, 2, 4]], jnp.int32)
    every, last = (char_lstm((4,), 5, units=3, predict=where) for where in ("every", "last"))
    variables = every.init(KEY)
    outputs = every.apply(variables, tokens)[0]
    assert outputs.shape == (2, 4, 5)
    np.testing.assert_array_equal(last.apply(variables, tokens)[0], outputs[:, -1])
    # The past alone counts.
    np.testing.assert_array_equal(outputs[0, :3], outputs[1, :3])
    assert bool(jnp.any(outputs[0, 3] != outputs[1, 3]))


@pytest.mark.parametrize(("predict", "positions"), [("every", 6), ("last", 1)])
def test_every_step_of_the_scan_is_priced(predict, positions):
    table = cost_table(char_lstm((6,), 5, embedding=2, units=3, predict=predict))
    inputs, states = 6 * 2 * 2 * 12, 6 * 2 * 3 * 12
    assert table.forward_flops.tolist() == [0, inputs + states, 2 * states, positions * 2 * 3 * 5]
    # The states' gradient is on the way to every weight.
    assert table.weight_grad_flops[1] == inputs + 2 * states
    assert table.input_grad_flops[1] == inputs
