"""PR-FL in the loop. Checks of methods/pr_fl.md."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, differ, digits, digits_problem, situation

from fedjax_het.algorithms import build
from fedjax_het.algorithms.prfl.buffers import unpack
from fedjax_het.algorithms.prfl.merging import moved, sums
from fedjax_het.algorithms.prfl.ranking import join, never_pruned, prunable
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.staleness import discount
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet import presets
from fedjax_het.fleet.published import MIB
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TRAINING = {"learning_rate": 0.1, "batch_size": 4, "local_steps": 2}
HIDDEN = 64
WEIGHTS = 64 * HIDDEN + HIDDEN * 10
SCALE = WEIGHTS / 9_747_136  # the whole model takes as long as the author's


@functools.cache
def problem():
    """Ten clients on the author's links, with validation samples."""
    base = digits((6,) * 12)
    data = from_arrays(
        base.x,
        base.y,
        base.test_x,
        base.test_y,
        clients=np.arange(72) % 10,
        num_classes=10,
        validation_fraction=0.2,
    )
    fleet = presets.build("prfl", 10, scale=SCALE, flops_per_s=1e9)
    return Problem(mlp((64,), 10, hidden=(HIDDEN,)), data, fleet)


def options(links=None, **changes):
    rates = {
        "server_up_bytes_per_s": 10 * MIB * SCALE,
        "server_down_bytes_per_s": 50 * MIB * SCALE,
    }
    return {**TRAINING, "links": {**rates, **(links or {})}, **changes}


@functools.cache
def evaluator():
    return Evaluator(problem())


def run(name, rounds, *, watch=None, **changes):
    algorithm = build(name, problem(), **options(**changes))
    if watch is not None:
        made, models = algorithm, []

        def plan(state, variables, situation):
            models.append(variables)
            return made.plan(state, variables, situation)

        def observe(state, variables, report):
            result = made.observe(state, variables, report)
            watch(state, models[-1], result[0], result[1], report)
            return result

        algorithm = algorithm._replace(plan=plan, observe=observe)
    return simulate(
        algorithm, problem(), rounds=rounds, eval_every=10**6, evaluator=evaluator(), chunk=1
    )


@jax.jit
def everything(slots, booked):
    """All uploads and their masks, leading axis n."""
    like = problem().model.shapes.params

    def one(client):
        upload = unpack(slots, booked, client, like)
        there = slots.ranks[slots.ranking[client]] < slots.size[client]
        others = [jnp.ones(leaf.shape, bool) for leaf in never_pruned(like)]
        of_stats = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, bool), upload.stats)
        return upload, Variables(join(like, there, others), of_stats)

    return jax.lax.map(one, jnp.arange(len(slots.size)))


@functools.cache
def watched_run():
    """Forty merges with adjustments every five; what was seen at each."""
    seen = []

    def watch(before, old, after, new, report):
        uploads = jax.device_get(everything(after.slots, after.booked))
        meta = jax.device_get((after.slots.version, after.slots.size))
        models = jax.device_get((old, new))
        seen.append((before.density.copy(), report, (uploads, *meta), after, models))

    result = run("prfl", 40, watch=watch, density={"interval": 5}, recovery={"patience": 2})
    return result, seen


def test_the_log_is_sound_and_windows_overlap():
    result, _ = watched_run()
    assert result.faults == []
    staleness = [row["staleness"] for row in result.record.clients]
    assert max(staleness) >= 2
    assert [row["merged"] for row in result.record.metrics[1:3]] == [10, 10]  # warm-up
    assert differ(result.variables.params, problem().model.init(jax.random.key(0)).params)


def test_8_14_uploads_hold_exactly_their_mask():
    """As many weights as the density says, and all biases; what is pruned is zero."""
    _, seen = watched_run()
    assert not np.any(seen[0][2][2])  # whole models of the first training are not kept
    for _, report, ((uploads, there), _, _), _, _ in seen[1:]:
        kernels = [leaf for leaf in jax.tree.leaves(there.params) if leaf.ndim >= 3]
        kept = sum(np.sum(k, axis=tuple(range(1, k.ndim))) for k in kernels)
        for client, count in zip(report.plan.clients, report.plan.rows["count"], strict=True):
            assert kept[client] == count
        for leaf, mask in zip(*map(jax.tree.leaves, (uploads, there)), strict=True):
            assert np.all(leaf[~mask] == 0)
            assert np.any(leaf[mask] != 0)


def test_packed_buffers_merge_as_dense_ones():
    """Every merge is MaskFedAvg over all uploads, written out dense."""
    _, seen = watched_run()
    late = discount("polynomial", a=0.6)
    for _, report, ((uploads, there), version, _), _, (old, new) in seen[1:]:
        p = late(report.round - version)

        def dense(before, every, mask, p=p):
            return moved(before, *sums(p, every, mask, True), 1.0)

        assert_close(new, jax.tree.map(dense, old, uploads, there), rtol=1e-5, atol=1e-6)


def test_15_a_slot_changes_only_when_its_client_arrives():
    _, seen = watched_run()
    for (_, _, before, _, _), (_, report, after, _, _) in itertools.pairwise(seen):
        still = np.setdiff1d(np.arange(10), report.plan.clients)
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            np.testing.assert_array_equal(a[still], b[still])
        fresh = report.staleness == 0
        _, version, count = after
        assert np.all(version[report.plan.clients[fresh]] == report.round)
        assert np.all(version >= 0)
        assert np.all(count > 0)


def test_14_pruned_weights_do_not_move():
    setting = problem()
    algorithm = build("prfl", setting, **options())
    start = setting.model.init(jax.random.key(1))
    rng = np.random.default_rng(0)
    rank = [
        jnp.asarray(rng.permutation(leaf.size).reshape(leaf.shape), jnp.int32)
        for leaf in prunable(start.params)
    ]
    row, shared = {"count": jnp.int32(150)}, {"rank": rank}
    mask = algorithm.mask(row, shared)
    one = jnp.int32(1)
    task = Task(
        one,
        jax.random.key(0),
        jnp.int32(3),
        jnp.int32(3),
        jnp.int32(4),
        jnp.float32(1.0),
        one,
        mask,
        row,
        shared,
    )
    local = jax.jit(functools.partial(algorithm.local, Route(0, 1)))
    result = local(start, setting.data.device(), task)
    for delta, square, keep in zip(prunable(result.delta), result.aux, prunable(mask), strict=True):
        assert np.all(np.asarray(delta)[~np.asarray(keep)] == 0)
        assert np.all(np.asarray(square)[~np.asarray(keep)] == 0)
        assert np.any(np.asarray(delta) != 0)
    # What is pruned takes no part in the forward pass either.
    other = jax.tree.map(
        lambda w, m: jnp.where(jnp.broadcast_to(m, w.shape), w, w + 7.0), start.params, mask
    )
    again = local(start._replace(params=other), setting.data.device(), task)
    chex.assert_trees_all_equal(again.delta, result.delta)


def test_13_a_weight_outside_all_masks_keeps_the_servers_value():
    """With everyone at a low density most weights are in no mask and stay, bit for bit."""
    models, ranks = [], []

    def watch(before, old, after, new, report):
        models.append(jax.device_get(new))
        ranks.append(jax.device_get(after.rank))

    run("nested_mask_sync", 4, watch=watch, density={"start": (0.1,), "interval": 100})
    for before, after in itertools.pairwise(models[1:]):
        moved_weights = 0
        for a, b, r in zip(prunable(before.params), prunable(after.params), ranks[0], strict=True):
            outside = r >= int(0.1 * WEIGHTS)
            np.testing.assert_array_equal(a[outside], b[outside])
            moved_weights += int(np.sum(a != b))
            assert np.any(a[outside] != 0)
        assert 0 < moved_weights <= int(0.1 * WEIGHTS)


def test_21_with_whole_models_and_everyone_it_is_fedavg():
    pruned = run("nested_mask_sync", 2, density={"start": (1.0,), "lowest": 1.0})
    setting = problem()
    fedavg = build("fedavg", setting, **TRAINING, weighting="uniform")
    plain = simulate(fedavg, setting, rounds=2, chunk=1, evaluator=evaluator())
    assert_close(pruned.variables, plain.variables, rtol=1e-4, atol=1e-6)


def test_20_participation_is_equalised():
    """With the author's sizes; whoever is at the floor is not slower than the rest."""
    author = {"local_steps": 1, "links": {"sizes": "coo64"}}
    result = run("prfl", 120, recovery=None, density={"interval": 10}, **author)
    trained = np.bincount([row["client"] for row in result.record.clients[20:]], minlength=10)
    assert trained.min() / trained.max() > 0.9
    densities = [
        r["info"]["densities"] for r in result.record.metrics[1:] if "densities" in r["info"]
    ]
    assert np.all(np.asarray(densities) >= 0.1)
    full = run("prfl_fedfix", 80, **author)
    trained = np.bincount([row["client"] for row in full.record.clients[20:]], minlength=10)
    assert trained.min() / trained.max() < 0.4


def test_densities_follow_the_times_and_are_recorded():
    result, seen = watched_run()
    info = result.record.metrics[5]["info"]
    assert len(info["densities"]) == 10
    assert info["validation_score"] >= 0
    assert any(np.any(before != after.density) for before, _, _, after, _ in seen)


def test_ablations_differ_from_the_method():
    base = run("prfl", 6)
    for change in ({"buffered": False}, {"masked": False}, {"live": False, "a": 2.0}):
        assert differ(base.variables.params, run("prfl", 6, merge=change).variables.params), change


def test_distributions_cost_what_they_should():
    """The same plan takes longer the more the server sends."""
    times = [
        run("prfl", 3, distribution=way, links={"server_jitter": 0.0}).record.metrics[-1][
            "virtual_s"
        ]
        for way in ("residual", "distinct", "unicast")
    ]
    assert times[0] < times[1] < times[2]


def test_one_at_a_time_moves_by_a_share():
    result = run("prfl_fedasyn", 12)
    shares = [row["info"]["share_of_arrivals"] for row in result.record.metrics[1:]]
    assert [row["merged"] for row in result.record.metrics[1:]] == [10] * 2 + [1] * 10
    assert shares[-1] == pytest.approx(0.1, abs=0.06)
    assert result.faults == []


def test_buffers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match=r"buffers of 10 clients .* bytes: exceed limit_bytes"):
        build("prfl", problem(), **options(memory={"limit_bytes": 1e5}))
    with pytest.raises(InputError, match=r"buffer_density = 0.3: is below the mean density 0\.4"):
        build("prfl", problem(), **options(memory={"buffer_density": 0.3}))


def test_room_for_the_sub_models_is_enough():
    """As much memory as the first densities take changes no bit."""
    chex.assert_trees_all_equal(
        run("prfl", 8, density={"interval": 100}, memory={"buffer_density": 0.45}).variables,
        run("prfl", 8, density={"interval": 100}).variables,
    )


def test_uploads_without_room_are_merged_and_not_kept():
    half = {"start": (0.5,), "interval": 100}
    result = run("prfl", 12, adapt=False, density=half, memory={"buffer_density": 0.51})
    assert all(row["info"]["kept"] == row["merged"] for row in result.record.metrics[2:])
    seen = []

    def watch(before, old, after, new, report):
        seen.append(jax.device_get((report.info["share_of_arrivals"], after.slots.size, new)))

    small = {"start": (0.2,), "interval": 1}
    grown = {"patience": 1, "roll_back": False, "increment": 0.5}
    room = {"buffer_density": 0.25}
    tight = run("prfl", 16, watch=watch, density=small, recovery=grown, memory=room)
    assert tight.faults == []
    kept = [np.sum(count > 0) for _, count, _ in seen[1:]]
    assert min(kept) < 10
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(seen[-1][2]))


def test_recovery_needs_validation_samples():
    with pytest.raises(InputError, match="recovery without validation data"):
        build("prfl", digits_problem(), **TRAINING)


def test_resumed_in_mid_flight(tmp_path):
    algorithm = build(
        "prfl", problem(), **options(density={"interval": 3}, recovery={"patience": 1})
    )
    engine = {
        "engine": make_engine(algorithm, problem(), chunk=1),
        "evaluator": evaluator(),
        "chunk": 1,
        "checkpoint_every": 4,
        "eval_every": 4,
    }
    whole = simulate(algorithm, problem(), rounds=12, **engine)
    simulate(algorithm, problem(), rounds=6, workdir=tmp_path, **engine)
    again = simulate(algorithm, problem(), rounds=12, workdir=tmp_path, **engine)
    chex.assert_trees_all_equal(again.variables, whole.variables)
    chex.assert_trees_all_equal(again.state, whole.state)
    assert again.record.clients == whole.record.clients


def test_recorded_links(data_dir):
    """Rates that change within a transfer, of measured phones; the server's link on top."""
    fleet = presets.build("traces", 10, links="bandwidth", data_dir=data_dir)
    setting = Problem(problem().model, problem().data, fleet)
    algorithm = build("prfl", setting, **options(recovery=None, density={"interval": 3}))
    result = simulate(algorithm, setting, rounds=5, chunk=1, evaluator=evaluator())
    assert result.faults == []
    lasts = [row["upload_s"] for row in result.record.clients]
    assert len(set(lasts)) == len(lasts)


@pytest.mark.parametrize("name", ["prfl", "prfl_fedasyn", "prfl_fedfix", "nested_mask_sync"])
def test_devices_are_priced_as_they_are_in_the_round(name):
    """A fleet that is re-drawn: the plan of round 50 knows the devices of round 50."""
    fleet = presets.build("dtfl", 10, redraw_every=50, redraw_share=1.0)
    setting = Problem(problem().model, problem().data, fleet)
    algorithm = build(name, setting, **options())
    variables = setting.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(1))
    for now in (0, 50):
        plan, _ = algorithm.plan(state, variables, situation(setting, round=now))
        timing = plan.timing
        np.testing.assert_allclose(timing.compute_s, timing.flops / fleet.at(now).flops_per_s)
    assert np.any(fleet.at(0).flops_per_s != fleet.at(50).flops_per_s)


def test_weights_are_ranked_after_the_first_merge_whatever_the_densities():
    every = {"interval": 1, "remask": "on_density_change"}
    result = run("nested_mask_sync", 1, density=every)
    rank = np.concatenate([np.ravel(leaf) for leaf in result.state.rank])
    assert sorted(rank.tolist()) == list(range(WEIGHTS))
