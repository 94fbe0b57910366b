"""FedDrop (methods/baselines.md 13; methods/fedpmt.md check 15): random sub-networks by width."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    SIZES,
    assert_close,
    batch_norm_problem,
    digits,
    digits_problem,
    exits_problem,
    fleet,
    one_round,
    situation,
)

from fedjax_het.algorithms import build
from fedjax_het.algorithms.feddrop import dense_groups, squared_rates
from fedjax_het.algorithms.networks import networks
from fedjax_het.common.errors import InputError
from fedjax_het.contract import widths
from fedjax_het.fleet import presets
from fedjax_het.models.cnn import leaf_cnn
from fedjax_het.models.mlp import mlp
from fedjax_het.models.resnet import resnet
from fedjax_het.models.units import layout_of
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 8}
HIDDEN = (12, 8)
GROUPS = ("fc1/Dense_0/bias", "fc2/Dense_0/bias")


@pytest.fixture(scope="module")
def problem():
    return digits_problem()


@pytest.fixture(scope="module")
def start(problem):
    return problem.model.init(jax.random.key(0))


def feddrop(problem, **options):
    return build("feddrop", problem, **TRAINING, **options)


def plan_of(method, problem, **now):
    return method.plan((), None, situation(problem, **now))[0]


def orders_of(method, plan):
    """The orders of the units of every client of a plan, int32[k, K] by group."""
    level = jnp.asarray([route.width for route in plan.routes], jnp.int32)
    of = lambda level, row: method.widths.orders(level, row, plan.shared)
    return jax.device_get(jax.jit(jax.vmap(of))(level, plan.rows))


def units_of(method, problem, **now):
    """The units that every client of a plan holds, as lists by group, and the plan."""
    plan = plan_of(method, problem, **now)
    counts = [method.widths.counts[route.width] for route in plan.routes]
    orders = orders_of(method, plan)
    held = [{g: orders[g][i, : own[g]].tolist() for g in orders} for i, own in enumerate(counts)]
    return held, plan


# ---- which units ---------------------------------------------------------------------------------


def draws(method, level, count):
    """Whether each unit is held in `count` rounds of eight clients, bool[draws, K] by group."""

    def held(key, client):
        order = method.widths.order({"client": client}, {"key": key})
        counts = method.widths.counts[level]
        return {group: jnp.argsort(order[group]) < counts[group] for group in order}

    keys = jax.random.key_data(jax.random.split(jax.random.key(3), count))
    rows = jax.vmap(jax.vmap(held, in_axes=(None, 0)), in_axes=(0, None))
    found = jax.jit(rows)(keys, jnp.arange(8, dtype=jnp.int32))
    return {group: np.asarray(units).reshape(8 * count, -1) for group, units in found.items()}


def test_weights_are_covered_as_often_as_their_units_are_held_together(problem):
    """r_out * r_in between two hidden layers, r in the first and the last layer."""
    method = feddrop(problem, rate=0.5)
    first, second = draws(method, 1, 4000).values()
    assert (first.shape[1], second.shape[1]) == HIDDEN
    np.testing.assert_allclose(first.mean(axis=0), 0.5, atol=0.012)
    np.testing.assert_allclose(second.mean(axis=0), 0.5, atol=0.012)
    both = np.einsum("nk,nj->kj", first.astype(np.float64), second) / len(first)
    np.testing.assert_allclose(both, 0.25, atol=0.01)
    assert set(first.sum(axis=1)) == {6}
    assert set(second.sum(axis=1)) == {4}


def test_units_are_held_so_often_that_the_scaler_keeps_their_mean(problem):
    """E[mask / (1 - p)] = 1, within four standard deviations, for every rate."""
    method = feddrop(problem, rates=(1.0, 0.75, 0.5, 0.25))
    for level, rate in enumerate((1.0, 0.75, 0.5, 0.25)):
        for units in draws(method, level, 500).values():
            sigma = np.sqrt((1 - rate) / rate / len(units))
            np.testing.assert_allclose(units.mean(axis=0) / rate, 1.0, atol=4 * sigma + 1e-12)


def test_units_differ_across_devices_rounds_and_seeds_but_not_repetitions(problem):
    method = feddrop(problem, rate=0.5)
    first, _ = units_of(method, problem)
    assert len({str(sorted(held[GROUPS[0]])) for held in first}) > 5
    for other in ({"round": 1}, {"seed": 1}):
        assert first != units_of(method, problem, **other)[0]
    assert first == units_of(feddrop(problem, rate=0.5), problem)[0]
    # A client's units do not depend on who else was sampled.
    assert units_of(method, problem, clients=[6, 5])[0] == [first[6], first[5]]


def test_clients_of_rate_one_hold_every_unit(problem):
    held, plan = units_of(feddrop(problem), problem)
    wide = [held[i] for i, route in enumerate(plan.routes) if route.width == 0]
    assert len(wide) == 2  # the fastest third
    assert all(own[g] == list(range(k)) for own in wide for g, k in zip(GROUPS, HIDDEN))


def test_a_residual_stage_has_one_permutation():
    model = resnet((8, 8, 1), units_per_group=2, bottleneck=False, width=8)
    setting = Problem(model, digits(SIZES, (8, 8, 1)), fleet(len(SIZES)))
    method = feddrop(setting, rate=0.5)
    plan = plan_of(method, setting, clients=[4])
    orders = {group: order[0] for group, order in orders_of(method, plan).items()}
    keep = widths.members(method.widths.layout, method.widths.counts[1], orders)
    blocks = dict(zip((block.name for block in model.blocks), keep.params["blocks"], strict=True))

    def outputs(block, layer):
        mask = blocks[block][layer]["Conv_0"]["kernel"]
        return np.flatnonzero(np.asarray(mask).any(axis=(0, 1, 2))).tolist()

    stream = outputs("stem", "ConvNorm_0")
    assert len(stream) == 4
    assert outputs("group1.1", "ConvNorm_1") == outputs("group1.2", "ConvNorm_1") == stream
    inside = [outputs(f"group1.{b}", "ConvNorm_0") for b in (1, 2)]
    assert inside[0] != inside[1]
    for group in ("group2", "group3"):
        stage = [outputs(f"{group}.{b}", "ConvNorm_1") for b in (1, 2)]
        assert stage[0] == stage[1]


# ---- training and merging ------------------------------------------------------------------------


@pytest.mark.parametrize("merge", ["complete", "holders"])
def test_without_dropout_it_is_fedavg(problem, merge):
    """With rates of one, by capacity or for all."""
    fedavg = simulate(build("fedavg", problem, **TRAINING), problem, rounds=2)
    options = {"complete": {"capacity": (1.0,) * 8}, "holders": {"rate": 1.0}}[merge]
    result = simulate(feddrop(problem, merge=merge, **options), problem, rounds=2)
    assert_close(result.variables, fedavg.variables, rtol=0, atol=1e-6)
    times = [[row["virtual_s"] for row in r.record.metrics] for r in (result, fedavg)]
    assert times[0] == times[1]


def one_step(start, x, y, units, scale):
    """Deltas of one step of SGD on the sub-network of these units, in their places."""
    first, second = units
    blocks = [block["Dense_0"] for block in start.params["blocks"]]
    cuts = [
        (np.arange(64), np.asarray(first)),
        (np.asarray(first), np.asarray(second)),
        (np.asarray(second), np.arange(10)),
    ]
    own = [
        {"kernel": block["kernel"][np.ix_(*cut)], "bias": block["bias"][cut[1]]}
        for block, cut in zip(blocks, cuts, strict=True)
    ]

    def loss(own):
        z = jnp.asarray(x)
        for layer in own[:-1]:
            z = jax.nn.relu(scale * (z @ layer["kernel"] + layer["bias"][None]))
        z = z @ own[-1]["kernel"] + own[-1]["bias"][None]
        return optax.softmax_cross_entropy_with_integer_labels(z, jnp.asarray(y)).mean()

    deltas, held = [], []
    for block, cut, gradient in zip(blocks, cuts, jax.grad(loss)(own), strict=True):
        delta = {name: np.zeros(block[name].shape) for name in ("kernel", "bias")}
        holds = {name: np.zeros(block[name].shape, bool) for name in ("kernel", "bias")}
        delta["kernel"][np.ix_(*cut)] = -0.1 * gradient["kernel"]
        delta["bias"][cut[1]] = -0.1 * gradient["bias"]
        holds["kernel"][np.ix_(*cut)] = holds["bias"][cut[1]] = True
        deltas.append(delta)
        held.append(holds)
    return deltas, held


@pytest.mark.parametrize("merge", ["complete", "holders"])
@pytest.mark.parametrize("scaler", [True, False])
def test_a_round_is_that_of_the_sub_networks_by_hand(problem, start, merge, scaler):
    """Also that server and clients mean the same units: each update is put where it comes from."""
    method = feddrop(problem, rates=(1.0, 0.5, 0.25), merge=merge, scaler=scaler)
    held, plan = units_of(method, problem)
    assert {route.width for route in plan.routes} == {0, 1}
    merged, _ = one_round(method, problem, start, plan)
    begin = np.concatenate([[0], np.cumsum(SIZES)])
    num = [{"kernel": 0.0, "bias": 0.0} for _ in range(3)]
    den = [{"kernel": 0.0, "bias": 0.0} for _ in range(3)]
    for client, (units, route) in enumerate(zip(held, plan.routes, strict=True)):
        mine = slice(begin[client], begin[client + 1])
        scale = (1.0, 2.0)[route.width] if scaler else 1.0
        x, y = problem.data.x[mine], problem.data.y[mine]
        deltas, holds = one_step(start, x, y, [units[g] for g in GROUPS], scale)
        for b in range(3):
            for name in ("kernel", "bias"):
                num[b][name] += SIZES[client] * deltas[b][name]
                den[b][name] += SIZES[client] * holds[b][name]
    for b, block in enumerate(merged.params["blocks"]):
        for name in ("kernel", "bias"):
            over = sum(SIZES) if merge == "complete" else np.maximum(den[b][name], 1)
            want = start.params["blocks"][b]["Dense_0"][name] + num[b][name] / over
            np.testing.assert_allclose(block["Dense_0"][name], want, rtol=1e-4, atol=1e-6)


def test_dropped_coordinates_keep_their_bits_also_under_weight_decay(problem, start):
    method = feddrop(problem, rate=0.5, weight_decay=0.1, momentum=0.9)
    (held,), plan = units_of(method, problem, clients=[2])
    merged, _ = one_round(method, problem, start, plan)
    old, new = jax.device_get((start.params["blocks"], merged.params["blocks"]))
    for b, (group, size) in enumerate(zip(GROUPS, HIDDEN, strict=True)):
        dropped = np.setdiff1d(np.arange(size), held[group])
        assert len(dropped) == size // 2
        for part in (new[b]["Dense_0"]["kernel"].T, new[b]["Dense_0"]["bias"]):
            was = old[b]["Dense_0"]["kernel"].T if part.ndim == 2 else old[b]["Dense_0"]["bias"]
            assert not np.any(part[dropped] != was[dropped])
        after = new[b + 1]["Dense_0"]["kernel"], old[b + 1]["Dense_0"]["kernel"]
        assert not np.any(after[0][dropped] != after[1][dropped])
        assert np.any(
            new[b]["Dense_0"]["kernel"][:, held[group]]
            != old[b]["Dense_0"]["kernel"][:, held[group]]
        )
    assert np.all(new[2]["Dense_0"]["bias"] != old[2]["Dense_0"]["bias"])  # outputs are all held


def test_evaluation_uses_the_whole_network(problem):
    """Inverted dropout needs no scaling at inference."""
    result = simulate(feddrop(problem, rate=0.5), problem, rounds=1)
    logits, _ = jax.jit(problem.model.apply)(result.variables, problem.data.test_x)
    accuracy = np.mean(np.argmax(logits, axis=1) == problem.data.test_y)
    assert result.record.metrics[-1]["accuracy"] == pytest.approx(accuracy)


# ---- rates and prices ----------------------------------------------------------------------------


def rates_of(method, plan):
    """The share of the units of the first group that every client holds."""
    counts = [method.widths.counts[route.width][GROUPS[0]] for route in plan.routes]
    return np.asarray(counts) / HIDDEN[0]


def test_latency_rates_golden():
    """Dropout rates 0, 0, .29289 and .64645 for T_fix = 2, T_scaled = 8."""
    fixed, scaled = np.full(2, 2.0), np.full(2, 8.0)
    for latency_s, dropped in ((12, 0), (10, 0), (6, 0.29289), (3, 0.64645)):
        rates = squared_rates(latency_s, fixed, scaled)
        np.testing.assert_allclose(1 - rates, dropped, atol=5e-6)
    with pytest.raises(InputError, match="must exceed the 2 s"):
        squared_rates(2.0, fixed, scaled)


@functools.cache
def cnn_problem():
    images = np.zeros((4, 28, 28, 1), np.uint8)
    labels = np.zeros(4, np.int32)
    data = digits((2, 2))
    data = dataclasses.replace(data, x=images, y=labels, test_x=images, test_y=labels)
    return Problem(leaf_cnn(), data, fleet(2))


def test_fully_connected_units_of_a_cnn():
    model = leaf_cnn()
    assert dense_groups(model, layout_of(model)) == {"fc1/Dense_0/bias": 2}
    model = mlp((64,), 10, hidden=HIDDEN)
    assert dense_groups(model, layout_of(model)) == dict(zip(GROUPS, (0, 1), strict=True))
    model = resnet((8, 8, 1), units_per_group=1, bottleneck=False, width=8)
    assert dense_groups(model, layout_of(model)) == {}


@pytest.mark.parametrize(
    ("scope", "shares"),
    [("all_hidden", (1.0, 0.5691, 0.2588, 0.0691)), ("fc", (1.0, 0.9666, 0.9332, 0.8999))],
)
def test_costs_of_sub_networks_golden(scope, shares):
    """On FedPMT's network: what FedDrop costs with three quarters, half, a quarter of the units."""
    method = feddrop(cnn_problem(), rates=(1.0, 0.75, 0.5, 0.25), scope=scope, capacity=(1.0, 0.05))
    np.testing.assert_allclose(method.widths.shares, shares, atol=1e-4)
    plan = plan_of(method, cnn_problem())
    assert [route.width for route in plan.routes] == [0, 3]  # the narrowest if none is affordable
    groups = {"conv1/Conv_0/bias", "conv2/Conv_0/bias", "fc1/Dense_0/bias"}
    assert set(method.widths.layout.sizes) == (groups if scope != "fc" else {"fc1/Dense_0/bias"})
    assert np.diff(plan.timing.flops)[0] < 0


def test_clients_train_the_widest_network_that_they_afford(problem):
    own = networks(problem, (1.0, 0.75, 0.5, 0.25))
    given = np.asarray([1.0, 0.99, own.shares[1], own.shares[2], 0.9 * own.shares[2], 1e-6, 1, 1])
    method = feddrop(problem, rates=(1.0, 0.75, 0.5, 0.25), capacity=given)
    plan = plan_of(method, problem)
    assert [route.width for route in plan.routes] == [0, 1, 1, 2, 3, 3, 0, 0]
    speeds = plan_of(feddrop(problem), problem)
    assert len({route.width for route in speeds.routes}) == 3
    changing = feddrop(problem, capacity=lambda t: np.full(8, 1.0 if t else 0.3))
    widths_of = [{r.width for r in plan_of(changing, problem, round=t).routes} for t in (0, 1)]
    assert widths_of[0] != {0} == widths_of[1]


def test_the_clock_charges_what_is_trained(problem):
    method = feddrop(problem)
    held, plan = units_of(method, problem)
    kept0, kept1 = (np.asarray([len(own[group]) for own in held]) for group in GROUPS)
    matrices = 64 * kept0 + kept0 * kept1 + kept1 * 10
    vectors = kept0 + kept1 + 10
    assert plan.timing.bytes_up.tolist() == (4 * (matrices + vectors)).tolist()
    assert plan.timing.bytes_down.tolist() == plan.timing.bytes_up.tolist()
    step = 6 * matrices - 2 * 64 * kept0  # the first layer needs no input gradient
    np.testing.assert_allclose(plan.timing.flops, step * problem.data.sizes, rtol=1e-12)
    assert len(set(kept0)) == 3


@pytest.mark.parametrize("make", [exits_problem, batch_norm_problem])
def test_what_belongs_to_the_whole_model_travels_too(make):
    """Running statistics and exit heads: without dropout every byte of FedAvg is charged."""
    whole = make()
    plans = [
        plan_of(method, whole)
        for method in (feddrop(whole, rate=1.0), build("fedavg", whole, **TRAINING))
    ]
    for ours, theirs in zip(plans[0].timing, plans[1].timing, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_static_norms_have_no_statistics_to_send():
    setting = batch_norm_problem()
    trained, static = (
        plan_of(feddrop(setting, rate=0.5, static_norm=static), setting).timing
        for static in (False, True)
    )
    assert (trained.bytes_up - static.bytes_up).tolist() == [4 * 2 * 4] * 3  # of four units
    result = simulate(feddrop(setting, rate=0.5, static_norm=True), setting, rounds=1)
    layer = result.variables.stats["blocks"][0]
    start = setting.model.init(jax.random.key(0)).stats["blocks"][0]
    # Of all samples, so that units have statistics that no client held.
    for new, old in zip(jax.tree.leaves(layer), jax.tree.leaves(start), strict=True):
        assert np.all(np.asarray(new) != np.asarray(old))


def test_running_statistics_are_the_mean_over_their_holders():
    setting = batch_norm_problem()
    start = setting.model.init(jax.random.key(0))
    method = feddrop(setting, rate=0.5)
    held, plan = units_of(method, setting, clients=[0, 1])
    merged, _ = one_round(method, setting, start, plan)
    alone = [
        one_round(method, setting, start, plan_of(method, setting, clients=[k]))[0] for k in (0, 1)
    ]
    (group,) = held[0]
    holds = np.asarray([np.isin(np.arange(8), own[group]) for own in held])
    assert (holds[0] != holds[1]).any()
    old, new, *parts = (
        np.asarray(jax.tree.leaves(v.stats["blocks"][0])) for v in (start, merged, *alone)
    )
    weight = np.asarray(plan.weight)[:, None] * holds
    changes = sum(w[None] * (part - old) for w, part in zip(weight, parts, strict=True))
    want = old + changes / np.maximum(weight.sum(axis=0), 1)[None]
    np.testing.assert_allclose(new, want, rtol=1e-5, atol=1e-6)
    assert not np.any(new[:, ~holds.any(axis=0)] != old[:, ~holds.any(axis=0)])


def test_rates_and_prices_follow_a_fleet_that_is_redrawn():
    constant = digits_problem()
    devices = presets.build("dtfl", 8, redraw_every=1, redraw_share=1.0)
    moving = Problem(constant.model, constant.data, devices)
    later = 3
    frozen = dataclasses.replace(devices.at(later), redraw=None)
    now = Problem(constant.model, constant.data, frozen)
    assert np.any(now.fleet.flops_per_s != devices.flops_per_s)
    for options in ({}, {"scope": "fc", "latency_s": 2.0}):
        plans = [plan_of(feddrop(where, **options), where, round=later) for where in (moving, now)]
        assert plans[0].routes == plans[1].routes
        for ours, theirs in zip(plans[0].timing, plans[1].timing, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_latency_gives_the_widest_rate_that_meets_it(problem):
    fedavg = plan_of(build("fedavg", problem, **TRAINING), problem).timing.total_s
    latency_s = 0.6 * float(fedavg.max())
    method = feddrop(problem, scope="fc", latency_s=latency_s, rates=(1.0, 0.75, 0.5, 0.25))
    plan = plan_of(method, problem)
    # All layers are dense, so that everything scales with the square of the rate.
    limit = np.minimum(1.0, np.sqrt(latency_s / fedavg))
    grid = np.asarray((1.0, 0.75, 0.5, 0.25))
    want = [grid[grid <= own][0] for own in limit]
    assert rates_of(method, plan).tolist() == want
    assert len(set(want)) > 1
    whole = limit == 1.0
    np.testing.assert_allclose(plan.timing.total_s[whole], fedavg[whole])
    # A matrix at the edge of the dropped part shrinks with the rate, not its square.
    assert np.all(plan.timing.total_s[~whole] < fedavg[~whole])


def test_no_rate_shortens_the_latency_of_the_links():
    setting = digits_problem()
    far = Problem(setting.model, setting.data, fleet(8, latency_s=0.5))
    with pytest.raises(InputError, match="must exceed the 1 s of the layers"):
        feddrop(far, scope="fc", latency_s=0.9)
    feddrop(far, scope="fc", latency_s=1.1)


def test_a_device_needs_memory_for_its_sub_network_only(problem):
    whole = int(problem.cost.memory_bytes(0, 2, 8))
    tight = Problem(problem.model, problem.data, fleet(8, memory_bytes=np.full(8, 0.7 * whole)))
    with pytest.raises(InputError, match="exceed the memory"):
        feddrop(tight, rate=1.0)
    feddrop(tight, rate=0.5)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scope": "conv"}, "scope 'conv'"),
        ({"merge": "mean"}, "merge 'mean'"),
        ({"latency_s": 1.0}, "set scope='fc'"),
        ({"scope": "fc", "latency_s": 1.0, "capacity": (1.0,) * 8}, "leave capacity out"),
        ({"rate": 0.5, "capacity": (1.0,) * 8}, "leave out rate"),
        ({"rate": 1.5}, r"numbers in \(0, 1\]"),
        ({"capacity": (1.0, 1.0)}, "each of the 8 clients"),
        ({"capacity": (2.0,) * 8}, r"\(0, 1\]"),
    ],
)
def test_options_are_checked(problem, options, words):
    with pytest.raises(InputError, match=words):
        feddrop(problem, **options)


def test_a_model_without_such_layers_has_nothing_to_drop():
    with pytest.raises(InputError, match="has no hidden units"):
        feddrop(digits_problem(hidden=()))
    images = Problem(
        resnet((8, 8, 1), units_per_group=1, bottleneck=False, width=8),
        digits(SIZES, (8, 8, 1)),
        fleet(len(SIZES)),
    )
    with pytest.raises(InputError, match="no fully connected hidden layer"):
        feddrop(images, scope="fc")


def test_groups_that_are_kept_must_be_some(problem):
    for kept in (("fc9",), GROUPS):
        with pytest.raises(InputError, match="must be some, but not all, of the groups"):
            networks(problem, (1.0, 0.5), kept=kept)
