"""PR-FL's links and windows. Checks of methods/pr_fl.md."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.algorithms.prfl import links
from fedjax_het.algorithms.prfl.links import window_rule
from fedjax_het.algorithms.prfl.ranking import nested_mask, prunable, rank_weights
from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import Flight, Status
from fedjax_het.contract.plan import Timing
from fedjax_het.fleet import presets
from fedjax_het.fleet.published import MIB

VGG11 = 9_747_136
DENSITIES = np.asarray([1, 1, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1])
X = np.nan


arrays = st.integers(0, 2**31 - 1).map(np.random.default_rng)


def layers(rng):
    shapes = ((6, 9), (9,), (9, 5), (5,), (5, 3))
    return {f"{i}": jnp.asarray(rng.standard_normal(s), jnp.float32) for i, s in enumerate(shapes)}


# ---- links ---------------------------------------------------------------------------------------


def test_9_bytes_of_the_three_distributions():
    sizes = np.round(DENSITIES * 1000).astype(np.int64)
    sent = {way: links.sent_bytes(way, sizes) / 1000 for way in links.WAYS}
    assert sent == {"residual": 1.0, "distinct": 2.0, "unicast": 4.2}


@settings(deadline=None, max_examples=10)
@given(arrays)
def test_9_pieces_add_up_to_the_sub_models(rng):
    params = layers(rng)
    leaves = prunable(params)
    n = sum(leaf.size for leaf in leaves)
    rank = rank_weights(params, [jnp.abs(leaf) for leaf in leaves], 0.05, np.ones(len(leaves)))
    counts = sorted(np.floor(np.asarray([0.2, 0.4, 0.4, 1.0]) * n).astype(int))
    models = []
    for count in counts:
        mask = nested_mask(params, rank, jnp.int32(count))
        pairs = zip(leaves, prunable(mask), strict=True)
        models.append([np.where(np.asarray(m), np.asarray(w), 0) for w, m in pairs])
    so_far = [np.zeros_like(leaf) for leaf in models[0]]
    nonzero = 0
    for before, model in zip([so_far, *models], models):
        piece = [b - a for a, b in zip(before, model, strict=True)]
        nonzero += sum(int(np.count_nonzero(p)) for p in piece)
        so_far = [s + p for s, p in zip(so_far, piece, strict=True)]
        for s, m in zip(so_far, model, strict=True):
            np.testing.assert_array_equal(s, m)  # disjoint supports: no rounding
    assert nonzero == sum(int(np.count_nonzero(leaf)) for leaf in models[-1])


@pytest.mark.parametrize(
    ("kind", "down", "up"),
    [
        ("coo64", (185.9, 111.5, 55.8, 18.6), (37.18, 22.31, 11.15, 3.72)),
        ("bitmap", (38.34, 23.47, 12.32, 4.88), (38.34, 23.47, 12.32, 4.88)),
        # 37.2 MiB are the model_size of the author's configuration.
        ("dense", (37.18, 22.31, 11.15, 3.72), (37.18, 22.31, 11.15, 3.72)),
    ],
)
def test_17_sizes_of_vgg11(kind, down, up):
    kept = np.floor(np.asarray([1, 0.6, 0.3, 0.1]) * VGG11).astype(np.int64)
    sizes = np.asarray(links.model_bytes(kind, kept, VGG11, 0)) / MIB
    np.testing.assert_allclose(sizes[0], down, atol=0.06)
    np.testing.assert_allclose(sizes[1], up, atol=0.01)


@pytest.mark.parametrize(
    ("density", "wanted"),
    [
        (np.ones(10), (16.7, 19.6, 27.9, 33.5, 55.8, 83.7, 136.3, 167.3, 167.3, 216.9)),
        (DENSITIES, (16.7, 19.6, 16.7, 20.1, 16.7, 25.1, 13.6, 16.7, 16.7, 21.7)),
    ],
)
def test_18_times_on_the_clients_links(density, wanted):
    fleet = presets.build("prfl", 10, sigma=0.0, flops_per_s=1e30)
    down, up = links.model_bytes("coo64", np.floor(density * VGG11).astype(int), VGG11, 0)
    timing = fleet.timing(np.arange(10), 1.0, down, up, 0.0, None)
    np.testing.assert_allclose(timing.total_s, wanted, atol=0.06)


def test_18_one_server_link():
    sizes, own_s = np.asarray([10, 40, 20, 10]), np.asarray([1.0, 2.0, 8.0, 4.0])
    residual = links.download_s("residual", sizes, own_s, 10.0)
    np.testing.assert_allclose(residual, [1.0, 4.0, 8.0, 4.0])
    distinct = links.download_s("distinct", sizes, own_s, 10.0)
    np.testing.assert_allclose(distinct, [1.0, 3.0 + 4.0, 1.0 + 8.0, 4.0])
    unicast = links.download_s("unicast", sizes, own_s, 10.0)
    np.testing.assert_allclose(unicast, [1.0, 4.0 + 4.0, 2.0 + 8.0, 1.0 + 4.0])
    for way in links.WAYS:
        np.testing.assert_allclose(links.download_s(way, sizes, own_s, np.inf), own_s)


def test_uploads_share_what_the_server_can_receive():
    two = np.asarray([10, 10])
    nobody = np.zeros((0, 3))
    lasts = links.upload_s(np.zeros(2), two, np.ones(2), 15.0, nobody)
    np.testing.assert_allclose(lasts, [1.0, 1.5])  # 5 B/s for a second, then 10
    np.testing.assert_allclose(links.upload_s(np.zeros(2), two, np.ones(2), 20.0, nobody), [1, 1])
    busy = np.asarray([[0.0, 2.0, 15.0]])
    lasts = links.upload_s(np.zeros(1), two[:1], np.ones(1), 15.0, busy)
    np.testing.assert_allclose(lasts, [3.0])  # waits for the one before


@settings(deadline=None, max_examples=25)
@given(arrays, st.integers(1, 6), st.floats(3.0, 40.0))
def test_the_server_never_receives_more_than_it_can(rng, k, capacity):
    start_s, sizes = rng.random(k) * 3, rng.integers(1, 60, k)
    own_s = sizes / rng.uniform(1, 20, k)
    lasts = links.upload_s(start_s, sizes, own_s, capacity, np.zeros((0, 3)))
    assert np.all(lasts >= own_s * (1 - 1e-9))
    for until in np.append(start_s + lasts, 50.0):
        # All that has arrived by then fitted through since the first start.
        done = sizes[start_s + lasts <= until * (1 + 1e-12)].sum()
        assert done <= capacity * (until - start_s.min()) * (1 + 1e-9)


def test_19_factor_on_a_rate():
    rng = np.random.default_rng(0)
    factors = [links.lognormal_mean(rng, 0.3) for _ in range(20_000)]
    assert np.mean(factors) == pytest.approx(1.046, abs=0.002)
    assert np.std(factors) == pytest.approx(0.072, abs=0.002)
    assert links.lognormal_mean(rng, 0.0) == 1.0


# ---- windows -------------------------------------------------------------------------------------


def in_flight(arrives_s, *, version=5, deadline_s=10.0):
    m = len(arrives_s)
    zeros, ones = np.zeros(m), np.ones(m, np.int64)
    timing = Timing(zeros, np.asarray(arrives_s, float), zeros, ones, ones, zeros)
    versions = np.broadcast_to(np.asarray(version, np.int64), (m,))
    return Flight(np.arange(m), versions, zeros, np.full(m, deadline_s), ones, timing)


@pytest.mark.parametrize(
    ("arrives_s", "version", "at_s", "merged"),
    [
        ([3, 7, 12], 5, 10.0, [0, 1]),  # what is there at the deadline
        ([12.5, 20, 30], 5, 21.0, [0, 1]),  # nothing: whole intervals on, to 13; then a single one
        ([3, 14, 15.5], 5, 15.0, [0, 1]),  # a single one: an interval after the second
        ([9.95, 10.05, 10.1, 30], 5, 11.1, [0, 1, 2]),  # ... and after those that came with it
        ([3, 7, 12], 1, 12.0, [0, 1, 2]),  # the first two merges wait for everyone
        ([3], 5, 10.0, [0]),
    ],
)
def test_window_rule(arrives_s, version, at_s, merged):
    closing = window_rule(1.0).close(in_flight(arrives_s, version=version))
    assert closing.at_s == pytest.approx(at_s)
    assert [i for i, s in enumerate(closing.status) if s is Status.MERGED] == merged


def test_one_arrival_a_window():
    close = window_rule(1.0, single=True).close
    closing = close(in_flight([3, 2, 12]))
    assert [s is Status.MERGED for s in closing.status] == [False, True, False]
    assert closing.at_s == 10.0


def test_windows_need_a_length():
    with pytest.raises(InputError, match="interval_s = 0"):
        window_rule(0)
