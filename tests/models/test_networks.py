"""The networks for segmentation, sensors and tables against plain ones with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fedjax_het.models.conv1d import conv1d
from fedjax_het.models.mlp import mlp
from fedjax_het.models.unet import enlarge, fold, unet, unfold

KEY = jax.random.key(0)


def image(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def test_squares_are_folded_and_unfolded():
    x = image(2, 4, 6, 3)
    np.testing.assert_array_equal(fold(x)[1, 1, 2, 3:6], x[1, 2, 5])
    np.testing.assert_array_equal(unfold(fold(x)), x)
    np.testing.assert_array_equal(enlarge(x), jnp.repeat(jnp.repeat(x, 2, 1), 2, 2))


def convolved(x, layer, dims=("NHWC", "HWIO", "NHWC")):
    strides = (1,) * (x.ndim - 2)
    y = lax.conv_general_dilated(x, layer["kernel"], strides, "SAME", dimension_numbers=dims)
    return jax.nn.relu(y + layer["bias"].reshape(*(1,) * (x.ndim - 1), -1))


def twice(x, params):
    return convolved(convolved(x, params["Twice_0"]["Conv_0"]), params["Twice_0"]["Conv_1"])


def maxima(x, axes):
    for axis in axes:
        shape = (*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
        x = jnp.max(x.reshape(shape), axis + 1)
    return x


def plain(blocks, x):
    """The network with the kept maps in variables, not in channels."""
    down1, down2, middle, up2, up1, output = blocks
    first = twice(x, down1)
    second = twice(maxima(first, (1, 2)), down2)
    z = twice(maxima(second, (1, 2)), middle)
    z = twice(jnp.concatenate([jnp.repeat(jnp.repeat(z, 2, 1), 2, 2), second], -1), up2)
    z = twice(jnp.concatenate([jnp.repeat(jnp.repeat(z, 2, 1), 2, 2), first], -1), up1)
    return z @ output["kernel"] + output["bias"].reshape(1, 1, 1, -1)


def close(a, b):
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), a, b)


def test_equals_a_network_with_plain_connections():
    model = unet((8, 4, 2), 3, width=3, norm="none")
    names = ["down1", "down2", "middle", "up2", "up1", "output"]
    assert [block.name for block in model.blocks] == names
    variables, x = model.init(KEY), image(2, 8, 4, 2)

    def gradient(run):
        def loss(blocks):
            y = run(blocks)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(loss, has_aux=True)

    def mine(blocks):
        params = {**variables.params, "blocks": blocks}
        return model.apply(variables._replace(params=params), x)[0]

    def both(blocks):
        return gradient(mine)(blocks), gradient(lambda blocks: plain(blocks, x))(blocks)

    close(*jax.jit(both)(variables.params["blocks"]))
    # Features, and what is kept at half and at quarter resolution.
    channels = [z.shape[-1] for z in model.activation_shapes(1)]
    assert channels == [3 + 12, 6 + 4 * (6 + 12), 12 + 72, 6 + 12, 3, 3]


def test_the_sensor_network_convolves_over_time():
    model = conv1d((8, 2), 3, channels=(4, 5), kernel=3, norm="none")
    variables, x = model.init(KEY), image(2, 8, 2)
    z = x
    for block in variables.params["blocks"][:2]:
        z = maxima(convolved(z, block["Conv_0"], ("NWC", "WIO", "NWC")), (1,))
    output = variables.params["blocks"][2]["Dense_0"]
    close(model.apply(variables, x)[0], z.mean(1) @ output["kernel"] + output["bias"][None])
    # Slices and products, also with a kernel per client.
    many = jax.vmap(lambda v: model.apply(v, x)[0])
    stacked = jax.tree.map(lambda a: jnp.stack([a, a]), variables)
    assert "conv_general_dilated" not in str(jax.make_jaxpr(many)(stacked))


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_dropout_and_norm_of_the_network_for_tables(norm):
    model = mlp((3,), 1, hidden=(64, 8), norm=norm, dropout=0.5)
    variables, x = model.init(KEY), image(4, 3)
    scale = 1.0 / np.sqrt(1.0 + 1e-5) if norm == "batch" else 1.0
    z = x
    for block in variables.params["blocks"][:2]:
        layer = block["Dense_0"]
        z = jax.nn.relu(scale * (z @ layer["kernel"] + layer["bias"][None]))
    layer = variables.params["blocks"][2]["Dense_0"]
    close(model.apply(variables, x)[0], z @ layer["kernel"] + layer["bias"][None])
    # Samples are never dropped, hidden units are.
    first, second = (model.forward_to(variables, x, b, train=True, key=KEY)[0] for b in (0, 1))
    if norm == "none":
        close(first, model.forward_to(variables, x, 0)[0])
        assert bool(jnp.any(jnp.abs(second - model.forward_to(variables, x, 1)[0]) > 1e-3))
    with pytest.raises(ValueError, match="'fc2' draws random numbers"):
        model.apply(variables, x, train=True)
