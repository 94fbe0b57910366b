from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_het.data import Pipeline, from_arrays, gather, prepare
from fedjax_het.data.batches import in_batches


def _data(augment=None, normalise=None, shape=(8, 6, 3), n=40, clients=None):
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    y = np.arange(n)  # the label is the sample's id
    clients = [[3], list(range(4, 17)), list(range(17, 40))] if clients is None else clients
    return from_arrays(
        x, y, x, y, clients=clients, augment=augment, normalise=normalise, num_classes=n
    )


@partial(jax.jit, static_argnums=(1, 5))
def _gather(data, spec, client, step, batch, max_batch, key):
    return gather(data, spec, client, step, batch, max_batch, key)


def _batches(data, client, steps, batch, max_batch, seed=0):
    device = data.device()
    key = jax.random.key(seed)
    return [
        jax.tree.map(
            np.asarray,
            _gather(
                device,
                data.pipeline,
                jnp.int32(client),
                jnp.int32(step),
                jnp.int32(batch),
                max_batch,
                key,
            ),
        )
        for step in steps
    ]


@pytest.mark.parametrize(("client", "batch"), [(0, 1), (0, 5), (1, 5), (1, 13), (1, 6), (2, 4)])
def test_an_epoch_visits_every_sample_once(client, batch):
    data = _data()
    mine = data.client_samples(client)
    per_epoch = -(-len(mine) // batch)
    orders = []
    for epoch in range(2):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        batches = _batches(data, client, steps, batch, max_batch=13)
        seen = np.concatenate([b.y[b.weight > 0] for b in batches])
        assert sorted(seen) == sorted(mine)
        assert all(b.weight.sum() == batch for b in batches[:-1])
        assert all(np.isin(b.y, mine).all() for b in batches), "padding must be the client's own"
        assert all(np.array_equal(b.weight, np.sort(b.weight)[::-1]) for b in batches)
        orders.append(seen)
    if len(mine) > 5:
        assert not np.array_equal(*orders)


def test_rows_labels_and_normalisation_agree_with_numpy():
    data = _data(normalise=((0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    (batch,) = _batches(data, 2, [1], batch=6, max_batch=9)
    expected = (data.x[batch.y] / 255.0 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.25, 0.3])
    assert batch.x.dtype == np.float32
    assert batch.weight.dtype == np.float32
    np.testing.assert_allclose(batch.x, expected, atol=2e-6)
    assert batch.weight.tolist() == [1.0] * 6 + [0.0] * 3


@pytest.mark.parametrize("augment", [None, "crop_flip", "crop_flip_cutout"])
def test_width_and_vectorisation_do_not_change_a_batch(augment):
    data = _data(augment=augment, shape=(20, 20, 1), normalise=(0.1307, 0.3081))
    (narrow,) = _batches(data, 2, [3], batch=5, max_batch=5)
    (wide,) = _batches(data, 2, [3], batch=5, max_batch=11)
    chex.assert_trees_all_equal(narrow, jax.tree.map(lambda a: a[:5], wide))

    device, key = data.device(), jax.random.key(0)
    ids = jnp.arange(3, dtype=jnp.int32)
    stacked = jax.jit(
        jax.vmap(lambda c: gather(device, data.pipeline, c, jnp.int32(3), jnp.int32(5), 5, key))
    )(ids)
    for client in range(3):
        (alone,) = _batches(data, client, [3], batch=5, max_batch=5)
        chex.assert_trees_all_equal(jax.tree.map(lambda a, c=client: a[c], stacked), alone)


def test_the_key_decides_order_and_augmentation():
    data = _data(augment="crop_flip")
    first, again = (_batches(data, 2, [0], 8, 8)[0] for _ in range(2))
    chex.assert_trees_all_equal(first, again)
    other = _batches(data, 2, [0], 8, 8, seed=1)[0]
    assert not np.array_equal(first.y, other.y)


def test_one_program_serves_all_clients_steps_and_batch_sizes():
    data = _data()
    device = data.device()
    traces = []

    @jax.jit
    def counted(client, step, batch, key):
        traces.append(1)
        return gather(device, data.pipeline, client, step, batch, 8, key)

    for client, step, batch in [(0, 0, 1), (1, 4, 8), (2, 30, 3)]:
        counted(jnp.int32(client), jnp.int32(step), jnp.int32(batch), jax.random.key(step))
    assert len(traces) == 1


def test_tokens_and_sequence_labels_pass_unchanged():
    tokens = np.arange(60).reshape(6, 10)
    data = from_arrays(
        tokens, tokens + 1, tokens, tokens + 1, clients=[[0, 1], [2, 3, 4, 5]], num_classes=61
    )
    (batch,) = _batches(data, 1, [0], batch=3, max_batch=3)
    assert batch.x.dtype == np.int32
    assert batch.x.shape == (3, 10)
    np.testing.assert_array_equal(batch.y, batch.x + 1)
    assert np.isin(batch.x[:, 0] // 10, [2, 3, 4, 5]).all()


def test_prepare_scales_by_storage_type():
    audio = np.array([[-32768, 0, 16384]], np.int16)
    np.testing.assert_array_equal(prepare(audio, Pipeline()), [[-1.0, 0.0, 0.5]])
    pixels = np.array([[0, 51, 255]], np.uint8)
    np.testing.assert_allclose(prepare(pixels, Pipeline((0.2,), (0.5,))), [[-0.4, 0.0, 1.6]], 1e-6)
    features = np.array([[2.0, 4.0]], np.float32)
    np.testing.assert_array_equal(prepare(features, Pipeline((1.0, 2.0), (1.0, 2.0))), [[1.0, 1.0]])
    tokens = np.array([[1, 2]], np.int32)
    assert prepare(tokens, Pipeline()).dtype == jnp.int32


@pytest.mark.parametrize("count", [3, 64, 130])
def test_evaluation_sees_every_sample_once_and_then_the_first_again(count):
    x = np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)
    cut = in_batches({"a": x}, np.arange(count))
    y = cut.y
    assert cut.x["a"].shape == (*y.shape, 2)
    np.testing.assert_array_equal(cut.weight.ravel(), np.arange(y.size) < count)
    np.testing.assert_array_equal(cut.sample, y)
    seen = np.ravel(y)
    np.testing.assert_array_equal(seen, np.arange(seen.size) % count)
    assert seen.size - count < y.shape[1] <= count
