"""PyramidFL against its formulas by hand; methods/selection.md 6."""

import functools

import jax
import numpy as np
import pytest
from problems import (
    assert_close,
    batch_norm_problem,
    digits,
    digits_problem,
    exits_problem,
    make_plan,
    one_round,
    scalar_problem,
    situation,
)
from selections import candidates

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.pyramidfl import Upload, Utilities, added, knowing, shares
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Report
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.selection import Selector
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.mlp import mlp

SGD = {"learning_rate": 0.1, "batch_size": 4}
WHOLE = {"thinned_from": 0.0, "thinned_to": 0.0}
VARIABLES = digits_problem().model.init(jax.random.key(0))


@functools.cache
def timed_problem():
    """Three clients with two batches of four; 2, 6, 12 s of work and 4, 2, 1 s of upload."""
    model = mlp((64,), 10, hidden=(12, 8))
    cost = cost_table(model)
    work, whole = 8 * cost.step_flops(), cost.upload_bytes()
    fleet = Fleet(
        flops_per_s=work / np.asarray([2.0, 6.0, 12.0]),
        uplink_bytes_per_s=whole / np.asarray([4.0, 2.0, 1.0]),
        downlink_bytes_per_s=np.inf,
    )
    return fh.Problem(model, digits((8, 8, 8)), fleet)


def planned(problem, utility=None, seed=0, **options):
    method = build("pyramidfl", problem, **SGD, **options)
    state = method.init(VARIABLES, None)
    state = state if utility is None else Utilities(np.asarray(utility, np.float64))
    return method.plan(state, VARIABLES, situation(problem, seed=seed))[0]


# ---- added work ----------------------------------------------------------------------------------


def test_early_finishers_train_until_the_slowest_is_done():
    plan = planned(timed_problem(), **WHOLE)
    # Whole tasks last 6, 8 and 13 s, their steps 1, 3 and 6 s: floor(7 / 1), floor(5 / 3), 0.
    assert plan.steps.tolist() == [2 + 7, 2 + 1, 2]
    np.testing.assert_allclose(plan.timing.total_s, [13, 11, 13])
    flops = timed_problem().cost.step_flops() * 4 * np.asarray([9, 3, 2])
    np.testing.assert_allclose(plan.timing.flops, flops)
    assert plan.info == {"added_steps": 8, "thinned_share": 0.0}
    half = planned(timed_problem(), beta=0.5, **WHOLE)
    assert half.steps.tolist() == [2 + 3, 2, 2]
    assert planned(timed_problem(), beta=0.0, **WHOLE).steps.tolist() == [2, 2, 2]


def test_added_work_has_two_limits():
    none = np.zeros(3)
    timing = Timing(none, np.asarray([1.0, 100.0, 2.0]), none, none, none, none)
    # 99 s at 0.5 s a step, at most ten times the two steps; 98 s at 1 s.
    assert added(timing, np.asarray([2, 4, 2]), 1.0).tolist() == [20, 0, 20]
    assert added(timing, np.asarray([20, 4, 20]), 0.1).tolist() == [198, 0, 98]
    # Five epochs of two batches; more only if more were planned.
    slow = fh.Problem(
        timed_problem().model, timed_problem().data, Fleet(flops_per_s=[1e8, 1e8, 1e3])
    )
    assert planned(slow, **WHOLE).steps.tolist() == [10, 10, 2]
    assert planned(slow, epochs=7, **WHOLE).steps.tolist() == [14, 14, 14]
    assert planned(slow, local_steps=3, **WHOLE).steps.tolist() == [10, 10, 3]


@pytest.mark.parametrize("seed", range(5))
def test_no_round_lasts_longer_than_its_slowest_task(seed):
    problem = timed_problem()
    utility = np.random.default_rng(seed).random(3)
    plan = planned(problem, utility, seed)
    whole_s = np.asarray([4.0, 2.0, 1.0])
    upload_s = whole_s * plan.timing.bytes_up / problem.cost.upload_bytes()
    np.testing.assert_allclose(plan.timing.upload_s, upload_s, rtol=1e-12)
    once_s = np.asarray([2.0, 6.0, 12.0]) + upload_s
    slowest_s = np.max(once_s)
    assert np.max(plan.timing.total_s) == pytest.approx(slowest_s)
    step_s = np.asarray([1.0, 3.0, 6.0])
    extra = np.floor((slowest_s - once_s) / step_s + 1e-9)
    assert plan.steps.tolist() == np.minimum(2 + extra, 10).tolist()


# ---- thinned uploads -----------------------------------------------------------------------------


def test_shares_by_rank():
    # K = 4: steps of .5 / 4. The better of two equal ranks holds for both.
    found = shares(np.asarray([5.0, 9.0, 5.0, 1.0]), 0.1, 0.6)
    np.testing.assert_allclose(found, [0.225, 0.1, 0.225, 0.475])
    np.testing.assert_allclose(shares(np.asarray([2.0, 1.0]), 0.3, 0.3), [0.3, 0.3])


@pytest.mark.parametrize("make", [digits_problem, exits_problem, batch_norm_problem])
def test_bytes_are_those_of_the_tensors_that_are_sent(make):
    problem = make()
    upload, cost = Upload(problem.model), problem.cost
    assert upload.whole_bytes == cost.upload_bytes(0, cost.num_blocks - 1)
    nothing = np.zeros((1, upload.tensors), bool)
    assert upload.bytes(nothing).tolist() == [0]
    one = nothing.copy()
    one[0, 0] = True  # the bias of the first block, with the statistics of that block
    leaf = jax.tree.leaves(problem.model.shapes.params["blocks"][0])[0]
    assert upload.bytes(one).tolist() == [4 * leaf.size + cost.stats_bytes[0]]


def test_a_client_without_tensors_still_answers():
    plan = planned(timed_problem(), thinned_from=1.0, thinned_to=1.0)
    assert not plan.rows["sent"].any()
    assert plan.timing.bytes_up.tolist() == [4, 4, 4]


def test_a_tensor_is_left_out_with_the_probability_of_its_rank():
    problem, draws, utility = timed_problem(), 600, [1.0, 3.0, 2.0]
    method = build("pyramidfl", problem, **SGD)
    state = Utilities(np.asarray(utility))
    plans = [
        method.plan(state, VARIABLES, situation(problem, seed=seed))[0] for seed in range(draws)
    ]
    sent = np.mean([plan.rows["sent"] for plan in plans], axis=(0, 2))
    chance = 1 - np.asarray([0.1 + 2 * 0.5 / 3, 0.1, 0.1 + 0.5 / 3])
    error = np.sqrt(chance * (1 - chance) / (draws * plans[0].rows["sent"].shape[1]))
    assert np.all(np.abs(sent - chance) <= 4 * error)
    # The price of an upload is (1 - d) times that of the whole model, on average.
    whole = problem.cost.upload_bytes()
    found = np.mean([plan.timing.bytes_up / whole for plan in plans], axis=0)
    np.testing.assert_allclose(found, chance, atol=0.08)
    thinned = np.mean([plan.info["thinned_share"] for plan in plans])
    assert thinned == pytest.approx(1 - np.mean(found))


@pytest.mark.parametrize("left_out", ["masked", "zeroed"])
def test_the_mean_is_over_those_who_sent_a_tensor(left_out):
    problem = digits_problem()
    start = problem.model.init(jax.random.key(0))
    method = build("pyramidfl", problem, left_out=left_out, **SGD)
    tensors = Upload(problem.model).tensors
    sent = np.random.default_rng(1).random((3, tensors)) < 0.6
    sent[:, 2] = False  # nobody sends this one
    clients = [1, 3, 4]
    rows = {"sent": sent}
    plan = make_plan(problem, clients=clients, steps=2, weight=[1.0, 2.0, 3.0], rows=rows)
    merged, _ = one_round(method, problem, start, plan)
    plain = build("fedavg", problem, **SGD)
    leaves = lambda model: [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(model.params)]
    old, deltas = leaves(start), []
    for client in clients:
        alone, _ = one_round(plain, problem, start, make_plan(problem, clients=[client], steps=2))
        deltas.append([new - before for new, before in zip(leaves(alone), old, strict=True)])
    weight = np.asarray([1.0, 2.0, 3.0])
    for t, (new, before) in enumerate(zip(leaves(merged), old, strict=True)):
        own = weight * sent[:, t]
        over = np.sum(own) if left_out == "masked" else np.sum(weight)
        change = sum(a * delta[t] for a, delta in zip(own, deltas, strict=True))
        np.testing.assert_allclose(new, before + change / max(over, 1.0), rtol=2e-5, atol=2e-6)


# ---- utilities and the selection -----------------------------------------------------------------


def test_utilities_are_norms_of_whole_updates_times_samples():
    problem = scalar_problem((10, 20, 30))
    method = build("pyramidfl", problem, learning_rate=0.1, clients_per_round=2)
    variables = problem.model.init(jax.random.key(0))
    state = method.init(variables, None)
    assert state.gradient.tolist() == [10, 20, 30]
    plan = make_plan(problem, clients=[2, 0, 1])
    report = Report(
        round=0,
        plan=plan,
        loss=np.zeros(3),
        samples=np.asarray([7, 40, 20]),
        merged=np.asarray([True, True, False]),
        staleness=np.zeros(3, np.int64),
        client_info={"norm": np.asarray([2.0, 3.0, 5.0], np.float32)},
        info={},
    )
    after, _, _ = method.observe(state, variables, report)
    np.testing.assert_allclose(after.gradient, [3 * 10 / 100, 20, 2 * 7 / 100])
    assert state.gradient.tolist() == [10, 20, 30]


@pytest.mark.parametrize("make", [digits_problem, exits_problem])
def test_the_norm_is_that_of_the_whole_update(make):
    problem = make()
    start = problem.model.init(jax.random.key(0))
    rows = {"sent": np.zeros((1, Upload(problem.model).tensors), bool)}
    plan = make_plan(problem, clients=[1], steps=2, rows=rows)
    merged, outputs = one_round(build("pyramidfl", problem, **SGD), problem, start, plan)
    assert_close(merged, start, rtol=0, atol=0)
    plain, _ = one_round(build("fedavg", problem, **SGD), problem, start, plan._replace(rows=None))
    pairs = zip(jax.tree.leaves(plain.params), jax.tree.leaves(start.params), strict=True)
    norm = np.sqrt(sum(np.sum(np.square(np.asarray(a - b, np.float64))) for a, b in pairs))
    np.testing.assert_allclose(outputs.info["norm"], [norm], rtol=1e-5)


def test_without_added_work_and_thinning_it_is_fedavg_with_oort():
    problem = digits_problem()
    shared = {"rounds": 3, "seed": 1}
    cohort = {**SGD, "clients_per_round": 4}
    ours = build("pyramidfl", problem, beta=0.0, oort={"cut": 0.7}, **WHOLE, **cohort)
    theirs = build("fedavg", problem, select={"name": "oort", "cut": 0.7}, **cohort)
    one, other = (fh.simulate(method, problem, **shared) for method in (ours, theirs))
    assert_close(one.variables, other.variables)
    assert one.record.clients == other.record.clients


def test_oort_sees_the_durations_of_whole_tasks():
    problem, seen = timed_problem(), []

    def choose(state, asked):
        seen.append((asked.known.duration_s, asked.price(np.asarray([2, 0])).total_s))
        return asked.clients[:1], state

    select = Selector(lambda n: (), choose, lambda state, seen: state)
    none = np.zeros(3)
    timing = Timing(none, np.asarray([6.0, 8.0, 13.0]), none, none, none, none)
    knowing(select, lambda round: timing).choose((), candidates(1, samples=[8, 8, 8]))
    np.testing.assert_array_equal(seen[0][0], [6, 8, 13])
    np.testing.assert_array_equal(seen[0][1], [13, 6])
    # All tasks of PyramidFL would last about 13 s; Oort is told that client 0 is the fastest.
    method = build("pyramidfl", problem, **SGD, clients_per_round=1)
    state = method.select.init(3)
    told = candidates(1, samples=[8, 8, 8], duration_s=[13.0, 13.0, 13.0])
    _, state = method.select.choose(state, told)
    np.testing.assert_allclose(state.expected_s, [6, 8, 13])


def test_bad_options_are_refused():
    with pytest.raises(InputError, match=r"beta = 2"):
        build("pyramidfl", digits_problem(), beta=2.0, **SGD)
    with pytest.raises(InputError, match=r"thinned_from = 0\.5, thinned_to = 0\.1"):
        build("pyramidfl", digits_problem(), thinned_from=0.5, thinned_to=0.1, **SGD)
    with pytest.raises(InputError, match=r"left_out"):
        build("pyramidfl", digits_problem(), left_out="scaled", **SGD)
    with pytest.raises(InputError, match=r"option 'oort' of pyramidfl.*'cutt'"):
        build("pyramidfl", digits_problem(), oort={"cutt": 1.0}, **SGD)
    with pytest.raises(
        InputError, match=r"select oort of pyramidfl.*give options of Oort as oort="
    ):
        build("pyramidfl", digits_problem(), select="oort", **SGD)
