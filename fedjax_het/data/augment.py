"""Random crop, flip and cutout of stored images, inside the compiled program.

Draws are hashes of (key, position in the batch). The augmentation of a sample therefore does not
depend on the width to which the batch is padded, nor on how the cohort is grouped.
"""

import jax
import jax.numpy as jnp

from fedjax_het.data.shuffle import mix

Array = jax.Array

AUGMENTATIONS = ("crop_flip", "crop_flip_cutout")
_PADDING = 4
_CUTOUT = 16


def draws(key: Array, count: int) -> tuple[Array, Array]:
    """Two independent uniform uint32[count] arrays; entry i depends on `key` and i only."""
    words = jax.random.bits(key, (3,), jnp.uint32)
    first = mix(jnp.arange(count, dtype=jnp.uint32) ^ words[0])
    return mix(first ^ words[1]), mix(first ^ words[2])


def crop_flip(images: Array, sample: Array, draw: Array) -> Array:
    """Reads samples shifted by up to 4 pixels, with zeros outside the image; mirrors half of them.

    The index with which images are read includes the shift and the mirroring, so no padded copy is
    made.

    Args:
      images: stored images, [N, H, W, C] in storage dtype.
      sample: row numbers of `images` to read, int32[B].
      draw: uniform random bits, uint32[B].

    Returns:
      Augmented images, [B, H, W, C] in storage dtype.
    """
    height, width = images.shape[1:3]
    choices = 2 * _PADDING + 1
    down = (draw % choices).astype(jnp.int32) - _PADDING
    right = ((draw >> 8) % choices).astype(jnp.int32) - _PADDING
    mirrored = (draw >> 31) == 1
    row = jnp.arange(height, dtype=jnp.int32)[None, :] + down[:, None]
    column = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32)[None, :], (len(draw), width))
    column = jnp.where(mirrored[:, None], width - 1 - column, column) + right[:, None]
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]
    read = images.at[
        sample[:, None, None],
        jnp.clip(row, 0, height - 1)[:, :, None],
        jnp.clip(column, 0, width - 1)[:, None, :],
    ].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], read, jnp.zeros_like(read))


def cutout(x: Array, draw: Array) -> Array:
    """Zeroes one 16 x 16 square per image, centred at a random pixel and clipped at the border.

    Args:
      x: images, float32[B, H, W, C], normalised, so that zero is the channel's mean.
      draw: uniform random bits, uint32[B].

    Returns:
      Images with the square set to zero, float32[B, H, W, C].

    Reference:
      DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout",
      arXiv 1708.04552; DTFL trains CIFAR with it.
    """
    height, width = x.shape[1:3]
    y0 = ((draw & 0xFFFF) % height).astype(jnp.int32) - _CUTOUT // 2
    x0 = ((draw >> 16) % width).astype(jnp.int32) - _CUTOUT // 2
    row = jnp.arange(height, dtype=jnp.int32)[None, :] - y0[:, None]
    column = jnp.arange(width, dtype=jnp.int32)[None, :] - x0[:, None]
    hole_row, hole_column = (row >= 0) & (row < _CUTOUT), (column >= 0) & (column < _CUTOUT)
    hole = hole_row[:, :, None] & hole_column[:, None, :]
    return jnp.where(hole[..., None], jnp.zeros_like(x), x)
