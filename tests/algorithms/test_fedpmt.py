"""FedPMT, check by check; the numbers are those of the list of invariants it was built against.

1 suffix               5 untouched layer        9 FLOP table           13 completion time
2 FedAvg reduction     6 singletons            10 real savings         14 uplink bytes
3 frozen exactness     7 gradient or weights   11 non-iid fixed point  15 test_feddrop.py
4 aggregation golden   8 subtree gradient      12 O(1/T)               16 width semantics
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    assert_same,
    differ,
    digits_problem,
    fleet,
    make_plan,
    one_round,
    scalar_problem,
    scalars,
    situation,
    values_of,
)

from fedjax_het import masks
from fedjax_het.aggregation import masked_mean
from fedjax_het.algorithm import Chunk, ClientResult, Variables
from fedjax_het.algorithms import build
from fedjax_het.algorithms.fedpmt import assign_depths
from fedjax_het.cohort import Cohort
from fedjax_het.data.federated import from_arrays
from fedjax_het.errors import InputError
from fedjax_het.fleet.cost import cost_table
from fedjax_het.group import Round, group_program
from fedjax_het.masks import Route
from fedjax_het.models.cnn import leaf_cnn
from fedjax_het.problem import Problem
from fedjax_het.simulation import simulate

pytestmark = pytest.mark.usefixtures("quick_compile")

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
L = 3  # blocks of the digits problem


@pytest.fixture(scope="module")
def problem():
    return digits_problem()


@pytest.fixture(scope="module")
def start(problem):
    return problem.model.init(jax.random.key(0))


def depths_of(algorithm, problem, start, round=0):
    plan, _ = algorithm.plan((), start, situation(problem, round=round))
    return L - plan.rows["first"], plan


# ---- 1-3: what a client trains ---------------------------------------------------------------


def test_01_every_client_trains_a_suffix(problem, start):
    algorithm = build("fedpmt", problem, **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)
    assert set(depth.tolist()) == {1, 2, 3}  # three speeds, three depths
    for k, row in enumerate(plan.rows["first"]):
        mask = algorithm.mask({"first": row}, None)
        upsilon = [{bool(leaf) for leaf in jax.tree.leaves(block)} for block in mask["blocks"]]
        assert all(len(flags) == 1 for flags in upsilon)  # a bias goes with its kernel
        flags = [flag.pop() for flag in upsilon]
        assert flags == sorted(flags)
        assert flags[-1]
        assert sum(flags) == depth[k]
        assert plan.routes[k] == Route(int(row), L - 1)


def test_02_with_every_depth_full_it_is_fedavg(problem):
    runs = [
        simulate(build(name, problem, **TRAINING, **options), problem, rounds=3)
        for name, options in (("fedavg", {}), ("fedpmt", {"capacity": np.ones(8)}))
    ]
    assert_close(runs[0].variables, runs[1].variables, rtol=0, atol=1e-6)
    assert [row["virtual_s"] for row in runs[0].record.metrics] == [
        row["virtual_s"] for row in runs[1].record.metrics
    ]


@pytest.fixture(scope="module")
def clients(problem, start):
    """Every client's own parameters after training at its depth, and the merged model."""
    algorithm = build("fedpmt", problem, **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)

    def local(route, start, data, task):
        result = algorithm.local(route, start, data, task)
        trained, _ = masks.split(start.params, route)
        own = masks.join(jax.tree.map(jnp.add, trained, result.delta), start.params)
        return result._replace(aux=own)

    cohort = Cohort(algorithm._replace(local=local), problem, execution="masked")
    merged, outputs = one_round(algorithm, problem, start, plan, cohort=cohort)
    return depth, plan, merged, outputs.aux


def test_03_frozen_layers_keep_their_bits(problem, start, clients):
    depth, _, _, own = clients
    for k, d in enumerate(depth):
        for b in range(L):
            mine = jax.tree.map(lambda leaf, k=k: leaf[k], own["blocks"][b])
            if b < L - d:
                assert_same(mine, jax.device_get(start.params["blocks"][b]))
            else:
                assert differ(mine, start.params["blocks"][b])


# ---- 4-7: aggregation ------------------------------------------------------------------------

SAMPLES = (10, 20, 30)
FIRST = np.int32([3, 1, 0])  # depths 1, 3, 4 of 4
DELTA = np.float32([[0, 0, 0, 1], [0, 2, 3, 4], [5, 6, 7, 8]])


def golden_algorithm(problem, zero_fill=False):
    """FedPMT whose clients move by the rows of DELTA instead of training."""
    algorithm = build("fedpmt", problem, **TRAINING)

    def local(route, start, data, task):
        del data
        moved = {
            "blocks": tuple({"w": task.row["delta"][b]} for b in range(4)),
            "exits": (),
        }
        trained = masks.split(moved, route)[0]
        mask = None if task.mask is None else masks.split(task.mask, route)[0]
        loss = jnp.float32(0.0)
        return ClientResult(masks.apply(mask, trained), start.stats, loss, task.steps)

    algorithm = algorithm._replace(local=local)
    return algorithm._replace(mask=None) if zero_fill else algorithm


def golden_plan(problem, weight, full_routes=False):
    routes = [Route(0 if full_routes else int(f), 3) for f in FIRST]
    rows = {"first": FIRST, "delta": DELTA}
    return make_plan(problem, routes=routes, rows=rows, weight=weight)


@pytest.mark.parametrize(
    ("weight", "wanted"), [(SAMPLES, [5, 4.4, 5.4, 5.5]), ((1, 1, 1), [5, 4, 5, 13 / 3])]
)
@pytest.mark.parametrize("execution", ["routed", "masked"])
def test_04_aggregation_golden(weight, wanted, execution):
    problem = scalar_problem(SAMPLES)
    algorithm = golden_algorithm(problem)
    plan = golden_plan(problem, weight)
    merged, _ = one_round(algorithm, problem, scalars([0] * 4), plan, execution=execution)
    np.testing.assert_allclose(values_of(merged), wanted, rtol=1e-6)


def test_04_both_weightings_are_what_the_plan_says():
    problem = digits_problem()
    start = problem.model.init(jax.random.key(0))
    for weighting, weight in (("samples", problem.data.sizes), ("uniform", np.ones(8))):
        algorithm = build("fedpmt", problem, weighting=weighting, **TRAINING)
        np.testing.assert_array_equal(depths_of(algorithm, problem, start)[1].weight, weight)


def test_04_dividing_by_everybody_is_caught():
    """The negative control: averaging absent layers as zeros gives the golden's wrong row."""
    problem = scalar_problem(SAMPLES)
    algorithm = golden_algorithm(problem, zero_fill=True)
    plan = golden_plan(problem, SAMPLES, full_routes=True)
    merged, _ = one_round(algorithm, problem, scalars([0] * 4), plan)
    np.testing.assert_allclose(values_of(merged), [2.5, 22 / 6, 4.5, 5.5], rtol=1e-6)


def test_04_the_columns_of_a_sum_to_one():
    """If all contributors agree on a change, that is the change, whatever their weights."""
    problem = scalar_problem(SAMPLES)
    algorithm = golden_algorithm(problem)
    plan = golden_plan(problem, SAMPLES)._replace(
        rows={"first": FIRST, "delta": np.full((3, 4), 7.0, np.float32)}
    )
    merged, _ = one_round(algorithm, problem, scalars([1] * 4), plan)
    np.testing.assert_allclose(values_of(merged), [8.0] * 4, rtol=1e-6)


def test_05_layers_nobody_trains_never_change(problem):
    algorithm = build("fedpmt", problem, depths=(1, 2), **TRAINING)
    before = []

    def update(state, variables, merged, report):
        before.append(variables)
        return algorithm.update(state, variables, merged, report)

    result = simulate(algorithm._replace(update=update), problem, rounds=4)
    old, new = before[0].params["blocks"], result.variables.params["blocks"]
    assert_same(new[0], old[0])
    assert differ(new[1], old[1])
    assert differ(new[2], old[2])


def test_06_a_layer_with_one_trainer_becomes_that_trainer_s(problem, start):
    algorithm = build("fedpmt", problem, capacity=[0.5] * 7 + [1.0], **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)
    assert depth.tolist().count(3) == 1
    cohort = Cohort(algorithm, problem)
    merged, _ = one_round(algorithm, problem, start, plan, cohort=cohort)
    only = plan._replace(
        **{
            name: jax.tree.map(lambda a: np.asarray(a)[-1:], getattr(plan, name))
            for name in ("clients", "steps", "batch", "weight", "timing", "rows")
        },
        routes=plan.routes[-1:],
    )
    alone, _ = one_round(algorithm, problem, start, only, cohort=cohort)
    assert_close(merged.params["blocks"][0], alone.params["blocks"][0])
    assert differ(merged.params["blocks"][2], alone.params["blocks"][2])


def test_07_averaging_updates_or_weights_is_the_same(start, clients):
    depth, plan, merged, own = clients
    for b in range(L):
        held = depth >= L - b
        weight = np.where(held, plan.weight, 0.0)
        for new, mine in zip(
            jax.tree.leaves(merged.params["blocks"][b]), jax.tree.leaves(own["blocks"][b])
        ):
            wanted = np.tensordot(weight / weight.sum(), mine, 1)
            np.testing.assert_allclose(new, wanted, rtol=1e-5, atol=1e-6)


# ---- 8-10: what it costs ---------------------------------------------------------------------


def test_08_the_subtree_s_gradient_is_the_masked_full_gradient(problem, start):
    """One step of one client at every depth, against the step of the whole network."""
    algorithm = build("fedpmt", problem, local_steps=1, **TRAINING)
    cohorts = {e: Cohort(algorithm, problem, execution=e, chunk=1) for e in ("routed", "masked")}

    def step(first, execution):
        plan = make_plan(
            problem, clients=[2], routes=[Route(first, L - 1)], rows={"first": np.int32([first])}
        )
        merged, _ = one_round(algorithm, problem, start, plan, cohort=cohorts[execution])
        return jax.tree.map(np.subtract, *jax.device_get((merged.params, start.params)))

    full = step(0, "masked")
    for first in range(L):
        routed = step(first, "routed")
        assert_close(routed["blocks"][first:], full["blocks"][first:], rtol=1e-5, atol=1e-7)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(routed["blocks"][:first]))


@pytest.fixture(scope="module")
def cnn_cost():
    return cost_table(leaf_cnn())


def test_09_flop_table(cnn_cost):
    assert cnn_cost.names == ("conv1", "conv2", "fc1", "fc2")
    assert cnn_cost.param_count.tolist() == [832, 51_264, 1_606_144, 5_130]
    assert cnn_cost.forward_flops.tolist() == [1_254_400, 20_070_400, 3_211_264, 10_240]
    depth = np.arange(1, 5)
    total = cnn_cost.step_flops(4 - depth, np.full(4, 3))
    assert total.tolist() == [24_556_544, 27_778_048, 51_059_712, 72_384_512]
    forward = cnn_cost.forward_flops.sum()
    assert (total - forward).tolist() == [10_240, 3_231_744, 26_513_408, 47_838_208]
    np.testing.assert_allclose(total / total[-1], [0.3393, 0.3838, 0.7054, 1.0], atol=5e-5)
    assert forward / total[-1] == pytest.approx(0.33911, abs=5e-6)
    assert np.all(np.diff(total) > 0)


@pytest.fixture(scope="module")
def cnn_problem():
    """The CNN of the table on two clients of 32 random images."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (64, 28, 28, 1), np.uint8)
    y = rng.integers(0, 10, 64)
    data = from_arrays(x, y, x[:2], y[:2], clients=np.repeat([0, 1], 32), num_classes=10)
    return Problem(leaf_cnn(), data, fleet(2))


def test_10_the_compiled_programs_really_leave_work_out(cnn_problem, full_compile):
    """FLOPs that the compiler counts in the cohort's own programs, relative to FedAvg's."""
    options = {"learning_rate": 0.1, "batch_size": 32}
    methods = {name: build(name, cnn_problem, **options) for name in ("fedavg", "fedpmt")}
    start = jax.eval_shape(cnn_problem.model.init, jax.random.key(0))
    data = cnn_problem.data.device()

    def flops(method, depth):
        cohort = Cohort(methods[method], cnn_problem)
        row = None if method == "fedavg" else {"first": np.int32([4 - depth])}
        plan = make_plan(cnn_problem, clients=[0], rows=row, batch=32)
        shapes = cohort._mask_shapes(plan)
        acc = jax.eval_shape(lambda: methods[method].merge.init((), start, shapes))
        _, rows = cohort._rows(plan, [0], 1, None)
        common = Round(jax.random.key(0), jnp.float32(1.0), None)
        program = group_program(methods[method], Route(4 - depth, 3), 1, None)
        compiled = jax.jit(program).lower(acc, start, data, rows, common).compile()
        return compiled.cost_analysis()["flops"]

    full = flops("fedavg", 4)
    share = {depth: flops("fedpmt", depth) / full for depth in (1, 2, 3, 4)}
    for depth, wanted in {1: 0.339, 2: 0.384, 3: 0.705}.items():
        assert share[depth] == pytest.approx(wanted, rel=0.05), share
    # The full route with a mask of depth 1 is what a mask-only method would run: nothing saved.
    assert share[4] == pytest.approx(1.0, rel=0.02), share


# ---- 11, 12: where it converges, and how fast -------------------------------------------------


def test_11_fixed_point_on_data_that_disagree():
    """f_k = |w - c_k|^2 / 2, c = (1, 2, 6): each layer goes to the mean of those who train it."""
    problem = scalar_problem(SAMPLES)
    algorithm = build("fedpmt", problem, **TRAINING)

    def local(route, start, data, task):
        del data
        trained, frozen = masks.split(start.params, route)
        mask = masks.split(task.mask, route)[0]

        def objective(params):
            every = jax.tree.leaves(masks.join(params, frozen))
            return 0.5 * sum(jnp.square(w - task.row["centre"]) for w in every)

        def step(_, params):
            grads = masks.apply(mask, jax.grad(objective)(params))
            return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)

        params = jax.lax.fori_loop(0, 5, step, trained)
        delta = jax.tree.map(jnp.subtract, params, trained)
        return ClientResult(delta, start.stats, objective(params), task.steps)

    def rounds(first, count=200):
        cohort = Cohort(algorithm._replace(local=local), problem)
        plan = make_plan(
            problem,
            routes=[Route(int(f), 3) for f in first],
            rows={"first": first, "centre": np.float32([1, 2, 6])},
        )
        variables = scalars([0] * 4)
        for _ in range(count):
            variables, _ = one_round(algorithm, problem, variables, plan, cohort=cohort)
        return values_of(variables)

    np.testing.assert_allclose(rounds(FIRST), [6, 4.4, 4.4, 23 / 6], atol=1e-4)
    np.testing.assert_allclose(rounds(np.int32([0, 0, 0]), 60), [23 / 6] * 4, atol=1e-4)


def test_12_the_gap_shrinks_as_one_over_t(full_compile):
    """A quadratic with a coupled Hessian, noisy gradients, nine devices of depth 1, 3 and 4."""
    hessian = np.float32(
        [[2.0, 0.5, 0.2, 0.1], [0.5, 1.5, 0.4, 0.2], [0.2, 0.4, 1.5, 0.5], [0.1, 0.2, 0.5, 1.0]]
    )
    eigenvalues = np.linalg.eigvalsh(hessian)
    mu, smooth, local_steps, devices, repetitions = eigenvalues[0], eigenvalues[-1], 2, 9, 100
    gamma = max(8 * smooth / mu, local_steps)
    horizons = (250, 500, 1000, 2000)
    mean = masked_mean()
    as_variables = lambda w: Variables(
        {"blocks": tuple({"w": w[b]} for b in range(4)), "exits": ()},
        {"blocks": ({},) * 4, "exits": ()},
    )

    def gaps(depth):
        live = np.arange(4)[None, :] >= 4 - np.asarray(depth)[:, None]  # bool[devices, 4]
        mask = as_variables(jnp.asarray(live).T).params

        def one_round(w, t, key):
            rate = 2.0 / (mu * (gamma + t * local_steps))
            noise = jax.random.normal(key, (local_steps, devices, 4))
            own = jnp.broadcast_to(w, (devices, 4))
            for e in range(local_steps):
                own = own - rate * jnp.where(live, own @ hessian + noise[e], 0.0)
            start = as_variables(w)
            acc = mean.init((), start, jax.tree.map(lambda m: m[0], mask))
            acc = mean.add(
                acc,
                Chunk(
                    client=jnp.arange(devices),
                    weight=jnp.ones(devices),
                    delta=as_variables((own - w[None]).T).params,
                    stats_delta=start.stats,
                    mask=mask,
                    start=start,
                    row=None,
                    shared=None,
                ),
            )
            merged, _ = mean.finalize(acc, start, None)
            return jnp.stack([block["w"] for block in merged.params["blocks"]])

        @jax.jit
        def run(key):
            def step(w, t):
                keys = jax.random.split(jax.random.fold_in(key, t), repetitions)
                w = jax.vmap(one_round, (0, None, 0))(w, t.astype(jnp.float32), keys)
                return w, 0.5 * jnp.mean(jnp.sum(w * (w @ hessian), axis=1))

            return jax.lax.scan(step, jnp.ones((repetitions, 4)), jnp.arange(max(horizons)))[1]

        gap = np.asarray(run(jax.random.key(0)))
        # A window around each horizon tames the noise of a single round.
        return np.asarray([gap[int(0.9 * t) : t].mean() for t in horizons])

    partial, full = gaps([1, 3, 4] * 3), gaps([4] * 9)
    for gap in (partial, full):
        slope = np.polyfit(np.log(horizons), np.log(gap), 1)[0]
        assert -1.15 < slope < -0.85, gap
    assert 1.5 < np.mean(partial / full) < 2.5, partial / full


# ---- 13, 14, 16: the clock, the link, the assignment -----------------------------------------


def round_s(problem, start, name, **options):
    algorithm = build(name, problem, **TRAINING, **options)
    plan, _ = algorithm.plan((), start, situation(problem))
    return plan.timing.total_s


def test_13_completion_time(problem, start):
    fedavg = round_s(problem, start, "fedavg")
    partial = round_s(problem, start, "fedpmt")
    depth, _ = depths_of(build("fedpmt", problem, **TRAINING), problem, start)
    # A client that trains less is done sooner; one that trains everything takes as long.
    assert np.all(partial[depth < L] < fedavg[depth < L])
    np.testing.assert_array_equal(partial[depth == L], fedavg[depth == L])
    assert partial.max() < fedavg.max()
    # Equal capacities, equal times.
    np.testing.assert_array_equal(round_s(problem, start, "fedpmt", capacity=np.ones(8)), fedavg)
    # Equality if and only if the slowest has full depth.
    slowest = int(np.argmax(fedavg))
    only_slowest = np.where(np.arange(8) == slowest, 1.0, 0.5)
    assert round_s(problem, start, "fedpmt", capacity=only_slowest).max() == fedavg.max()
    # The order of the devices is no information.
    turned = Problem(problem.model, problem.data, fleet(8, flops_per_s=np.full(8, 1e6)))
    assert round_s(turned, start, "fedavg").max() == round_s(turned, start, "fedavg")[::-1].max()


def test_13_the_completion_time_never_falls_with_a_depth(problem, start):
    times = [
        round_s(problem, start, "fedpmt", depths=(depth,), capacity=np.ones(8))
        for depth in (1, 2, 3)
    ]
    for shallow, deep in itertools.pairwise(times):
        assert np.all(shallow < deep)


def test_14_uplink_bytes(problem, start):
    algorithm = build("fedpmt", problem, **TRAINING)
    depth, plan = depths_of(algorithm, problem, start)
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(b)) for b in start.params["blocks"]]
    wanted = [4 * sum(sizes[L - d :]) for d in depth]
    assert plan.timing.bytes_up.tolist() == wanted
    whole = 4 * sum(sizes)
    assert max(wanted) == whole
    assert plan.timing.bytes_down.tolist() == [whole] * 8


def test_14_uplink_bytes_of_the_cnn(cnn_cost):
    up = cnn_cost.upload_bytes(np.int64([3, 2, 1, 0]), np.full(4, 3))
    assert (up // 4).tolist() == [5_130, 1_611_274, 1_662_538, 1_663_370]
    np.testing.assert_allclose(up / up[-1], [0.0031, 0.9687, 0.9995, 1.0], atol=5e-5)


@pytest.mark.parametrize(
    ("kappa", "allowed", "depth", "feasible"),
    [
        (1.0, (1, 2, 3, 4), 4, True),
        (0.5, (1, 2, 3, 4), 2, True),
        (0.5, (1, 3, 4), 1, True),
        (0.71, (1, 2, 3, 4), 3, True),
        (0.71, (1, 3, 4), 3, True),
        (0.34, (1, 2, 3, 4), 1, True),
        (0.2, (1, 2, 3, 4), 1, False),
        (0.2, (3, 4), 3, False),
    ],
)
def test_16_width_semantics(cnn_cost, kappa, allowed, depth, feasible):
    got = assign_depths(cnn_cost, np.asarray([kappa]), allowed)
    assert (got[0].tolist(), got[1].tolist()) == ([depth], [feasible])


def test_16_depth_grows_with_capacity(cnn_cost):
    kappa = np.linspace(0.01, 1.0, 200)
    depth, feasible = assign_depths(cnn_cost, kappa, (1, 2, 3, 4))
    assert np.all(np.diff(depth) >= 0)
    assert np.all(np.diff(feasible.astype(int)) >= 0)
    # The exact cost of a depth affords it, in spite of rounding.
    share = cnn_cost.step_flops(np.int64([3, 2, 1, 0]), np.full(4, 3)) / 72_384_512
    assert assign_depths(cnn_cost, share, (1, 2, 3, 4))[0].tolist() == [1, 2, 3, 4]


def test_16_infeasible_devices_are_reported(problem):
    algorithm = build("fedpmt", problem, capacity=[0.1] * 2 + [1.0] * 6, **TRAINING)
    result = simulate(algorithm, problem, rounds=1)
    assert result.record.metrics[-1]["info"]["infeasible_clients"] == 2


# ---- options ---------------------------------------------------------------------------------


def test_capacities_may_change_over_time(problem, start):
    algorithm = build(
        "fedpmt", problem, capacity=lambda round: np.full(8, 1.0 if round else 0.5), **TRAINING
    )
    assert set(depths_of(algorithm, problem, start, round=0)[0].tolist()) == {1}
    assert set(depths_of(algorithm, problem, start, round=1)[0].tolist()) == {3}


def test_the_inverse_schedule_scales_the_step(problem, start):
    algorithm = build("fedpmt", problem, schedule="inverse", decay_rounds=4, **TRAINING)
    scales = [
        algorithm.plan((), start, situation(problem, round=t))[0].learning_rate_scale
        for t in (0, 4, 12)
    ]
    assert scales == [1.0, 0.5, 0.25]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depths": ()}, "between 1 and the model's 3"),
        ({"depths": (0, 1)}, "between 1 and the model's 3"),
        ({"depths": (4,)}, "between 1 and the model's 3"),
        ({"capacity": np.ones(3)}, "each of the 8 clients"),
        ({"capacity": np.zeros(8)}, r"\(0, 1\]"),
        ({"capacity": np.full(8, np.nan)}, r"\(0, 1\]"),
        ({"schedule": "cosine"}, "constant"),
        ({"decay_rounds": 0.0}, "decay_rounds = 0.0"),
    ],
)
def test_options_are_checked(problem, options, words):
    with pytest.raises(InputError, match=words):
        build("fedpmt", problem, **TRAINING, **options)
