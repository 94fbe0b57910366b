"""Robust merges: each rule against NumPy under masks, every execution, what they withstand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from methods import SETTINGS
from problems import (
    assert_close,
    batch_norm_problem,
    differ,
    digits_problem,
    make_chunk,
    make_plan,
    one_round,
    scalar_problem,
    situation,
)

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.clock import arrivals
from fedjax_het.contract.plan import Schedule
from fedjax_het.contract.uploads import Upload
from fedjax_het.engine.engine import make_engine
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.transforms.robust.coordinates import in_order
from fedjax_het.transforms.sending import uploading

TASKS, LENGTH = 6, 7  # clients of a step, and parameters of the model below
PROBLEM = digits_problem()
EVALUATOR = Evaluator(PROBLEM)
TRAINING = {"learning_rate": 0.1, "batch_size": 4}
PLAIN = fh.algorithms.fedavg(PROBLEM, **TRAINING, clients_per_round=TASKS)
ROW = jnp.arange(3, dtype=jnp.float32)
START = Variables(
    {"blocks": ({"b": 0.1 + ROW}, {"w": jnp.arange(4.0).reshape(2, 2)}), "exits": ()},
    {"blocks": ({}, {"var": jnp.ones(2)}), "exits": ()},
)
TRIMMED = {"median": 0.5, "trimmed_mean": 0.3}
RULES = {
    "median": fh.robust.median(),
    "trimmed_mean": fh.robust.trimmed_mean(share=0.3),
    "krum": fh.robust.krum(attackers=1),
    "multi_krum": fh.robust.krum(attackers=1, keep=3),
}


def merge_of(rule, method=PLAIN):
    return fh.compose(method, rule).merge


MERGES = {name: merge_of(rule) for name, rule in RULES.items()}


def tree(values):
    """`[..., 7]` as the parameters above: a vector, and a matrix in the next block."""
    return {
        "blocks": (
            {"b": values[..., :3]},
            {"w": values[..., 3:].reshape(*values.shape[:-1], 2, 2)},
        ),
        "exits": (),
    }


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def merged(merge, update, trains, weight, stats, place, parts=2):
    """The model after `parts` chunks of updates [6, 7]; bool[6, 7], the second block's by column.

    The mask of the matrix is a row of two, which stands for both of its rows.
    """
    mask = tree(trains)
    mask["blocks"][1]["w"] = mask["blocks"][1]["w"][:, 0]
    delta = {"blocks": ({}, {"var": stats}), "exits": ()}
    whole = make_chunk(START, weight, tree(update), mask=mask, stats_delta=delta, place=place)
    shapes = jax.eval_shape(lambda: jax.tree.map(lambda m: m[0], mask))
    acc = merge.init((), START, shapes)
    for part in range(parts):
        own = jax.tree.map(lambda a, part=part: jnp.asarray(a)[part::parts], whole)
        acc = merge.add(acc, own)
    return merge.finalize(acc, START, None)[:2]


@st.composite
def steps(draw):
    """Updates, masks, weights and places of six tasks, of which some are not there."""
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    update = rng.standard_normal((TASKS, LENGTH)).astype(np.float32)
    if draw(st.booleans()):
        update = np.round(update)  # equal values
    trains = rng.random((TASKS, LENGTH)) < draw(st.sampled_from([0.4, 0.8, 1.0]))
    trains[:, 5:] = trains[:, 3:5]
    weight = np.where(rng.random(TASKS) < draw(st.sampled_from([0.0, 0.3])), 0.0, 0.5)
    update = np.where(trains & (weight > 0)[:, None], update, 0).astype(np.float32)
    stats = np.where((weight > 0)[:, None], rng.random((TASKS, 2)), 0).astype(np.float32)
    return update, trains, weight, stats, rng.permutation(TASKS).astype(np.int32)


def cut_mean(values, share):
    """The mean without the extremes; of a median, all but the middle one or two are extremes."""
    m = len(values)
    cut = (m - 1) // 2 if share == 0.5 else int(share * m)
    return np.sort(values)[cut : m - cut].mean()


RUN = {name: jax.jit(lambda *step, m=merge: merged(m, *step)) for name, merge in MERGES.items()}


@pytest.mark.parametrize("name", TRIMMED)
@settings(max_examples=30, deadline=None)
@given(step=steps())
def test_a_rule_by_coordinate_is_that_of_numpy(name, step):
    update, trains, weight, stats, _ = step
    found, info = RUN[name](*step)
    old, there = flat(START.params), trains & (weight > 0)[:, None]
    new = flat(found.params)
    for j in range(LENGTH):
        own = update[there[:, j], j]
        if not own.size:
            assert new[j] == old[j]
            continue
        np.testing.assert_allclose(new[j] - old[j], cut_mean(own, TRIMMED[name]), atol=2e-6)
    live = np.stack([there[:, :3].any(axis=1), there[:, 3:].any(axis=1)], axis=1)
    np.testing.assert_array_equal(info["merged_weight"], live.sum(axis=0))
    var = 1 + stats[live[:, 1]]
    wanted = [cut_mean(column, TRIMMED[name]) for column in var.T] if len(var) else 1.0
    np.testing.assert_allclose(found.stats["blocks"][1]["var"], wanted, rtol=1e-6)


def krum_by_hand(update, there, weight, keep, attackers=1):
    """The clients that Krum keeps: squared distances client by client."""
    present = np.flatnonzero(weight > 0)
    m, score = len(present), {}
    if m < 2 * attackers + 3:
        return []
    for i in present:
        apart = []
        for j in present:
            both = there[i] & there[j]
            if i != j:
                gap = np.square(update[i] - update[j], dtype=np.float64)[both]
                apart.append(gap.mean() if both.any() else np.inf)
        score[i] = sum(sorted(apart)[: m - attackers - 2])
    order = sorted(present, key=score.get)
    count = min(keep, m - attackers)
    last, first = (score[i] for i in order[count - 1 : count + 1])
    assume(last == np.inf or first - last > 1e-4)  # equal scores are ordered by their rounding
    return [i for i in order[:count] if np.isfinite(score[i])]


@pytest.mark.parametrize(("name", "keep"), [("krum", 1), ("multi_krum", 3)])
@settings(max_examples=30, deadline=None)
@given(step=steps())
def test_krum_keeps_the_clients_that_numpy_keeps(name, keep, step):
    update, trains, weight, _, _ = step
    there = trains & (weight > 0)[:, None]
    kept = krum_by_hand(update, there, weight, keep)
    found, info = RUN[name](*step)
    assert int(info["krum_kept"]) == len(kept)
    old, new = flat(START.params), flat(found.params)
    for j in range(LENGTH):
        own = update[kept, j][there[kept, j]]
        if not own.size:
            assert new[j] == old[j]
            continue
        np.testing.assert_allclose(new[j] - old[j], own.mean(), atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 17),
    seed=st.integers(0, 10_000),
)
def test_the_sorting_network_sorts(rows, seed):
    rng = np.random.default_rng(seed)
    values = rng.integers(-4, 5, (rows, 3)).astype(np.float32)
    values[rng.random((rows, 3)) < 0.2] = np.inf
    np.testing.assert_array_equal(in_order(jnp.asarray(values)), np.sort(values, axis=0))


@pytest.mark.parametrize("name", TRIMMED)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(1e-3, 1e30), data=st.data())
def test_fewer_than_half_attackers_cannot_leave_the_honest_range(name, seed, size, data):
    rng = np.random.default_rng(seed)
    # The trimmed mean leaves out floor(0.3 x 6) = 1 on each side.
    attackers = rng.permutation(TASKS)[: 2 if name == "median" else 1]
    update = rng.standard_normal((TASKS, LENGTH)).astype(np.float32)
    signs = data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=LENGTH, max_size=LENGTH))
    update[attackers] = size * np.asarray(signs, np.float32)
    everyone = np.ones((TASKS, LENGTH), bool)
    weight, stats = np.ones(TASKS), np.zeros((TASKS, 2), np.float32)
    found, _ = RUN[name](update, everyone, weight, stats, np.arange(TASKS, dtype=np.int32))
    honest = np.delete(update, attackers, axis=0)
    step = flat(found.params) - flat(START.params)
    assert np.all(step >= honest.min(axis=0) - 1e-5)
    assert np.all(step <= honest.max(axis=0) + 1e-5)


def test_krum_keeps_an_honest_client_among_far_ones():
    """Five honest updates near 1 and a far one; the closest to the others is the one at 1."""
    size = np.asarray([0.9, 1.2, 1.0, 0.7, 1.1, 50.0], np.float32)
    update = np.tile(size[:, None], (1, LENGTH))
    everyone, place = np.ones((TASKS, LENGTH), bool), np.arange(TASKS, dtype=np.int32)
    stats = np.tile(size[:, None], (1, 2))
    found, _ = RUN["krum"](update, everyone, np.ones(TASKS), stats, place)
    np.testing.assert_allclose(flat(found.params) - flat(START.params), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.stats["blocks"][1]["var"], 2.0, rtol=1e-6)
    found, _ = RUN["multi_krum"](update, everyone, np.ones(TASKS), stats, place)
    # 0.9, 1.0 and 1.1 have the smallest sums of their three smallest squares.
    np.testing.assert_allclose(flat(found.params) - flat(START.params), 1.0, rtol=1e-5)


def test_krum_without_enough_clients_changes_nothing():
    update, stats = np.ones((TASKS, LENGTH), np.float32), np.ones((TASKS, 2), np.float32)
    weight = np.asarray([1, 1, 0, 1, 0, 1.0])  # four, and 2 x 1 + 3 are needed
    there = np.ones((TASKS, LENGTH), bool)
    place = np.arange(TASKS, dtype=np.int32)
    found, info = RUN["krum"](
        update * weight[:, None].astype(np.float32), there, weight, stats, place
    )
    assert int(info["krum_kept"]) == 0
    assert not differ(found, START)


def models(algorithm, problem, cohorts):
    """The model after one round of each cohort, from the same start and with the same keys."""
    # One by one: side by side, a client's own sums round otherwise.
    engine, start = make_engine(algorithm, problem, chunk=1), problem.model.init(jax.random.key(3))
    plans = [make_plan(problem, clients=cohort, steps=2) for cohort in cohorts]
    return [one_round(algorithm, problem, start, plan, engine=engine)[0] for plan in plans]


@pytest.mark.parametrize("problem", [PROBLEM, batch_norm_problem()], ids=["digits", "statistics"])
def test_one_step_is_the_median_of_single_updates(problem):
    cohort = (1, 3, 4, 7) if problem is PROBLEM else (0, 1, 2)
    plain = fh.algorithms.fedavg(problem, **TRAINING)
    *single, mean = models(plain, problem, [*((client,) for client in cohort), cohort])
    (found,) = models(fh.compose(plain, fh.robust.median()), problem, [cohort])
    wanted = np.median([flat(model) for model in single], axis=0)
    np.testing.assert_allclose(flat(found), wanted, rtol=1e-5, atol=1e-6)
    assert not np.allclose(flat(mean), wanted, atol=1e-4)


def test_the_norm_is_bounded_over_all_parameters():
    norms = np.asarray([1.0, 0.25, 4.0], np.float32)
    update = np.ones((3, LENGTH), np.float32) / np.sqrt(LENGTH) * norms[:, None]
    bounded = fh.compose(PLAIN, fh.robust.norm_bound(limit=1.0)).uploads[0]
    _, chunk = bounded.change((), make_chunk(START, np.ones(3), tree(jnp.asarray(update))))
    found = np.concatenate([leaf.reshape(3, -1) for leaf in jax.tree.leaves(chunk.delta)], axis=1)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), [1.0, 0.25, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found, update * np.asarray([[1.0], [1.0], [0.25]]), rtol=1e-6)
    # A leaf that the route does not train does not count.
    part = {"blocks": ({"b": None}, tree(jnp.asarray(update))["blocks"][1]), "exits": ()}
    _, chunk = bounded.change((), make_chunk(START, np.ones(3), part))
    lengths = np.linalg.norm(chunk.delta["blocks"][1]["w"].reshape(3, -1), axis=1)
    np.testing.assert_allclose(lengths, np.minimum(norms * np.sqrt(4 / 7), 1.0), rtol=1e-6)


def stepped(algorithm, rounds=1, **run):
    run = {"seed": 4, "eval_every": rounds, "evaluator": EVALUATOR, **run}
    return fh.simulate(algorithm, PROBLEM, rounds=rounds, **run)


@pytest.mark.slow
def test_rules_agree_in_every_execution_and_when_resumed(tmp_path):
    plain = fh.algorithms.fedpmt(PROBLEM, **TRAINING, depths=(1, 3), clients_per_round=3)
    steps = fh.attack.noise(deviation=0.5, clients=[2]), fh.robust.norm_bound(limit=2.0)
    method = fh.compose(plain, *steps, fh.robust.median())
    start = PROBLEM.model.init(jax.random.key(3))
    plan, _ = method.plan((), start, situation(PROBLEM, clients=[0, 1, 2]))
    assert len(set(plan.routes)) > 1
    method = method._replace(plan=Schedule(lambda situation: plan))
    options = {"initial": start, "workdir": tmp_path / "run", "checkpoint_every": 1}
    found = [stepped(method, rounds=rounds, **options) for rounds in (1, 2)]  # resumed
    whole = stepped(method, rounds=2, initial=start)
    assert not differ(found[1].variables, whole.variables)
    both = stepped(method, rounds=2, initial=start, devices=2)
    assert_close(both.variables, whole.variables, rtol=1e-4, atol=1e-5)
    for execution in ("debug", "masked"):
        other = stepped(method, initial=start, execution=execution)
        assert_close(other.variables, found[0].variables, rtol=1e-4, atol=1e-5)


def test_tasks_that_wait_keep_their_rows_after_the_pace_has_changed():
    """Two arrivals a merge, among six at work and those that have arrived: their median, a mean."""
    clients = fh.compose(PLAIN, fh.robust.median())
    pace = arrivals(2, refill=True)
    found = stepped(clients._replace(pace=pace), rounds=3)
    equal = fh.algorithms.fedavg(PROBLEM, **TRAINING, clients_per_round=TASKS, weighting="uniform")
    plain = stepped(equal._replace(pace=pace), rounds=3)
    assert_close(found.variables, plain.variables)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fedbuff", "its own merge weighs them"),
        ("fednova", "its own merge weighs them"),
        ("prfl", "its clients send the weights of a pruned network"),
        ("fedgkt", "its clients send features and logits"),
        ("dtfl", "its clients send activations"),
    ],
)
def test_methods_that_do_not_merge_by_the_mean_refuse_a_rule(name, reason):
    make, options = SETTINGS.get(name, (digits_problem, TRAINING))
    method = fh.algorithms.build(name, make(), **options)
    with pytest.raises(InputError, match=rf"robust\.median of {name}: .*{reason}"):
        fh.compose(method, fh.robust.median())


def test_a_rule_and_noise_on_the_sum_refuse_each_other():
    def noise(kept, params, key):
        del kept, key
        return params

    noisy = uploading(Upload("gaussian", lambda kept, chunk: (kept, chunk), noise=noise), "privacy")
    with pytest.raises(InputError, match=r"robust\.median of fedavg with gaussian"):
        fh.compose(PLAIN, noisy, fh.robust.median())
    with pytest.raises(InputError, match="gaussian of fedavg: adds its noise to a mean"):
        fh.compose(PLAIN, fh.robust.median(), noisy)
    with pytest.raises(InputError, match="and it merges by a robust rule already"):
        fh.compose(PLAIN, fh.robust.median(), fh.robust.krum(attackers=0))


def test_memory_is_stated_and_bounded_before_anything_runs():
    problem = scalar_problem(sizes=(4, 4, 4), blocks=4)
    plain = fh.algorithms.fedavg(problem, **TRAINING)
    needed = 3 * 4 * 5  # clients, parameters, bytes
    fh.Simulation(fh.compose(plain, fh.robust.median(memory_bytes=needed)), problem, rounds=1)
    small = fh.compose(plain, fh.robust.median(memory_bytes=needed - 1))
    with pytest.raises(InputError, match="with 60 bytes for the updates of 3 tasks"):
        fh.Simulation(small, problem, rounds=1)


def test_rules_and_attacks_have_names_in_configurations():
    method = fh.algorithms.build(
        "fedavg",
        PROBLEM,
        **TRAINING,
        compose=[
            {"name": "attack.scaled", "factor": -3.0, "clients": [2, 0]},
            {"name": "robust.trimmed_mean", "share": 0.2},
        ],
    )
    assert method.options["robust"] == {"name": "robust.trimmed_mean", "share": 0.2}
    assert method.options["attack"] == [
        {"name": "scaled", "factor": -3.0, "clients": [0, 2], "share": None, "seed": 0}
    ]
