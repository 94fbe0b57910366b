"""FedPMT: where it converges, and how fast. Checks of methods/fedpmt.md."""

import jax
import jax.numpy as jnp
import numpy as np
from problems import (
    make_chunk,
    make_plan,
    one_round,
    scalar_problem,
    scalars,
    values_of,
)

from benchmarks.reproduce import fedpmt_theory
from fedjax_het.algorithms import build
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.engine import make_engine

TRAINING = {"learning_rate": 0.1, "batch_size": 4}
SAMPLES = (10, 20, 30)
FIRST = np.int32([3, 1, 0])  # depths 1, 3, 4 of 4


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
        engine = make_engine(algorithm._replace(local=local), problem)
        plan = make_plan(
            problem,
            routes=[Route(int(f), 3) for f in first],
            rows={"first": first, "centre": np.float32([1, 2, 6])},
        )
        variables = scalars([0] * 4)
        for _ in range(count):
            variables, _ = one_round(algorithm, problem, variables, plan, engine=engine)
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
            delta = as_variables((own - w[None]).T).params
            acc = mean.add(acc, make_chunk(start, jnp.ones(devices), delta, mask=mask))
            merged = mean.finalize(acc, start, None).variables
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


def test_12_the_method_itself_converges_as_one_over_t():
    """`fedpmt(schedule="inverse")` on logistic regression: T x gap levels off if data are alike.

    If classes go with depths, the gap itself does: the fixed point is not the minimum.
    """
    horizons = (50, 100, 200, 400)
    alike = np.mean([fedpmt_theory.gaps("iid", seed, horizons) for seed in (0, 1)], axis=0)
    assert np.all(alike > 0)
    assert -1.4 < fedpmt_theory.slope(alike, horizons) < -0.6
    biased = fedpmt_theory.gaps("by_speed", 0, horizons)
    assert biased[-1] > 5 * alike[-1]
    assert biased[-1] > 0.7 * biased[-2]
