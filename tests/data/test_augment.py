import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.data.augment import crop_flip, cutout, draws


def _images(shape=(5, 12, 10, 3)):
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def test_crop_flip_is_pad_mirror_crop():
    images = _images()
    sample = np.array([4, 0, 0, 2, 1, 3], np.int32)
    draw, _ = draws(jax.random.key(1), len(sample))
    out = np.asarray(jax.jit(crop_flip)(jnp.asarray(images), jnp.asarray(sample), draw))
    padded = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    for row, (s, d) in enumerate(zip(sample, np.asarray(draw), strict=True)):
        down, right, mirrored = int(d) % 9, (int(d) >> 8) % 9, int(d) >> 31
        crop = padded[s, down : down + 12, right : right + 10]
        np.testing.assert_array_equal(out[row], crop[:, ::-1] if mirrored else crop)


def test_all_shifts_and_both_mirrors_occur_equally_often():
    draw = np.asarray(draws(jax.random.key(2), 8100)[0]).astype(np.int64)
    shifts = np.bincount(draw % 9 * 9 + (draw >> 8) % 9, minlength=81)
    assert shifts.min() > 60
    assert shifts.max() < 145
    assert abs((draw >> 31).mean() - 0.5) < 0.02


def test_draws_do_not_depend_on_the_width():
    narrow, wide = draws(jax.random.key(3), 4), draws(jax.random.key(3), 9)
    for a, b in zip(narrow, wide, strict=True):
        np.testing.assert_array_equal(a, b[:4])
    assert not np.array_equal(*narrow)


def test_cutout_zeroes_one_clipped_square():
    x = jnp.ones((300, 32, 32, 2))
    _, draw = draws(jax.random.key(4), 300)
    out = np.asarray(jax.jit(cutout)(x, draw))
    for image, d in zip(out, np.asarray(draw).astype(np.int64), strict=True):
        y0, x0 = int(d & 0xFFFF) % 32 - 8, int(d >> 16) % 32 - 8
        expected = np.ones((32, 32, 2))
        expected[max(y0, 0) : y0 + 16, max(x0, 0) : x0 + 16] = 0
        np.testing.assert_array_equal(image, expected)
