"""FIARSE, check by check."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    SIZES,
    assert_close,
    batch_norm_problem,
    differ,
    digits_problem,
    exits_problem,
    fleet,
    make_chunk,
    one_round,
    scalar_problem,
    situation,
)

from fedjax_het.algorithms import build
from fedjax_het.algorithms.fiarse import pruning
from fedjax_het.common.errors import InputError
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Variables
from fedjax_het.local.importance import effective_weights, importance_factor, kth_largest
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

N = len(SIZES)
TRAINING = {"learning_rate": 0.1, "batch_size": 4}
QUARTERS = (1, 0.5, 0.1)


@pytest.fixture(scope="module")
def problem():
    return digits_problem()


@pytest.fixture(scope="module")
def start(problem):
    """Random biases as well, so that no two weights are of the same magnitude."""
    return spread_out(problem.model.init(jax.random.key(0)))


def spread_out(variables):
    leaves, structure = jax.tree.flatten(variables.params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    noise = [0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)]
    params = jax.tree.unflatten(structure, [a + b for a, b in zip(leaves, noise)])
    return variables._replace(params=params)


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def mask_of(algorithm, shared, level):
    return algorithm.mask({"level": jnp.int32(level)}, shared)


def planned(algorithm, problem, variables, **now):
    return algorithm.plan((), variables, situation(problem, **now))[0]


# ---- the gradient ----------------------------------------------------------------------------


def test_the_multiplier_of_the_specification():
    theta, tau = jnp.asarray([0.1, 0.2, 0.3, -0.4]), jnp.float32(0.2)
    kept = effective_weights(theta, tau)
    np.testing.assert_array_equal(kept, np.float32([0, 0.2, 0.3, -0.4]))
    gradient = jax.grad(lambda w: jnp.sum(effective_weights(w, tau)))(theta)
    np.testing.assert_allclose(gradient, [0, 1.5, 1.48, 13 / 9], rtol=1e-6)
    np.testing.assert_array_equal(gradient, importance_factor(theta, tau))
    # It multiplies the gradient of the weights that were computed with.
    outer = jax.grad(lambda w: jnp.sum(effective_weights(w, tau) ** 2))(theta)
    np.testing.assert_allclose(outer, 2 * kept * gradient, rtol=1e-6)


def test_a_threshold_of_zero_holds_zeros_with_a_plain_gradient():
    theta = jnp.asarray([0.0, -0.5])
    gradient = jax.grad(lambda w: jnp.sum(effective_weights(w, jnp.float32(0))))(theta)
    np.testing.assert_array_equal(gradient, [1, 1])


# ---- masks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("zeros", [0, 40])
def test_the_kth_largest_is_exact(zeros):
    rng = np.random.default_rng(3)
    values = np.abs(rng.normal(size=200)).astype(np.float32) * 10.0 ** rng.integers(-30, 30, 200)
    values = values.astype(np.float32)
    values[:zeros] = 0
    values[50:60] = values[50]
    counts = np.asarray([1, 2, 57, 150, 199, 200], np.int32)
    found = kth_largest([jnp.asarray(values[:120]), jnp.asarray(values[120:])], counts)
    np.testing.assert_array_equal(found, -np.sort(-values)[counts - 1])


def test_a_mask_holds_exactly_the_largest_weights_of_all_layers(problem, start):
    algorithm = build("fiarse", problem, sizes=QUARTERS, **TRAINING)
    shared = planned(algorithm, problem, start).shared
    size = np.abs(flat(start.params))
    assert len(np.unique(size)) == len(size)
    for level, share in enumerate(QUARTERS):
        count = int(share * len(size))
        mask = flat(mask_of(algorithm, shared, level))
        expected = np.zeros(len(size), bool)
        expected[np.argsort(-size)[:count]] = True
        np.testing.assert_array_equal(mask, expected)
        assert shared.threshold[level] == np.min(size[expected])


def test_masks_are_nested_and_the_sign_does_not_matter(problem, start):
    algorithm = build("fiarse", problem, sizes=QUARTERS, **TRAINING)
    shared = planned(algorithm, problem, start).shared
    wide, middle, narrow = (flat(mask_of(algorithm, shared, level)) for level in range(3))
    assert np.all(wide)
    assert np.all(middle | ~narrow)
    assert 0 < narrow.sum() < middle.sum() < wide.sum()
    turned = start._replace(params=jax.tree.map(jnp.negative, start.params))
    chex.assert_trees_all_equal(planned(algorithm, problem, turned).shared, shared)
    theta = start.params["blocks"][0]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(
        importance_factor(theta, shared.threshold[1]),
        importance_factor(-theta, shared.threshold[1]),
    )


def test_size_one_holds_everything_and_its_threshold_is_the_smallest_weight(problem, start):
    algorithm = build("fiarse", problem, sizes=(1,), **TRAINING)
    shared = planned(algorithm, problem, start).shared
    assert shared.threshold[0] == np.min(np.abs(flat(start.params)))
    assert np.all(flat(mask_of(algorithm, shared, 0)))


def test_weights_of_equal_magnitude_are_held_together(problem):
    variables = problem.model.init(jax.random.key(0))  # biases of zero
    net = pruning(problem, (1, 0.99))
    shared = jax.jit(net.sub_networks)(variables.params)
    assert net.counts[1] > np.sum(flat(variables.params) != 0)
    assert shared.threshold[1] == 0
    assert np.all(flat(net.mask(shared, jnp.int32(1))))


def test_norms_belong_to_every_sub_network():
    problem = batch_norm_problem()
    algorithm = build("fiarse", problem, sizes=(1, 0.01), **TRAINING)
    variables = problem.model.init(jax.random.key(0))
    plan = planned(algorithm, problem, variables)
    mask = mask_of(algorithm, plan.shared, 1)
    flags = {
        jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree.leaves_with_path(mask)
    }
    norms = {path: leaf for path, leaf in flags.items() if "Norm" in path}
    assert norms
    assert all(leaf.shape == () and leaf for leaf in norms.values())
    weights = (64 * 8 + 8) + (8 * 10 + 10)
    assert sum(leaf.sum() for path, leaf in flags.items() if path not in norms) == weights // 100


# ---- training --------------------------------------------------------------------------------


def test_size_one_for_everyone_is_fedavg_times_the_multiplier(problem, start):
    options = {**TRAINING, "local_steps": 1, "weighting": "uniform"}
    ours, _ = one_round(build("fiarse", problem, sizes=(1,), **options), problem, start)
    plain, _ = one_round(build("fedavg", problem, **options), problem, start)
    assert differ(ours.params, plain.params)
    tau = jnp.float32(np.min(np.abs(flat(start.params))))
    expected = jax.tree.map(
        lambda w, new: w + importance_factor(w, tau) * (new - w), start.params, plain.params
    )
    assert_close(ours.params, expected)
    assert np.max(np.abs(flat(ours.params) - flat(plain.params))) > 1e-4


def test_the_threshold_stays_while_weights_cross_it():
    """Against training by hand, on batches of all samples of the only client."""
    problem = digits_problem((6,))
    variables = spread_out(problem.model.init(jax.random.key(0)))
    options = {"learning_rate": 1.0, "batch_size": 6, "epochs": 4}
    algorithm = build("fiarse", problem, sizes=(0.3,), levels=(0,), **options)
    got, _ = one_round(algorithm, problem, variables)
    data = problem.data
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)

    def loss(params):
        logits, _ = problem.model.apply(Variables(params, variables.stats), x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1))

    size = np.abs(flat(variables.params))
    tau = np.sort(size)[::-1][int(0.3 * len(size)) - 1]
    theta, active = variables.params, []
    for _ in range(4):
        active.append(np.abs(flat(theta)) >= tau)
        used = jax.tree.map(lambda w: jnp.where(jnp.abs(w) >= tau, w, 0.0), theta)

        def moved(w, g):
            size = jnp.abs(w)
            factor = 1 + 2 * tau * size / (size + tau) ** 2
            return jnp.where(size >= tau, w - factor * g, w)

        theta = jax.tree.map(moved, theta, jax.grad(loss)(used))
    assert np.any(active[0] & ~active[-1])  # some crossed the threshold
    assert not np.any(~active[0] & active[-1])
    assert_close(got.params, theta, rtol=2e-4, atol=2e-5)


def test_no_client_moves_what_it_does_not_hold(problem, start):
    """Neither momentum nor weight decay does, and such weights stay bit for bit."""
    options = {**TRAINING, "momentum": 0.9, "weight_decay": 0.1, "epochs": 2}
    algorithm = build("fiarse", problem, sizes=(0.5, 0.1), levels=[1] * N, **options)
    held = flat(mask_of(algorithm, planned(algorithm, problem, start).shared, 1))
    after, _ = one_round(algorithm, problem, start)
    np.testing.assert_array_equal(flat(after.params)[~held], flat(start.params)[~held])
    assert np.all(flat(after.params)[held] != flat(start.params)[held])


def test_heads_after_blocks_do_not_train():
    problem = exits_problem()
    variables = problem.model.init(jax.random.key(0))
    for holders in ("mask", "nonzero"):
        algorithm = build("fiarse", problem, holders=holders, **TRAINING)
        after, _ = one_round(algorithm, problem, variables)
        chex.assert_trees_all_equal(after.params["exits"], variables.params["exits"])
        assert differ(after.params["blocks"], variables.params["blocks"])


# ---- the merge -------------------------------------------------------------------------------


@pytest.mark.parametrize(("holders", "expected"), [("mask", 0.5), ("nonzero", 1.0)])
def test_a_weight_moves_by_the_mean_over_its_holders(problem, start, holders, expected):
    """Client 0 moves everything by 1, client 1 holds half and does not move, client 2 nothing."""
    algorithm = build("fiarse", problem, sizes=QUARTERS, holders=holders, **TRAINING)
    shared = planned(algorithm, problem, start).shared
    levels = jnp.asarray([0, 1, 2], jnp.int32)
    mask = jax.vmap(lambda level: algorithm.mask({"level": level}, shared))(levels)
    moves = jnp.asarray([1.0, 0.0, 1.0])
    delta = jax.tree.map(
        lambda w, m: jnp.where(m, moves.reshape((3,) + (1,) * w.ndim), 0.0), start.params, mask
    )
    chunk = make_chunk(start, np.ones(3), delta, mask=mask, shared=shared)
    one = jax.tree.map(lambda m: m[0], mask)
    acc = algorithm.merge.add(algorithm.merge.init((), start, one), chunk)
    merged = algorithm.merge.finalize(acc, start, shared).variables
    step = flat(merged.params) - flat(start.params)
    wide, middle, narrow = (flat(mask_of(algorithm, shared, level)) for level in range(3))
    np.testing.assert_allclose(step[wide & ~middle], 1.0, atol=1e-6)
    np.testing.assert_allclose(step[middle & ~narrow], expected, atol=1e-6)
    both = 2 / 3 if holders == "mask" else 1.0
    np.testing.assert_allclose(step[narrow], both, atol=1e-6)


def test_the_server_has_a_step_size(problem, start):
    one, half = (
        one_round(build("fiarse", problem, server_learning_rate=rate, **TRAINING), problem, start)[
            0
        ]
        for rate in (1.0, 0.5)
    )
    middle = jax.tree.map(lambda w, new: w + 0.5 * (new - w), start.params, one.params)
    assert_close(half.params, middle)


def test_statistics_are_averaged_without_the_step_size():
    problem = batch_norm_problem()
    variables = problem.model.init(jax.random.key(0))
    one, half = (
        one_round(
            build("fiarse", problem, server_learning_rate=rate, **TRAINING), problem, variables
        )[0]
        for rate in (1.0, 0.5)
    )
    chex.assert_trees_all_equal(one.stats, half.stats)
    assert differ(one.stats, variables.stats)
    assert differ(one.params, half.params)


# ---- sizes and prices ------------------------------------------------------------------------


def test_a_device_gets_the_largest_size_that_its_speed_affords(start):
    sizes, speed = (1, 0.5, 0.25, 0.1), np.asarray([1, 0.5, 0.3, 0.25, 0.24, 0.1, 0.01, 0.99])
    base = digits_problem()
    problem = Problem(base.model, base.data, fleet(N, flops_per_s=speed * 3e6))
    plan = planned(build("fiarse", problem, sizes=sizes, **TRAINING), problem, start)
    assert plan.rows["level"].tolist() == [0, 1, 2, 2, 3, 3, 3, 1]
    levels = [2, 1, 0, 0, 1, 2, 3, 3]
    own = build("fiarse", problem, sizes=sizes, levels=levels, **TRAINING)
    assert planned(own, problem, start).rows["level"].tolist() == levels
    assert own.submodels.of_client == tuple(f"size_{sizes[i]:g}" for i in levels)


def test_prices(problem, start):
    weights = (64 * 12 + 12) + (12 * 8 + 8) + (8 * 10 + 10)
    levels = [0, 1, 2] + [0] * (N - 3)
    options = {"sizes": (1, 0.5, 0.01), "levels": levels, **TRAINING}
    timing = planned(build("fiarse", problem, **options), problem, start).timing
    sparse = [4 * int(s * weights) + -(-weights // 8) for s in (0.5, 0.01)]
    assert timing.bytes_up[:3].tolist() == [4 * weights, *sparse]
    assert timing.bytes_down[:3].tolist() == [4 * weights, *sparse]
    whole = planned(build("fedavg", problem, **TRAINING), problem, start).timing
    np.testing.assert_array_equal(timing.flops, whole.flops)
    ideal = planned(build("fiarse", problem, flops="ideal", **options), problem, start).timing
    np.testing.assert_allclose(ideal.flops[:3], whole.flops[:3] * [1, 0.5, 0.01])
    # Places of almost all weights would cost more than the weights left out.
    dense = planned(build("fiarse", problem, sizes=(0.99,), **TRAINING), problem, start).timing
    np.testing.assert_array_equal(dense.bytes_up, whole.bytes_up)


def test_norms_and_statistics_are_always_sent():
    problem = batch_norm_problem()
    variables = problem.model.init(jax.random.key(0))
    plan = planned(build("fiarse", problem, sizes=(0.5,), **TRAINING), problem, variables)
    weights = (64 * 8 + 8) + (8 * 10 + 10)
    stats = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables.stats))
    scales = 4 * 2 * 8
    assert set(plan.timing.bytes_down) == {4 * (weights // 2) + -(-weights // 8) + scales + stats}


# ---- evaluation ------------------------------------------------------------------------------


def test_every_size_is_evaluated(problem, start):
    algorithm = build("fiarse", problem, sizes=(1, 0.3, 0.05), **TRAINING)
    result = simulate(algorithm, problem, rounds=3)
    last = result.record.metrics[-1]
    assert last["accuracy[size_1]"] == last["accuracy"]
    assert last["loss[size_1]"] == pytest.approx(last["loss"], rel=1e-6)
    values = [last[f"loss[size_{size:g}]"] for size in (1, 0.3, 0.05)]
    assert len({*values}) == 3
    assert last["local_accuracy"] is not None
    assert {*result.record.summary["submodels"]} == {"size_1", "size_0.3", "size_0.05"}
    net = pruning(problem, (1, 0.3, 0.05))
    models = algorithm.submodels.models((), start)
    for (_, part), count in zip(models.values(), net.counts, strict=True):
        kept = flat(part.params)
        assert np.sum(kept != 0) == count
        np.testing.assert_array_equal(kept[kept != 0], flat(start.params)[kept != 0])


def test_training_reads_the_sub_network_only(problem, start):
    """Other values of the weights that nobody holds change nothing."""
    algorithm = build("fiarse", problem, sizes=(0.5,), **TRAINING)
    shared = planned(algorithm, problem, start).shared
    mask = mask_of(algorithm, shared, 0)
    halved = start._replace(
        params=jax.tree.map(lambda w, m: jnp.where(m, w, w * 0.5), start.params, mask)
    )
    (a, _), (b, _) = (one_round(algorithm, problem, each) for each in (start, halved))
    chex.assert_trees_all_equal(masks.apply(mask, a.params), masks.apply(mask, b.params))


def test_a_model_without_layers_is_refused():
    with pytest.raises(InputError, match="has no layer of weights to prune"):
        build("fiarse", scalar_problem(), **TRAINING)
