"""Shuffling of what is sent: every sample's own random permutation of patches or of channels."""

import jax
import jax.numpy as jnp


def shuffle_patches(key: jax.Array, z: jax.Array, patch: int = 4) -> jax.Array:
    """Permutes square patches of every sample's map among themselves.

    The size of a patch is the largest common divisor of `patch` and both sides, so that patches
    tile the map.

    Args:
      key: typed PRNG key.
      z: `[n, height, width, channels]`.
      patch: side of a patch.
    """
    n, height, width, channels = z.shape
    side = next(s for s in range(patch, 0, -1) if height % s == 0 and width % s == 0)
    rows, columns = height // side, width // side
    tiles = z.reshape(n, rows, side, columns, side, channels).transpose(0, 1, 3, 2, 4, 5)
    tiles = _permute(key, tiles.reshape(n, rows * columns, -1))
    tiles = tiles.reshape(n, rows, columns, side, side, channels).transpose(0, 1, 3, 2, 4, 5)
    return tiles.reshape(z.shape)


def shuffle_channels(key: jax.Array, z: jax.Array) -> jax.Array:
    """Permutes the channels (last axis) of every sample, as the code of DTFL does."""
    flat = z.reshape(z.shape[0], -1, z.shape[-1])
    return _permute(key, flat.transpose(0, 2, 1)).transpose(0, 2, 1).reshape(z.shape)


def _permute(key: jax.Array, z: jax.Array) -> jax.Array:
    """An independent permutation of the second axis for every entry of the first."""
    keys = jax.random.split(key, z.shape[0])
    order = jax.vmap(lambda k: jax.random.permutation(k, z.shape[1]))(keys)
    return jnp.take_along_axis(z, order[:, :, None], axis=1)
