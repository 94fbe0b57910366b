"""Split training with local losses: nothing leaks through the cut, and tiers merge into one."""

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    assert_close,
    assert_same,
    batch_norm_problem,
    differ,
    exits_problem,
    one_round,
    situation,
)

from fedjax_het import masks, models
from fedjax_het.algorithm import Chunk, Task, Variables
from fedjax_het.algorithms import build
from fedjax_het.algorithms.common import amsgrad
from fedjax_het.algorithms.dtfl.local import Privacy, split_training
from fedjax_het.client import cross_entropy
from fedjax_het.data.batches import DeviceData, Pipeline, gather
from fedjax_het.fleet.availability import from_intervals
from fedjax_het.masks import Route
from fedjax_het.simulation import simulate

pytestmark = pytest.mark.usefixtures("quick_compile")

SGD = {"learning_rate": 0.1, "batch_size": 4, "client_optimizer": "sgd", "weight_decay": 0.0}


def task(problem, *, cut, steps=2, alpha=None, mask=None):
    row = {"cut": jnp.int32(cut)} | ({} if alpha is None else {"alpha": jnp.float32(alpha)})
    return Task(
        client=jnp.int32(2),
        key=jax.random.key(5),
        steps=jnp.int32(steps),
        loop_steps=jnp.int32(steps),
        batch=jnp.int32(4),
        learning_rate_scale=jnp.float32(1.0),
        exit=jnp.int32(problem.model.num_blocks - 1),
        mask=mask,
        row=row,
        shared=None,
    )


def train(problem, variables, *, cut, traced=False, steps=2, alpha=None, optimizer=None, **options):
    local = split_training(
        problem.model,
        problem.data.pipeline,
        optimizer or optax.sgd(0.1),
        max_batch=4,
        **options,
    )
    last = problem.model.num_blocks - 1
    route = Route(0, None) if traced else Route(0, last, cut)
    mask = build("dtfl", problem, **SGD).mask({"cut": jnp.int32(cut)}, None) if traced else None
    work = task(problem, cut=cut, steps=steps, alpha=alpha, mask=mask)
    return jax.jit(local, static_argnums=0)(route, variables, problem.data.device(), work)


@pytest.mark.parametrize("cut", [0, 1])
def test_one_step_is_two_gradient_steps(cut):
    """Written out with `forward_to`, `apply_exit` and `forward_from`: each half on its own loss."""
    problem = exits_problem()
    model, start = problem.model, problem.model.init(jax.random.key(1))
    got = train(problem, start, cut=cut, steps=1)
    batch_key, _ = jax.random.split(jax.random.key(5))
    batch = gather(
        problem.data.device(), problem.data.pipeline, jnp.int32(2), jnp.int32(0), jnp.int32(4), 4,
        batch_key,
    )  # fmt: skip

    def client(params):
        variables = Variables(params, start.stats)
        z, _ = model.forward_to(variables, batch.x, cut)
        return cross_entropy(model.apply_exit(variables, z, cut), batch)

    z, _ = model.forward_to(start, batch.x, cut)

    def server(params):
        logits, _ = model.forward_from(Variables(params, start.stats), z, cut)
        return cross_entropy(logits, batch)

    wanted = jax.tree.map(
        lambda c, s: -0.1 * (c + s), jax.grad(client)(start.params), jax.grad(server)(start.params)
    )
    assert_close(got.delta["blocks"], wanted["blocks"])
    assert_close(got.delta["exits"][cut], wanted["exits"][cut])
    assert jax.tree.leaves(got.delta["exits"][1 - cut]) == []
    assert got.aux["client_loss"] == pytest.approx(float(client(start.params)), rel=1e-5)
    assert got.aux["server_loss"] == pytest.approx(float(server(start.params)), rel=1e-5)
    assert got.loss == pytest.approx(float(got.aux["client_loss"] + got.aux["server_loss"]))


def test_nothing_leaks_through_the_cut():
    """Another server half changes no bit of the client's, and another head none of the server's."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    base = train(problem, start, cut=0).delta
    blocks, exits = start.params["blocks"], start.params["exits"]
    other = jax.tree.map(lambda w: w + 0.3, blocks[1:])
    moved = Variables({"blocks": (blocks[0], *other), "exits": exits}, start.stats)
    got = train(problem, moved, cut=0).delta
    assert_same(got["blocks"][0], base["blocks"][0])
    assert_same(got["exits"], base["exits"])
    assert differ(got["blocks"][1:], base["blocks"][1:])
    head = jax.tree.map(lambda w: w * 2 + 0.1, exits[0])
    moved = Variables({"blocks": blocks, "exits": (head, *exits[1:])}, start.stats)
    got = train(problem, moved, cut=0, steps=1).delta
    assert_same(got["blocks"][1:], train(problem, start, cut=0, steps=1).delta["blocks"][1:])


@pytest.mark.parametrize(
    ("make", "privacy"),
    [
        (exits_problem, Privacy(correlation=True, shuffle="channel")),
        (lambda: batch_norm_problem(exits=True), Privacy()),
    ],
    ids=["privacy", "running statistics"],
)
def test_a_traced_cut_gives_the_same_numbers(make, privacy):
    problem = make()
    start = problem.model.init(jax.random.key(1))
    alpha = 0.5 if privacy.correlation else None
    for cut in range(problem.model.num_blocks - 1):
        arguments = {"cut": cut, "privacy": privacy, "alpha": alpha}
        one, every = (train(problem, start, traced=t, **arguments) for t in (False, True))
        assert_close(one.delta["blocks"], every.delta["blocks"])
        assert_close(one.delta["exits"][cut], every.delta["exits"][cut])
        assert_close(one.stats, every.stats)
        assert_close(one.aux, every.aux)
        others = [head for b, head in enumerate(every.delta["exits"]) if b != cut]
        assert all(float(jnp.max(jnp.abs(leaf))) == 0 for leaf in jax.tree.leaves(others))


def test_one_optimiser_state_is_both():
    """AMSGrad over the whole network equals a state of its own for either half."""
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    adam = optax.chain(optax.add_decayed_weights(5e-4), amsgrad(1e-2))
    label = lambda part, side: jax.tree.map(lambda _: side, part)
    labels = {
        "blocks": tuple(
            label(block, "client" if b == 0 else "server")
            for b, block in enumerate(start.params["blocks"])
        ),
        "exits": tuple(label(head, "client") for head in start.params["exits"]),
    }
    split = optax.partition(
        {"client": adam, "server": adam},
        lambda params: jax.tree.map(
            lambda _, side: side, params, labels, is_leaf=lambda x: x is None
        ),
    )
    together = train(problem, start, cut=0, optimizer=adam, traced=True)
    apart = train(problem, start, cut=0, optimizer=split, traced=True)
    assert_close(together.delta, apart.delta)


def test_a_server_without_memory_steps_by_signs():
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    rate = 1e-3
    got = train(problem, start, cut=0, steps=2, optimizer=amsgrad(rate), server_reset="batch").delta
    kept = train(problem, start, cut=0, steps=2, optimizer=amsgrad(rate)).delta
    assert_close(got["blocks"][0], kept["blocks"][0])
    assert_close(got["exits"], kept["exits"])
    moved = np.abs(np.concatenate([np.ravel(w) for w in jax.tree.leaves(got["blocks"][1:])]))
    whole_steps = np.min(np.abs(moved[:, None] / rate - np.arange(3)), axis=1)
    assert np.mean(whole_steps < 0.02) > 0.9
    assert differ(got["blocks"][1:], kept["blocks"][1:])


def test_without_weight_the_correlation_changes_nothing():
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    plain = train(problem, start, cut=1)
    told = train(problem, start, cut=1, privacy=Privacy(correlation=True), alpha=0.0)
    assert_close(plain.delta, told.delta)
    assert 0 < float(told.aux["correlation"]) <= 1
    strong = train(problem, start, cut=1, privacy=Privacy(correlation=True), alpha=0.9)
    assert differ(strong.delta["blocks"][0], plain.delta["blocks"][0])
    assert_same(
        train(problem, start, cut=1, steps=1).delta["blocks"][2],
        train(problem, start, cut=1, steps=1, privacy=Privacy(correlation=True), alpha=0.9).delta[
            "blocks"
        ][2],
    )


def test_shuffling_changes_what_the_server_sees_alone():
    problem = exits_problem()
    start = problem.model.init(jax.random.key(1))
    plain = train(problem, start, cut=0)
    shuffled = train(problem, start, cut=0, privacy=Privacy(shuffle="channel"))
    assert_same(shuffled.delta["blocks"][0], plain.delta["blocks"][0])
    assert_same(shuffled.aux["client_loss"], plain.aux["client_loss"])
    assert differ(shuffled.delta["blocks"][1:], plain.delta["blocks"][1:])


# ---- merging -------------------------------------------------------------------------------------


def merged(problem, cuts, weights, values):
    """The mean of clients whose every leaf moved by their value, from zeros."""
    algorithm = build("dtfl", problem, **SGD)
    start = jax.tree.map(jnp.zeros_like, problem.model.init(jax.random.key(0)))
    k = len(cuts)
    row = {"cut": jnp.asarray(cuts, jnp.int32), "weight": jnp.asarray(weights, jnp.float32)}
    spread = lambda leaf: jnp.stack([jnp.full_like(leaf, v) for v in values])
    mask = jax.vmap(algorithm.mask, in_axes=(0, None))(row, None)
    chunk = Chunk(
        jnp.arange(k),
        jnp.asarray(weights, jnp.float32),
        jax.tree.map(spread, start.params),
        jax.tree.map(spread, start.stats),
        mask,
        start,
        row,
        None,
    )
    merge = algorithm.merge
    acc = merge.init((), start, jax.tree.map(lambda leaf: leaf[0], mask))
    return merge.finalize(merge.add(acc, chunk), start, None)


def test_mixed_tiers_merge_by_samples_and_heads_within_their_tier():
    """Tiers 1 and 2, N = (1, 3), values 1 and 2: every leaf of the model becomes 1.75."""
    problem = exits_problem()
    variables, info = merged(problem, [0, 1], [1.0, 3.0], [1.0, 2.0])
    for leaf in jax.tree.leaves(variables.params["blocks"]):
        np.testing.assert_allclose(leaf, 1.75)
    for head, value in zip(variables.params["exits"], (1.0, 2.0), strict=True):
        for leaf in jax.tree.leaves(head):
            np.testing.assert_allclose(leaf, value)
    # Every block got one contribution per client.
    np.testing.assert_allclose(info["merged_weight"], 4.0)


def test_heads_of_a_tier_count_alike_and_others_stay():
    problem = exits_problem()
    variables, _ = merged(problem, [1, 1], [1.0, 3.0], [1.0, 2.0])
    for leaf in jax.tree.leaves(variables.params["exits"][1]):
        np.testing.assert_allclose(leaf, 1.5)
    for leaf in jax.tree.leaves(variables.params["exits"][0]):
        np.testing.assert_array_equal(leaf, 0.0)


def test_running_statistics_of_both_halves_are_merged():
    problem = batch_norm_problem(exits=True)
    variables, _ = merged(problem, [0, 0], [1.0, 3.0], [1.0, 2.0])
    for leaf in jax.tree.leaves(variables.stats):
        np.testing.assert_allclose(leaf, 1.75)


def test_equal_clients_merge_to_themselves():
    problem = exits_problem()
    variables, _ = merged(problem, [0, 1, 0], [1.0, 3.0, 2.0], [0.5] * 3)
    for leaf in jax.tree.leaves(variables.params):
        np.testing.assert_allclose(leaf, 0.5, rtol=1e-6)


# ---- whole rounds --------------------------------------------------------------------------------


def test_tiers_follow_the_scheduler_and_the_round_is_its_bound():
    """Without noise the next round lasts what the scheduler said."""
    problem = exits_problem()
    algorithm = build("dtfl", problem, **SGD)
    result = simulate(algorithm, problem, rounds=3, execution="masked")
    metrics = result.record.metrics
    assert result.faults == []
    lasts = np.diff([m["virtual_s"] for m in metrics])
    for now, before in zip(metrics[2:], metrics[1:], strict=False):
        index = now["step"] - 1
        assert lasts[index] == pytest.approx(before["info"]["longest_s"], rel=1e-6)
    assert lasts[1] <= lasts[0]
    assert sum(metrics[-1]["info"]["tiers"]) == problem.num_clients
    cuts = {row["cut_block"] for row in result.record.clients if row["step"] == 3}
    assert cuts <= {0, 1}


def test_fixed_tiers_and_the_first_one():
    problem = exits_problem()
    fixed = build("dtfl", problem, fixed_tier=[1, 2] * 4, **SGD)
    plan, _ = fixed.plan(fixed.init(None, None), None, situation(problem))
    assert [route.cut for route in plan.routes] == [0, 1] * 4
    first = build("dtfl", problem, initial_tier=1, **SGD)
    plan, _ = first.plan(first.init(None, None), None, situation(problem))
    assert {route.cut for route in plan.routes} == {0}
    one = build("dtfl", problem, tiers=1, **SGD)
    plan, _ = one.plan(one.init(None, None), None, situation(problem))
    assert {route.cut for route in plan.routes} == {1}


def test_who_is_not_sampled_keeps_tier_and_history():
    problem = exits_problem()
    algorithm = build("dtfl", problem, clients_per_round=3, **SGD)
    result = simulate(algorithm, problem, rounds=1, execution="masked")
    seen = {row["client"] for row in result.record.clients}
    away = np.setdiff1d(np.arange(problem.num_clients), list(seen))
    assert np.isnan(result.state.ema_s[away]).all()
    assert (result.state.tier[away] == 1).all()
    assert np.isfinite(result.state.ema_s[list(seen), 1]).all()


def test_devices_take_the_tiers_they_can_hold():
    problem = exits_problem()
    batch = np.minimum(4, problem.data.sizes)
    small = problem.cost.memory_bytes(0, 0, int(batch[0]), 0)
    memory = np.full(problem.num_clients, np.inf)
    memory[0] = float(small)
    tight = replace(problem, fleet=replace(problem.fleet, memory_bytes=memory))
    algorithm = build("dtfl", tight, **SGD)
    state = algorithm.init(None, None)
    assert state.tier[0] == 0
    assert (state.tier[1:] == 1).all()


def test_unequal_routes_merge_into_one_accumulator():
    """Several tiers in one round: routed and masked agree, whatever the weights."""
    problem = batch_norm_problem((5, 8, 6), exits=True)
    algorithm = build("dtfl", problem, fixed_tier=1, **SGD)
    start = problem.model.init(jax.random.key(0))
    routed, _ = one_round(algorithm, problem, start)
    masked, _ = one_round(algorithm, problem, start, execution="masked")
    assert_close(routed, masked)


def test_clients_come_and_go():
    """Devices that are off are not asked; who returns goes on in the tier it had."""
    problem = exits_problem()
    n = problem.num_clients
    # Four clients are there in the first half of every cycle, the others in the second.
    early = np.arange(n) < n // 2
    shifts = from_intervals(
        [[(0.0, 0.5)] if first else [(0.5, 1.0)] for first in early], period_s=np.ones(n)
    )
    moving = replace(problem, fleet=replace(problem.fleet, availability=shifts))
    algorithm = build("dtfl", moving, clients_per_round=n // 2, **SGD)
    result = simulate(algorithm, moving, rounds=8, execution="masked")
    assert result.faults == []
    rows = result.record.clients
    for row in rows:
        place = row["dispatched_s"] % 1.0
        assert (place < 0.5) == bool(early[row["client"]])
    assert len({row["client"] for row in rows}) == n
    assert np.isfinite(result.state.ema_s).any(axis=1).all()


@pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        ("vgg11", (32, 32, 3), {"width": 0.125}),
        ("cifar_cnn", (32, 32, 3), {}),
        ("resnet20", (16, 16, 3), {"norm": "batch", "granularity": "module"}),
        ("transformer", (12,), {}),
    ],
)
def test_every_block_model_can_be_cut_at_every_boundary(name, shape, options):
    """Traced, not run: the equality of the halves is tested with the models."""
    model = models.build(name, shape, 10, exits=True, **options)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    kind = jnp.int32 if name == "transformer" else jnp.float32
    labels = (6, *shape) if name == "transformer" else (6,)
    data = DeviceData(
        jax.ShapeDtypeStruct((6, *shape), kind),
        jax.ShapeDtypeStruct(labels, jnp.int32),
        *(jax.ShapeDtypeStruct((count,), jnp.int32) for count in (6, 1, 1)),
    )
    local = split_training(model, Pipeline(), amsgrad(0.1), max_batch=4)
    last = model.num_blocks - 1
    for cut in range(last):
        zero = jnp.int32(0)
        work = Task(
            client=zero,
            key=jax.random.key(0),
            steps=zero,
            loop_steps=zero,
            batch=zero,
            learning_rate_scale=jnp.float32(1),
            exit=jnp.int32(last),
            mask=None,
            row={"cut": jnp.int32(cut)},
            shared=None,
        )
        route = Route(0, last, cut)
        result = jax.eval_shape(functools.partial(local, route), variables, data, work)
        assert jax.tree.structure(result.delta) == jax.tree.structure(
            masks.split(variables.params, route)[0]
        )
