"""PR-FL's rules one by one. Checks of methods/pr_fl.md."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_het.algorithms.prfl import density as rules
from fedjax_het.algorithms.prfl.buffers import Layout
from fedjax_het.algorithms.prfl.controller import Control, adjust, first_state
from fedjax_het.algorithms.prfl.density import Density, Recovery
from fedjax_het.algorithms.prfl.merging import moved, sums
from fedjax_het.algorithms.prfl.ranking import core_sizes, nested_mask, prunable, rank_weights
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.staleness import discount

VGG11 = 9_747_136
DENSITIES = np.asarray([1, 1, 0.6, 0.6, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1])
X = np.nan


def merged(uploads, weight, previous, *, masked=True, eta=1.0):
    """MaskFedAvg of uploads in which X stands for what is pruned."""
    values = np.asarray(uploads, np.float32)
    there = ~np.isnan(values)
    held = jnp.asarray(np.where(there, values, 7.0))  # what is pruned may have any value
    num, den = sums(jnp.asarray(weight, jnp.float32), held, jnp.asarray(there), masked)
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
        num, den = sums(jnp.ones(2), jnp.ones((2, 3)), jnp.zeros((2, 3), bool), True)
        return jnp.sum(moved(old, num, den, 1.0))

    value, slope = jax.jit(jax.value_and_grad(loss))(jnp.ones(3))
    assert float(value) == 3.0
    np.testing.assert_array_equal(slope, np.ones(3))


def test_what_is_not_a_number_counts_as_pruned():
    num, den = sums(jnp.ones(2), jnp.asarray([[jnp.nan], [4.0]]), jnp.ones(2, bool), True)
    assert moved(jnp.ones(1), num, den, 1.0)[0] == 4.0


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


def controlled(start, mode="code", *, adapt=True, roll_back=False):
    options = Density(start=start, lowest=0.1, interval=3)
    recovery = Recovery(increment=0.2, patience=1, roll_back=roll_back)
    control = Control(mode, adapt, options, recovery, POOL, np.ones(1))
    state = first_state(NETWORK, control, len(start))
    return state._replace(step=np.asarray(1), place=np.asarray(0)), control


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
