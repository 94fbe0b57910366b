"""Sub-FedAvg: masks, adoptions and the mean over holders, by hand and in runs."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, digits_problem, exits_problem, fleet, make_chunk, situation

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.sub_fedavg import State, candidate, distance
from fedjax_het.common.errors import InputError
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.engine.resources import Resources
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.start import run_keys

TRAINING = {"learning_rate": 0.1, "batch_size": 4, "epochs": 2}
ALWAYS = {"least_accuracy": 0.0, "least_distance": 0.0}


# ---- one client and the server, in NumPy ---------------------------------------------------------

SIZES, CLASSES, RATE = (12, 20, 16), 4, 2.0
OPTIONS = {"learning_rate": RATE, "batch_size": 20, "epochs": 3, "prune_share": 0.2, "target": 0.5}


@functools.cache
def linear_problem():
    """Logistic regression on clusters; an epoch is one step on all samples of a client."""
    rng = np.random.default_rng(0)
    centre = rng.normal(size=(CLASSES, 8))
    n = sum(SIZES)
    y = rng.integers(0, CLASSES, n).astype(np.int32)
    x = (centre[y] + rng.normal(size=(n, 8))).astype(np.float32)
    owner = np.repeat(np.arange(len(SIZES)), SIZES)
    data = from_arrays(x, y, x, y, clients=owner, test_clients=owner, num_classes=CLASSES)
    return Problem(mlp((8,), CLASSES, hidden=()), data, fleet(len(SIZES)))


def samples(client):
    data = linear_problem().data
    mine = data.test_client == client
    return data.test_x[mine].astype(np.float64), data.test_y[mine]


def accuracy(weights, bias, client):
    x, y = samples(client)
    return np.mean(np.argmax(x @ weights + bias, axis=1) == y)


def pruned(mask, weights, share):
    """The rule of the authors' code: below the percentile of what is left."""
    limit = np.percentile(np.abs(weights[mask]), 100 * share)
    return mask & (np.abs(weights) >= limit)


def client_round(weights, bias, mask, client, least_accuracy):
    """A client's own model and mask after a round in float64, and whether it pruned."""
    x, y = samples(client)
    w, b, after = weights * mask, bias, []
    for _ in range(OPTIONS["epochs"]):
        logits = x @ w + b
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p = p / p.sum(axis=1, keepdims=True) - np.eye(CLASSES)[y]
        w, b = w - RATE * mask * (x.T @ p) / len(y), b - RATE * p.mean(axis=0)
        after.append(w)
    spare = mask.sum() - (1 - OPTIONS["target"]) * mask.size
    share = min(OPTIONS["prune_share"], spare / mask.sum())
    if spare <= 0:
        return w, b, mask, False
    first, last = pruned(mask, after[0], share), pruned(mask, after[-1], share)
    if np.mean(first != last) <= 1e-4 or accuracy(w * last, b, client) <= least_accuracy:
        return w, b, mask, False
    return w * last, b, last, True


def by_hand(rounds, least_accuracy):
    problem = linear_problem()
    start = problem.model.init(run_keys(0)["model"])
    (block,) = start.params["blocks"]
    bias, weights = (np.asarray(a, np.float64) for a in jax.tree.leaves(block))
    masks = np.ones((len(SIZES), *weights.shape), bool)
    told = []
    for _ in range(rounds):
        ends = [client_round(weights, bias, masks[k], k, least_accuracy) for k in range(len(SIZES))]
        masks = np.stack([end[2] for end in ends])
        count = masks.sum(axis=0)
        mean = np.sum([end[0] for end in ends], axis=0) / np.maximum(count, 1)
        weights = np.where(count > 0, mean, weights)
        bias = np.mean([end[1] for end in ends], axis=0)
        told.append((masks.mean(), sum(end[3] for end in ends)))
    return weights, bias, masks, told


@pytest.mark.parametrize("least_accuracy", [0.5, 0.85])
def test_the_method_by_hand(least_accuracy):
    rounds = 6
    method = build("sub_fedavg", linear_problem(), **OPTIONS, least_accuracy=least_accuracy)
    found = fh.simulate(
        method, linear_problem(), rounds=rounds, seed=0, client_eval="last", personal=True
    )
    assert found.faults == []
    weights, bias, masks, told = by_hand(rounds, least_accuracy)
    (mask,) = found.state.masks
    np.testing.assert_array_equal(mask, masks)
    np.testing.assert_array_equal(found.state.kept, masks.sum(axis=(1, 2)))
    ours = jax.tree.leaves(found.variables.params)
    np.testing.assert_allclose(ours[0], bias, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours[1], weights, rtol=1e-4, atol=1e-5)
    info = [row["info"] for row in found.record.metrics[1:]]
    np.testing.assert_allclose([row["mean_density"] for row in info], [t[0] for t in told])
    assert [row["adopted_clients"] for row in info] == [t[1] for t in told]
    # The case is not empty: some clients pruned, some waited or were done.
    assert 0 < sum(t[1] for t in told) < rounds * len(SIZES)
    # Personal models are trained once more, pruned as the client decides, and zero elsewhere.
    rows = {row["client"]: row for row in found.record.client_evaluations}
    for k in range(len(SIZES)):
        w, b, _, _ = client_round(weights, bias, masks[k], k, least_accuracy)
        assert rows[k]["personal_accuracy"] == pytest.approx(accuracy(w, b, k))


# ---- candidates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 10, 11, 21, 60])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.9])
def test_candidates_prune_below_the_percentile_of_what_is_left(left, share):
    rng = np.random.default_rng(left)
    weights = rng.normal(size=(6, 10)).astype(np.float32)
    mask = np.zeros(60, bool)
    mask[rng.permutation(60)[:left]] = True
    mask = mask.reshape(6, 10)
    params = {"kernel": jnp.asarray(weights), "bias": jnp.zeros(10)}
    (found,) = candidate([jnp.asarray(mask)], params, jnp.float32(share))
    np.testing.assert_array_equal(found, pruned(mask, weights, share))
    assert int(np.sum(mask & ~found)) == int(np.ceil((left - 1) * share - 1e-6))
    assert not np.any(found & ~mask)


def test_equal_weights_stay_together():
    params = {"kernel": jnp.asarray([[1.0, -1.0, 1.0, 2.0]])}
    (found,) = candidate([jnp.ones((1, 4), bool)], params, jnp.float32(0.5))
    assert found.all()


def test_the_distance_is_a_mean_over_tensors():
    one = [jnp.asarray([True, True]), jnp.asarray([True] * 4)]
    other = [jnp.asarray([True, False]), jnp.asarray([True] * 4)]
    assert float(distance(one, other)) == 0.25
    assert float(distance(one, one)) == 0.0


# ---- runs ----------------------------------------------------------------------------------------


@functools.cache
def evaluator():
    return Evaluator(digits_problem())


def trained(rounds=1, seen=None, **options):
    """A run; `seen` gets a copy of the state after every round."""
    problem = digits_problem()
    method = build("sub_fedavg", problem, **{**TRAINING, **ALWAYS, **options})

    def observe(state, variables, report):
        state, variables, info = method.observe(state, variables, report)
        if seen is not None:
            seen.append(jax.tree.map(np.array, state))
        return state, variables, info

    watched = method._replace(observe=observe)
    return fh.simulate(watched, problem, rounds=rounds, evaluator=evaluator())


def test_masks_shrink_by_the_share_of_every_tensor_until_the_target():
    runs = []
    trained(rounds=6, seen=runs, prune_share=0.1, target=0.3)
    before = [np.ones_like(mask) for mask in runs[0].masks]
    total = sum(mask[0].size for mask in before)
    pruning = []
    for state in runs:
        kept = [np.sum(mask, axis=tuple(range(1, mask.ndim))) for mask in before]
        left = np.sum(kept, axis=0)
        share = np.minimum(0.1, np.maximum(left - (total - int(0.3 * total)), 0) / left)
        for old, new, held in zip(before, state.masks, kept, strict=True):
            assert not np.any(new & ~old)
            fell = held - np.sum(new, axis=tuple(range(1, old.ndim)))
            changed = np.any(old != new, axis=tuple(range(1, old.ndim)))
            wanted = np.ceil((held - 1) * share - 1e-6)
            np.testing.assert_array_equal(fell[changed], wanted[changed])
        pruning.append(int(np.sum(state.kept < left)))
        before = state.masks
    assert pruning[0] == 8
    assert pruning[-1] == 0
    density = runs[-1].kept / total
    assert np.all((density <= 0.7) & (density > 0.69))


@pytest.mark.parametrize(
    "options",
    [
        {"least_accuracy": 1.0},
        {"least_distance": 1.0},
        {"target": 0.0},
        {"prune_share": 0.0},
        {"local_steps": 1},  # the first epoch is the last one
    ],
)
def test_nothing_is_pruned_without_accuracy_distance_or_a_target(options):
    state = trained(rounds=2, **options).state
    assert all(np.all(mask) for mask in state.masks)
    assert np.all(state.kept == sum(mask[0].size for mask in state.masks))


def test_without_pruning_it_is_fedavg_with_equal_weights():
    ours = trained(rounds=3, prune_share=0.0)
    method = build("fedavg", digits_problem(), **TRAINING, weighting="uniform")
    other = fh.simulate(method, digits_problem(), rounds=3, evaluator=evaluator())
    assert_close(ours.variables, other.variables)
    columns = ("step", "client", "bytes_up", "bytes_down", "arrived_s", "status")
    of = lambda run: sorted([row[c] for c in columns] for row in run.record.clients)
    assert of(ours) == of(other)


def test_a_weight_that_nobody_holds_keeps_its_bits():
    options = {"prune_share": 0.5, "target": 0.9}
    before, after = (trained(rounds, **options) for rounds in (3, 4))
    pairs = [
        [leaf for leaf in jax.tree.leaves(run.variables.params) if leaf.ndim == 2]
        for run in (before, after)
    ]
    for mask, old, new in zip(after.state.masks, *pairs, strict=True):
        held = np.any(np.asarray(mask), axis=0)
        assert 0.05 < held.mean() < 0.95
        np.testing.assert_array_equal(np.asarray(old)[~held], np.asarray(new)[~held])
        assert np.mean(np.asarray(old)[held] != np.asarray(new)[held]) > 0.3


def test_the_merge_is_the_mean_over_those_who_hold():
    problem = digits_problem((2, 2, 2), (3,))
    method = build("sub_fedavg", problem, **TRAINING)
    start = problem.model.init(jax.random.key(0))
    state = method.init(start, jax.random.key(1))
    rng = np.random.default_rng(0)
    delta = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=(3, *a.shape)).astype(np.float32)), start.params
    )
    mask = jax.tree.map(
        lambda a: rng.random((3, *a.shape)) < 0.4 if a.ndim == 2 else np.ones(3, bool),
        start.params,
    )
    aux = jax.tree.map(lambda a: jnp.asarray(a, jnp.int8), mask)
    # The last client is left out, and its masks stay.
    chunk = make_chunk(start, [1.0, 1.0, 0.0], delta, aux=aux)
    chunk = chunk._replace(client=jnp.asarray([2, 0, 1], jnp.int32))
    acc = method.merge.add(method.merge.init(state, start, None), chunk)
    merged = method.merge.finalize(acc, start, None).variables.params

    def check(old, new, d, m):
        if old.ndim == 1:
            np.testing.assert_allclose(new, old + d[:2].mean(axis=0), rtol=1e-5, atol=1e-6)
            return
        count = m[:2].sum(axis=0)
        mean = np.sum(np.asarray(d)[:2] * m[:2], axis=0) / np.maximum(count, 1)
        np.testing.assert_allclose(new, np.asarray(old) + mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(new)[count == 0], np.asarray(old)[count == 0])
        assert (count == 0).any()

    jax.tree.map(check, start.params, merged, delta, mask)
    own = [leaf for leaf in jax.tree.leaves(mask) if leaf.ndim > 1]
    for every, new in zip(acc.masks, own, strict=True):
        np.testing.assert_array_equal(np.asarray(every)[2], new[0])
        np.testing.assert_array_equal(np.asarray(every)[0], new[1])
        assert np.all(np.asarray(every)[1])


def test_a_pruned_weight_has_no_gradient_and_no_momentum():
    """The own model of a client is zero outside of its mask, whatever the server has there."""
    problem = digits_problem()
    options = {"prune_share": 0.5, "target": 0.9, "momentum": 0.9, "weight_decay": 0.01}
    method = build("sub_fedavg", problem, **TRAINING, **ALWAYS, **options)
    train = method.local

    def local(route, start, data, task):
        result = train(route, start, data, task)
        own = jax.tree.map(jnp.add, start.params, result.delta)
        return result._replace(info={**result.info, "own": own})

    seen = []

    def observe(state, variables, report):
        seen.append((report.client_info["own"], report.plan.clients))
        return method.observe(state, variables, report)

    watched = method._replace(local=local, observe=observe)
    state = fh.simulate(watched, problem, rounds=3, evaluator=evaluator()).state
    own, clients = seen[-1]
    weights = [leaf for leaf in jax.tree.leaves(own) if leaf.ndim == 3]
    for mask, mine in zip(state.masks, weights, strict=True):
        held = np.asarray(mask)[clients]
        assert held.mean() < 0.3
        np.testing.assert_array_equal(mine == 0, ~held)


def test_the_prices_are_those_of_the_weights_left():
    problem = digits_problem()
    method = build("sub_fedavg", problem, **TRAINING)
    start = problem.model.init(jax.random.key(0))
    state = method.init(start, jax.random.key(1))
    total = int(state.kept[0])
    assert total == 64 * 12 + 12 * 8 + 8 * 10
    kept = np.full(8, total)
    kept[1:4] = total - 400, total - 1, int(0.7 * total)
    plan, _ = method.plan(State(state.masks, kept), start, situation(problem))
    whole = problem.cost.download_bytes()
    saved = np.zeros(8, np.int64)
    saved[1] = 4 * 400 - total // 8  # a bitmap of all weights
    saved[3] = 4 * (total - kept[3]) - total // 8
    np.testing.assert_array_equal(plan.timing.bytes_down, whole - saved)
    np.testing.assert_array_equal(plan.timing.bytes_up, whole - saved)
    # A client at its target measures no accuracy; the FLOPs of training are those of the whole.
    held = problem.data.sizes
    forward = held * problem.cost.forward_pass_flops()
    forward[[1, 3]] = 0
    np.testing.assert_allclose(plan.timing.flops, 2 * held * problem.cost.step_flops() + forward)


def test_the_masks_of_all_clients_are_changed_in_place(monkeypatch):
    n, programs = 800, []
    problem = digits_problem((2,) * n, hidden=(8,))
    compiled = Resources.compile

    def compile(self, *arguments, **options):
        programs.append(compiled(self, *arguments, **options))
        return programs[-1]

    monkeypatch.setattr(Resources, "compile", compile)
    method = build("sub_fedavg", problem, **TRAINING, clients_per_round=2)
    fh.simulate(method, problem, rounds=1, chunk=2)
    masks = n * (64 * 8 + 8 * 10)
    found = [program.memory_analysis() for program in programs]
    (train,) = [each for each in found if each.argument_size_in_bytes > masks]
    assert train.alias_size_in_bytes > masks
    assert train.temp_size_in_bytes < masks / 2


def test_clients_side_by_side_decide_by_themselves():
    """Some have reached their target, others measure, in one chunk."""
    problem = linear_problem()
    method = build("sub_fedavg", problem, **OPTIONS, least_accuracy=0.85)
    run = lambda chunk: fh.simulate(
        method, problem, rounds=5, engine=make_engine(method, problem, chunk=chunk)
    )
    one, other = run(1), run(2)
    chex.assert_trees_all_equal(one.state, other.state)
    assert_close(one.variables, other.variables)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prune_share": 1.0}, r"prune_share = 1.0: must lie in \[0, 1\)"),
        ({"target": -0.1}, r"target = -0.1: must lie in \[0, 1\)"),
        ({"least_accuracy": 50}, r"least_accuracy = 50: must lie in \[0, 1\]"),
        ({"least_distance": float("nan")}, "'least_distance' = nan: must be a finite"),
        ({"epochs": 1}, "first and the last epoch"),
        ({"memory_bytes": 8 * 900}, "keeps of 8 clients, 944 bytes each"),
    ],
)
def test_options_are_checked(options, words):
    with pytest.raises(InputError, match=words):
        build("sub_fedavg", digits_problem(), **{**TRAINING, **options})


def test_exit_heads_and_objectives_without_accuracy_are_refused():
    with pytest.raises(InputError, match="with 2 exit heads"):
        build("sub_fedavg", exits_problem(), **TRAINING)
    base = digits_problem()
    topped = fh.objectives.classification(metrics=("top_5",))
    other = Problem(base.model, base.data, base.fleet, objective=topped)
    with pytest.raises(InputError, match=r"\['top_5'\]: has no accuracy"):
        build("sub_fedavg", other, **TRAINING)


def test_five_epochs_are_the_default():
    method = build("sub_fedavg", digits_problem(), learning_rate=0.1)
    assert method.options["epochs"] == 5
