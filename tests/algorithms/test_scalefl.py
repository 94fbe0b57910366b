"""ScaleFL: levels, prices and a merge by hand, and what it equals in special cases."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    SIZES,
    assert_close,
    batch_norm_problem,
    differ,
    exits_problem,
    one_round,
    situation,
)

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.masks import Route
from fedjax_het.models.exits import with_exits
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem

OPTIONS = {"learning_rate": 0.1, "batch_size": 4}
# Units (12, 8) of the network; .7 keeps (9, 6), .75 keeps (9, 6), .5 keeps (6, 4).
PAIRS = ((0.5, 1), (0.5, 2), (0.75, 2), (1.0, 3))


def scalefl(problem=None, **options):
    return build("scalefl", problem or exits_problem(), **{**OPTIONS, **options})


def plan_of(method, problem=None, **now):
    return method.plan(None, None, situation(problem or exits_problem(), **now))[0]


def trained(name, problem=None, rounds=2, engine=None, **options):
    problem = problem or exits_problem()
    method = build(name, problem, **{**OPTIONS, **options})
    return fh.simulate(method, problem, rounds=rounds, eval_every=rounds, **(engine or {}))


# ---- levels and prices ---------------------------------------------------------------------------


def test_the_levels_of_the_paper():
    four = exits_problem(SIZES, (12, 8, 6))
    method = scalefl(four, levels="even")
    routes = plan_of(method, four).routes[:4]
    # Widths 1, .75 and .7 are the levels 0, 1 and 2; two levels have one width and other depths.
    assert routes == [
        Route(0, 0, width=2),
        Route(0, 1, width=2, heads=(0,)),
        Route(0, 2, width=1, heads=(0, 1)),
        Route(0, 3, width=0, heads=(0, 1, 2)),
    ]
    assert [list(each.values()) for each in method.widths.counts] == [
        [12, 8, 6],
        [9, 6, 5],
        [9, 6, 5],
    ]
    assert method.submodels.of_client[:5] == (
        "width_0.7_depth_1",
        "width_0.7_depth_2",
        "width_0.75_depth_3",
        "width_1_depth_4",
        "width_0.7_depth_1",
    )
    fewer = plan_of(scalefl(levels="even")).routes[:3]
    assert fewer == [
        Route(0, 0, width=1),
        Route(0, 1, None, 1, heads=(0,)),
        Route(0, 2, heads=(0, 1)),
    ]


def test_a_client_moves_and_computes_its_sub_model_only():
    method = scalefl(submodels=PAIRS, levels=[1, 2, 3, 4, 1, 1, 1, 1])
    plan = plan_of(method)

    def layer(inputs, outputs):
        return inputs * outputs + outputs

    values = [
        layer(64, 6) + layer(6, 10),
        layer(64, 6) + layer(6, 4) + layer(6, 10) + layer(4, 10),
        layer(64, 9) + layer(9, 6) + layer(9, 10) + layer(6, 10),
        layer(64, 12) + layer(12, 8) + layer(12, 10) + 2 * layer(8, 10),
    ]
    np.testing.assert_array_equal(plan.timing.bytes_down[:4], 4 * np.asarray(values))
    np.testing.assert_array_equal(plan.timing.bytes_up[:4], 4 * np.asarray(values))
    # Two FLOPs per product forward, as many for the weights, and for the inputs but in block 0.
    work = [
        4 * 64 * 6 + 6 * 6 * 10,
        4 * 64 * 6 + 6 * (6 * 4 + 6 * 10 + 4 * 10),
        4 * 64 * 9 + 6 * (9 * 6 + 9 * 10 + 6 * 10),
        4 * 64 * 12 + 6 * (12 * 8 + 12 * 10 + 2 * 8 * 10),
    ]
    np.testing.assert_allclose(plan.timing.flops[:4], np.multiply(work, SIZES[:4]))
    np.testing.assert_array_equal(plan.weight, np.ones(len(SIZES)))
    problem = exits_problem()
    memory = np.full(len(SIZES), 4 * 4.0 * values[1])
    small = dataclasses.replace(
        problem, fleet=dataclasses.replace(problem.fleet, memory_bytes=memory)
    )
    scalefl(small, submodels=PAIRS, levels=[2] * 8)
    with pytest.raises(InputError, match="exceed the memory"):
        scalefl(small, submodels=PAIRS, levels=[2] * 7 + [4])


def test_a_client_has_the_largest_level_that_it_affords():
    flops = np.asarray(plan_of(scalefl(submodels=PAIRS, levels=[1, 2, 3, 4] * 2)).timing.flops)
    share = flops[:4] / SIZES[:4] / (flops[3] / SIZES[3])
    just_below = share[2] * 0.999
    method = scalefl(
        submodels=PAIRS, capacity=[1.0, share[2], just_below, share[0], share[0] / 2, 1.0, 1.0, 1.0]
    )
    plan = plan_of(method)
    assert [(r.width, r.exit) for r in plan.routes[:5]] == [(0, 2), (1, 1), (2, 1), (2, 0), (2, 0)]
    assert plan.info == {"infeasible_clients": 1}
    changing = scalefl(submodels=PAIRS, capacity=lambda round: np.full(8, [1.0, share[0]][round]))
    assert [plan_of(changing, round=r).routes[0].exit for r in (0, 1)] == [2, 0]
    assert changing.submodels.of_client is None


# ---- one round by hand ---------------------------------------------------------------------------


def narrow(params, first, second):
    """The layers of a (first, second)-unit network, cut by hand from those of (12, 8)."""
    (a, b, c), (heads_a, heads_b) = (
        [block["Dense_0"] for block in params["blocks"]],
        [head["Dense_0"] for head in params["exits"]],
    )
    return {
        "one": {"kernel": a["kernel"][:, :first], "bias": a["bias"][:first]},
        "two": {"kernel": b["kernel"][:first, :second], "bias": b["bias"][:second]},
        "three": {"kernel": c["kernel"][:second], "bias": c["bias"]},
        "head one": {"kernel": heads_a["kernel"][:first], "bias": heads_a["bias"]},
        "head two": {"kernel": heads_b["kernel"][:second], "bias": heads_b["bias"]},
    }


def outputs_of(layers, x):
    """Logits of the three exits."""

    def dense(name, x):
        return x @ layers[name]["kernel"] + layers[name]["bias"][None]

    h = jax.nn.relu(dense("one", x))
    g = jax.nn.relu(dense("two", h))
    return [dense("head one", h), dense("head two", g), dense("three", g)]


def loss_of(layers, x, y, exits, gamma, temperature=3.0):
    logits = outputs_of(layers, x)[:exits]
    labels = jax.nn.one_hot(y, 10)
    value = jnp.zeros(())
    for j, each in enumerate(logits, 1):
        term = -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(each), axis=-1))
        if j < exits and gamma:
            teacher = jax.lax.stop_gradient(jax.nn.log_softmax(logits[-1] / temperature))
            student = jax.nn.log_softmax(each / temperature)
            kl = jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1)
            term = term + gamma * temperature**2 * jnp.mean(kl)
        value = value + (2.0 * j / (exits * (exits + 1))) * term
    return value


def by_hand(problem, start, levels, gamma):
    """One step of every client on its own network, and the mean where clients hold a coordinate."""
    units = {1: (6, 4, 1), 2: (6, 4, 2), 3: (9, 6, 2), 4: (12, 8, 3)}
    whole = narrow(start.params, 12, 8)
    total = jax.tree.map(lambda a: np.zeros(a.shape), whole)
    count = jax.tree.map(lambda a: np.zeros(a.shape), whole)
    for client, level in enumerate(levels):
        first, second, exits = units[level]
        own = narrow(start.params, first, second)
        chosen = problem.data.client_samples(client)
        x, y = problem.data.x[chosen], problem.data.y[chosen]
        grads = jax.grad(loss_of)(own, x, y, exits, gamma)
        held = {"one", "head one"} | ({"two", "head two"} if exits > 1 else set())
        held |= {"three"} if exits > 2 else set()
        for name in held:
            for leaf, gradient in grads[name].items():
                # A teacher's head is not trained if it is not the last: the head of exit 2.
                place = tuple(slice(0, size) for size in gradient.shape)
                total[name][leaf][place] -= 0.1 * np.asarray(gradient)
                count[name][leaf][place] += 1
    return jax.tree.map(lambda w, s, n: w + s / np.maximum(n, 1), whole, total, count)


@pytest.mark.parametrize("gamma", [0.0, 0.7])
@pytest.mark.parametrize("levels", [(1, 4), (2, 3), (1, 2, 3, 4), (4, 4)], ids=str)
def test_a_round_is_the_mean_over_those_who_hold_a_coordinate(levels, gamma):
    problem = exits_problem((4, 3, 2, 4)[: len(levels)])
    method = scalefl(problem, submodels=PAIRS, levels=levels, gamma=gamma, local_steps=1)
    start = problem.model.init(jax.random.key(0))
    moved, _ = one_round(method, problem, start, plan_of(method, problem))
    want = by_hand(problem, start, levels, gamma)
    assert_close(narrow(moved.params, 12, 8), want, rtol=1e-4, atol=1e-6)
    if levels == (2, 3):
        # Nobody holds the last units or the last block, which keep their values bit for bit.
        first = moved.params["blocks"][0]["Dense_0"]["kernel"]
        np.testing.assert_array_equal(
            first[:, 9:], start.params["blocks"][0]["Dense_0"]["kernel"][:, 9:]
        )
        assert not differ(moved.params["blocks"][2], start.params["blocks"][2])
        assert differ(moved.params["exits"], start.params["exits"])


# ---- special cases -------------------------------------------------------------------------------


def test_with_one_exit_of_the_complete_network_it_is_fedavg():
    ours = trained("scalefl", submodels=((1.0, 1),), exits=[2])
    plain = trained("fedavg", weighting="uniform")
    assert_close(ours.variables, plain.variables)


def test_distillation_changes_clients_of_several_exits_only():
    def run(level, gamma):
        levels = [level] * len(SIZES)
        return trained("scalefl", submodels=PAIRS, levels=levels, gamma=gamma, rounds=1).variables

    assert not differ(run(1, 0.0), run(1, 0.5))
    assert differ(run(3, 0.0), run(3, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"execution": "masked"}, {"max_routes": 2}], ids=str)
@pytest.mark.parametrize("kind", ["statistics", "static norm", "shared head", "scaler"])
def test_executions_agree(kind, how):
    options = {"levels": "even", "gamma": 0.5, "rounds": 1}
    problem = exits_problem()
    if kind in ("statistics", "static norm"):
        problem = batch_norm_problem(exits=True)
        # One step: a batch norm over a second batch of one sample would amplify rounding.
        options |= {"submodels": ((0.5, 1), (1.0, 1), (1.0, 2)), "local_steps": 1}
        options |= {"static_norm": kind == "static norm"}
    elif kind == "shared head":
        model = with_exits(mlp((64,), 10, hidden=(8, 8, 8)), shared=True)
        problem = Problem(model, problem.data, problem.fleet)
    else:
        options["scaler"] = True
    run = functools.partial(trained, "scalefl", problem, **options)
    routed, other = run(), run(engine=how)
    assert_close(other.variables, routed.variables, rtol=2e-5, atol=2e-6)
    assert routed.faults == []


# ---- evaluation ----------------------------------------------------------------------------------


def test_every_level_is_evaluated_at_its_width_and_exit():
    problem = exits_problem()
    run = trained("scalefl", submodels=PAIRS, levels="even", rounds=1)
    row = run.record.metrics[-1]
    x, y = jnp.asarray(problem.data.test_x), np.asarray(problem.data.test_y)
    sizes = {(0.5, 1): (6, 4), (0.5, 2): (6, 4), (0.75, 2): (9, 6), (1.0, 3): (12, 8)}
    models = scalefl(submodels=PAIRS).submodels.models(None, run.variables)
    for (rate, number), units in sizes.items():
        logits = outputs_of(narrow(run.variables.params, *units), x)[number - 1]
        name = f"width_{rate:g}_depth_{number}"
        model, own = models[name]
        assert isinstance(own, Variables)
        np.testing.assert_allclose(model.apply(own, x)[0], logits, rtol=1e-4, atol=1e-5)
        right = float(np.mean(np.argmax(logits, axis=1) == y))
        assert row[f"accuracy[{name}]"] == pytest.approx(right)
    assert row["accuracy[width_1_depth_3]"] == row["accuracy"]
    assert "local_accuracy" in row
