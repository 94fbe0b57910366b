"""PR-FL's rules one by one; numbers in names are those of the specification's section 12."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.algorithm import Timing, Variables
from fedjax_het.algorithms.prfl import density as rules
from fedjax_het.algorithms.prfl import links
from fedjax_het.algorithms.prfl.buffers import Layout, no_bookings, no_slots
from fedjax_het.algorithms.prfl.controller import Settings, State, adjust
from fedjax_het.algorithms.prfl.merging import moved, sums
from fedjax_het.algorithms.prfl.pace import window_rule
from fedjax_het.algorithms.prfl.ranking import core_sizes, nested_mask, prunable, rank_weights
from fedjax_het.algorithms.staleness import discount
from fedjax_het.clock import Flight, Status
from fedjax_het.errors import InputError
from fedjax_het.fleet import presets
from fedjax_het.fleet.published import MIB

VGG11 = 9_747_136
DENSITIES = np.asarray([1, 1, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1])
X = np.nan


def merged(uploads, weight, previous, *, masked=True, eta=1.0):
    values = jnp.asarray(uploads, jnp.float32)
    num, den = sums(jnp.asarray(weight, jnp.float32), values, masked)
    return np.asarray(moved(jnp.asarray(previous, jnp.float32), num, den, eta))


# ---- MaskFedAvg ----------------------------------------------------------------------------------


def test_1_slide_example():
    uploads = [[1, X, X], [3, X, X], [2, 1, X]]
    np.testing.assert_allclose(merged(uploads, [1, 1, 1], [3, 1, 3]), [2, 1, 3])
    plain = merged(uploads, [1, 1, 1], [3, 1, 3], masked=False)
    np.testing.assert_allclose(plain, [2, 1 / 3, 0], rtol=1e-6)


def test_2_staleness_golden():
    s = np.asarray(discount("polynomial", a=0.6)(np.asarray([1, 3, 5]) - 1))
    np.testing.assert_allclose(s, [1, 0.51728, 0.38073], atol=1e-5)
    np.testing.assert_allclose(s / s.sum(), [0.52687, 0.27254, 0.20059], atol=1e-5)
    assert merged([[1], [2], [X]], s, [9])[0] == pytest.approx(1.340927, abs=1e-6)


def test_2_hinge_of_the_slides():
    s = discount("hinge", a=0.6, b=2.0)(np.asarray([0, 1, 2, 3, 5]))
    np.testing.assert_allclose(s, [1, 1, 1, 1 / 1.6, 1 / 2.8], rtol=1e-6)


arrays = st.integers(0, 2**31 - 1).map(np.random.default_rng)


@settings(deadline=None, max_examples=25)
@given(arrays, st.integers(1, 6), st.floats(0.1, 50))
def test_3_4_mean_over_those_that_have_it(rng, clients, factor):
    uploads = rng.standard_normal((clients, 7)).astype(np.float32)
    uploads[rng.random((clients, 7)) < 0.5] = X
    uploads[:, 0], uploads[:, 1] = X, 1.0
    weight, old = rng.random(clients) + 0.1, rng.standard_normal(7).astype(np.float32)
    new = merged(uploads, weight, old)
    there = ~np.isnan(uploads)
    for k in range(7):
        if not there[:, k].any():
            assert new[k] == old[k]  # bit for bit
            continue
        values = uploads[there[:, k], k]
        want = np.sum(weight[there[:, k]] * values) / np.sum(weight[there[:, k]])
        assert new[k] == pytest.approx(want, rel=1e-4, abs=1e-5)
        assert values.min() - 1e-5 <= new[k] <= values.max() + 1e-5
    np.testing.assert_allclose(merged(uploads, weight * factor, old), new, rtol=1e-4, atol=1e-5)


def test_5_a_weight_that_happens_to_be_zero_counts():
    assert merged([[0.0], [2.0]], [1, 1], [7])[0] == 1.0


def test_6_server_step():
    assert merged([[4.0]], [1], [2.0], eta=0.0)[0] == 2.0
    assert merged([[4.0]], [1], [2.0], eta=0.5)[0] == 3.0


def test_7_nothing_is_divided_by_zero():
    def loss(old):
        num, den = sums(jnp.ones(2), jnp.full((2, 3), jnp.nan), True)
        return jnp.sum(moved(old, num, den, 1.0))

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.ones(3))
    assert float(value) == 3.0
    np.testing.assert_array_equal(slope, np.ones(3))


# ---- masks ---------------------------------------------------------------------------------------


def layers(rng):
    shapes = ((6, 9), (9,), (9, 5), (5,), (5, 3))
    return {f"{i}": jnp.asarray(rng.standard_normal(s), jnp.float32) for i, s in enumerate(shapes)}


@settings(deadline=None, max_examples=15)
@given(arrays)
def test_8_masks_are_nested_and_exact(rng):
    params = layers(rng)
    leaves = prunable(params)
    n = sum(leaf.size for leaf in leaves)
    table = [jnp.asarray(rng.choice([0.0, 0.5, 1.0], leaf.shape), jnp.float32) for leaf in leaves]
    rank = rank_weights(params, table, 0.05, np.ones(len(leaves)))
    assert sorted(np.concatenate([np.ravel(r) for r in rank]).tolist()) == list(range(n))
    core = int(core_sizes(np.asarray([leaf.size for leaf in leaves]), 0.05).sum())
    before = None
    for count in (core, n // 3, n // 2, n):
        mask = prunable(nested_mask(params, rank, jnp.int32(count)))
        assert sum(int(m.sum()) for m in mask) == count
        assert all(bool(m.any()) for m in mask)  # no layer is empty, even at the core
        if before is not None:
            assert not any(bool(jnp.any(b & ~m)) for b, m in zip(before, mask, strict=True))
        before = mask
    # The core is the largest of every layer by magnitude.
    for leaf, r in zip(leaves, rank, strict=True):
        assert int(r.reshape(-1)[jnp.argmax(jnp.abs(leaf))]) < core


def test_8_ranking_order():
    """Important first, then unseen weights by magnitude; the cost of a layer divides."""
    params = {"a": jnp.asarray([[9.0, 0.1, 0.2, -0.3]]), "b": jnp.asarray([[8.0, 0.5]])}
    table = [jnp.asarray([[0.0, 4.0, 0.0, 0.0]]), jnp.asarray([[0.0, 6.0]])]
    rank = rank_weights(params, table, 0.01, np.asarray([1.0, 1.0]))
    assert [r.tolist() for r in rank] == [[[0, 3, 5, 4]], [[1, 2]]]
    dear = rank_weights(params, table, 0.01, np.asarray([1.0, 2.0]))
    assert [r.tolist() for r in dear] == [[[0, 2, 5, 4]], [[1, 3]]]


# ---- densities and recovery ----------------------------------------------------------------------


def loop(rule, time_s, steps=6, **options):
    rho, trail = np.ones(2), []
    for _ in range(steps):
        rho = rule(rho, time_s(rho), np.full(2, 0.05), **options)
        trail.append(round(float(rho[1]), 4))
        assert np.all((rho >= 0.05) & (rho <= 1))
    return trail


def test_10_feedback_golden():
    k = np.asarray([1.0, 4.0])
    assert loop(rules.feedback, lambda rho: k * rho, decimals=2)[:3] == [0.32, 0.26, 0.26]
    fixed = loop(rules.feedback, lambda rho: 0.5 + k * rho, decimals=2)
    assert fixed[:4] == [0.4, 0.3, 0.27, 0.26]
    assert (0.5 + 4 * fixed[-1]) / 1.5 == pytest.approx(1.027, abs=1e-3)


def test_10_ratio_of_whole_model_times_does_not_alternate():
    k = np.asarray([1.0, 4.0])
    assert loop(rules.by_ratio, lambda rho: k * rho) == [0.25] * 6


@pytest.mark.parametrize("rule", [rules.feedback, rules.by_ratio])
def test_10_equal_clients_change_nothing(rule):
    rho = np.ones(3)
    np.testing.assert_array_equal(rule(rho, np.full(3, 7.0), np.full(3, 0.1)), rho)
    np.testing.assert_array_equal(rule(rho, np.full(3, np.nan), np.full(3, 0.1)), rho)


def test_times_are_means_over_the_last_entries():
    times = rules.no_times(2, 3)
    who = np.asarray([1])
    for now_s in (2.0, 3.0, 5.0, 9.0, 17.0):
        times = rules.record(times, who, np.asarray([now_s]))
    mean = rules.mean_times(times)
    assert np.isnan(mean[0])
    assert mean[1] == pytest.approx((2 + 4 + 8) / 3)
    assert times.trainings.tolist() == [0, 5]


def test_11_early_stopping_golden():
    stops, heard = rules.no_stops(1), []
    for x in (0.5, 0.6, 0.6, 0.59, 0.58, 0.585, 0.59, 0.61):
        before = int(stops.misses[0])
        stops, fire = rules.check(stops, np.asarray([x]), 3)
        counted = int(stops.misses[0]) > before
        heard.append("FIRE" if fire[0] else "count" if counted else "ok")
    assert heard == ["ok", "ok", "ok", "count", "count", "FIRE", "count", "ok"]
    assert stops.best[0] == 0.61


NETWORK = Variables({"blocks": (jnp.ones((2, 2)),)}, {})
POOL = Layout(4, 1, 8)


def controlled(density, mode="code", **options):
    n = len(density)
    state = State(
        step=np.asarray(1),
        slots=no_slots(NETWORK, POOL, n),
        booked=no_bookings(POOL, n),
        importance=None,
        rank=[],
        order=None,
        place=np.asarray(0),
        density=np.asarray(density, float),
        floor=np.full(n, 0.1),
        lowest=np.asarray(0.1),
        first_stage=np.asarray(True),
        times=rules.no_times(n, 3),
        stops=rules.no_stops(n + 1),
        armed=np.asarray(False),
        finished=np.asarray(False),
        sent_s=np.zeros((n, 2)),
        uplink=np.zeros((n, 3)),
        best=(),
    )
    given = {"adapt": True, "roll_back": False, "remask": "always", **options}
    common = {"core": 0.05, "increment": 0.2, "patience": 1, "recover": True, "layout": POOL}
    return state, Settings(mode=mode, **common, **given)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_12_recovery_goes_up_by_the_increment(mode):
    """The client never improves after its first score, the server always does."""
    state, options = controlled([0.1], mode=mode)
    trail = []
    for i in range(7):
        state, _, _ = adjust(state, None, options, np.asarray([0.5 - 0.01 * i, 0.1 * i]))
        trail.append(round(float(state.density[0]), 4))
    assert trail == [0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.0]
    assert not state.first_stage


def test_12_times_are_not_looked_at_after_the_first_recovery():
    state, options = controlled([0.9, 0.9])
    times = rules.Times(np.asarray([[1.0] * 3, [4.0] * 3]), np.asarray([9, 9]), np.zeros(2))
    state = state._replace(times=times, first_stage=np.asarray(False))
    after, _, _ = adjust(state, None, options, np.asarray([0.1, 0.1, 0.1]))
    np.testing.assert_array_equal(after.density, [0.9, 0.9])
    slides, options = controlled([0.9, 0.9], mode="paper")
    after, _, _ = adjust(
        slides._replace(times=times, first_stage=np.asarray(False)),
        None,
        options,
        np.asarray([0.1, 0.1, 0.1]),
    )
    np.testing.assert_allclose(after.density, [1.0, 0.25])


def test_the_server_arms_then_raises_the_floor_and_rolls_back():
    state, options = controlled([0.1, 0.6], adapt=False, roll_back=True)
    best = jnp.asarray([1.0])
    buffers = state.slots._replace(weight=state.slots.weight + 7.0), state.booked
    state = state._replace(best=({"w": best}, *buffers, {"i": best}))
    seen = []
    for i, server in enumerate((0.5, 0.4, 0.45, 0.44)):
        model = {"w": jnp.asarray([float(i)])}
        slots = state.slots._replace(weight=state.slots.weight * 0.0 + i)
        state = state._replace(slots=slots, importance={"i": best})
        clients = [0.1 * i, 0.1 * i]  # always better
        state, model, info = adjust(state, model, options, np.asarray([*clients, server]))
        seen.append((bool(state.armed), float(state.lowest), float(model["w"][0])))
        assert float(state.slots.weight[0]) == float(model["w"][0])  # buffers go with the model
        assert info["recovered"] == []
    # Best at the first evaluation; armed at the second; rolled back at the third and fourth.
    assert [row[0] for row in seen] == [False, True, True, True]
    np.testing.assert_allclose([row[1] for row in seen], [0.1, 0.1, 0.3, 0.5])
    assert [row[2] for row in seen] == [0.0, 1.0, 0.0, 0.0]
    np.testing.assert_allclose(state.density, [0.5, 0.6])


def test_16_live_and_frozen_staleness():
    late = discount("polynomial", a=0.6)
    arrived = float(late(np.asarray(2)))
    np.testing.assert_allclose(arrived, 0.5173, atol=1e-4)
    np.testing.assert_allclose(late(np.asarray([2, 3, 4])), [0.5173, 0.4353, 0.3807], atol=1e-4)


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
