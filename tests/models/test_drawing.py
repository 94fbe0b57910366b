"""New variables come from one program, which is traced once."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_het.models import build, from_flax
from fedjax_het.models.drawing import Draw
from fedjax_het.models.shapes import new_variables

KEY = jax.random.key(3)


class Small(nnx.Module):
    """Two layers."""

    def __init__(self, rngs):
        self.first, self.second = nnx.Linear(4, 5, rngs=rngs), nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.relu(self.first(x)))


def models():
    linen = nn.Sequential([nn.Dense(5), nn.relu, nn.Dense(3)])
    return {
        "built in": build("logistic", (4,), 3),
        "linen": from_flax(linen, (4,), 3),
        "nnx": from_flax(lambda rngs: Small(rngs), (4,), 3),
    }


@pytest.mark.parametrize("kind", ["built in", "linen", "nnx"])
def test_the_program_draws_what_single_operations_draw(kind):
    model = models()[kind]
    drawn, single = model.init(KEY), new_variables(model.blocks, (), KEY, model.input_shapes(1))
    assert jax.tree.structure(drawn) == jax.tree.structure(single)
    for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(single), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    other = model.init(jax.random.key(4))
    assert any(
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(drawn), jax.tree.leaves(other), strict=True)
    )


def test_shapes_and_values_need_one_trace_and_no_single_operation():
    calls = []

    def function(key):
        calls.append(isinstance(key, jax.core.Tracer))
        return {"w": jax.random.normal(key, (3,)), "b": jnp.zeros(2)}

    draw = Draw(function)
    assert {name: a.shape for name, a in draw.shapes.items()} == {"w": (3,), "b": (2,)}
    first, again = draw(KEY), draw(KEY)
    np.testing.assert_array_equal(first["w"], again["w"])
    np.testing.assert_allclose(first["w"], jax.random.normal(KEY, (3,)), rtol=1e-5)
    assert calls == [True]


def test_every_call_has_arrays_of_its_own():
    # A run may give the memory of its start away.
    held = jnp.arange(4.0)
    for function in (lambda key: {"w": jnp.copy(held)}, lambda key: {"w": jax.random.normal(key)}):
        draw = Draw(function)
        assert draw(KEY)["w"] is not draw(KEY)["w"]


def test_values_that_the_function_holds_are_not_put_into_a_program():
    calls = []

    def function(key):
        calls.append(isinstance(key, jax.core.Tracer))
        return {"w": held + 1, "b": jax.random.normal(key, (2,))}

    held = jnp.arange(4.0)
    draw = Draw(function)
    np.testing.assert_array_equal(draw(KEY)["w"], [1, 2, 3, 4])
    assert calls == [True, False]


def test_a_key_of_another_kind_or_inside_a_program_is_taken_as_it_is():
    draw = Draw(lambda key: {"w": jax.random.normal(key, (3,))})
    for key in (KEY, jax.random.key(3, impl="rbg")):
        expected = jax.random.normal(key, (3,))
        np.testing.assert_allclose(draw(key)["w"], expected, rtol=1e-5)
        np.testing.assert_allclose(jax.jit(draw)(key)["w"], expected, rtol=1e-5)
