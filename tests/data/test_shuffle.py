import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from fedjax_het.data.shuffle import permute


def _permutations(size: int, count: int, seed: int) -> np.ndarray:
    """[count, size], one permutation per key."""
    keys = jax.random.split(jax.random.key(seed), count)
    positions = jnp.arange(size, dtype=jnp.int32)
    return np.asarray(jax.jit(jax.vmap(lambda k: permute(positions, jnp.int32(size), k)))(keys))


def test_is_a_bijection_for_every_size():
    positions = jnp.arange(200, dtype=jnp.int32)
    key = jax.random.key(0)
    every = jax.jit(jax.vmap(lambda n: permute(positions % n, n, jax.random.fold_in(key, n))))
    images = np.asarray(every(jnp.arange(1, 201, dtype=jnp.int32)))
    for size, image in zip(range(1, 201), images, strict=True):
        assert sorted(image[:size]) == list(range(size))


@pytest.mark.parametrize("size", [4097, 60_000, 250_007])
def test_is_a_bijection_for_large_sizes(size):
    image = _permutations(size, 1, seed=size)[0]
    assert np.array_equal(np.sort(image), np.arange(size))
    assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 5 / np.sqrt(size)


def test_all_orders_of_a_small_set_are_equally_likely():
    drawn = _permutations(4, 24_000, seed=1) @ np.array([64, 16, 4, 1])
    _, times = np.unique(drawn, return_counts=True)
    assert len(times) == 24
    assert stats.chisquare(times).pvalue > 1e-3


def test_every_position_is_uniform():
    size = 11
    drawn = _permutations(size, 22_000, seed=2)
    table = np.stack([np.bincount(column, minlength=size) for column in drawn.T])
    assert stats.chisquare(table.ravel(), ddof=2 * size - 2).pvalue > 1e-3


def test_neighbours_are_independent():
    size = 1000
    drawn = _permutations(size, 400, seed=3)
    gap = (drawn[:, 1:] - drawn[:, :-1]) % size
    times = np.bincount(gap.ravel() * 10 // size, minlength=10)
    assert stats.chisquare(times).pvalue > 1e-3
    pair = np.corrcoef(drawn[:, :-1].ravel(), drawn[:, 1:].ravel())[0, 1]
    assert abs(pair + 1 / (size - 1)) < 4 / np.sqrt(drawn.size)


def test_keys_give_different_orders():
    drawn = _permutations(50, 20, seed=4)
    assert len(np.unique(drawn, axis=0)) == 20
