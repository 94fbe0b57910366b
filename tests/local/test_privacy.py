"""Distance correlation and shuffling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.local import distance_correlation, shuffle_channels, shuffle_patches

X = jnp.asarray([[0.0], [1.0], [3.0]])
Z = jnp.asarray([[0.0, 0.0], [1.0, 1.0], [1.0, 2.0]])


@pytest.mark.parametrize(("squared", "wanted"), [(True, 0.953817), (False, 0.960607)])
def test_golden(squared, wanted):
    assert float(distance_correlation(X, Z, squared=squared)) == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("squared", [True, False])
def test_an_affine_copy_tells_everything(squared):
    for other in (Z, 2.0 * Z + 1.0):
        assert float(distance_correlation(Z, other, squared=squared)) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("squared", [True, False])
def test_range_padding_and_gradients(squared):
    key = jax.random.key(0)
    x = jax.random.normal(key, (12, 3, 2))
    z = jax.random.normal(jax.random.fold_in(key, 1), (12, 4))
    whole = float(distance_correlation(x[:9], z[:9], squared=squared))
    assert 0 <= whole <= 1
    weight = jnp.asarray([1.0] * 9 + [0.0] * 3)
    assert float(distance_correlation(x, z, weight, squared=squared)) == pytest.approx(
        whole, rel=1e-4
    )
    # Equal samples and constant activations are where roots have no slope.
    for hard in (jnp.zeros((12, 4)), z.at[3].set(z[4])):
        value, slope = jax.value_and_grad(lambda z: distance_correlation(x, z, squared=squared))(
            hard
        )
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
    assert float(distance_correlation(x, jnp.zeros((12, 4)), squared=squared)) < 0.02


@pytest.mark.parametrize("shape", [(3, 8, 8, 2), (3, 6, 9, 5), (3, 7, 7, 1)])
def test_patches_are_permuted_per_sample(shape):
    z = jnp.broadcast_to(
        jnp.arange(np.prod(shape[1:]), dtype=jnp.float32).reshape(shape[1:]), shape
    )
    got = shuffle_patches(jax.random.key(1), z)
    assert got.shape == shape
    for sample, original in zip(got, z, strict=True):
        np.testing.assert_array_equal(np.sort(sample.ravel()), np.sort(original.ravel()))
    assert (got[0] != got[1]).any()


def test_patches_move_as_a_whole():
    z = jnp.repeat(jnp.repeat(jnp.arange(4.0).reshape(1, 2, 2, 1), 4, 1), 4, 2)
    got = shuffle_patches(jax.random.key(3), z)
    blocks = got.reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 16)
    assert (blocks == blocks[:, :1]).all()
    assert sorted(blocks[:, 0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(4, 3, 3, 8), (4, 16)])
def test_channels_are_permuted_per_sample(shape):
    z = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.float32), shape)
    got = shuffle_channels(jax.random.key(1), z).reshape(4, -1, shape[-1])
    assert (got == got[:, :1]).all()
    np.testing.assert_array_equal(np.sort(got, axis=-1), z.reshape(got.shape))
    assert (got[0] != got[1]).any()
