"""The server's step is told its round and a key, and its state may hold keys."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import differ, digits_problem, nudge

from fedjax_het.contract.clock import arrivals
from fedjax_het.contract.plan import Schedule
from fedjax_het.simulation.simulate import simulate

ROUNDS, SEED = 5, 3
PROBLEM = digits_problem(hidden=(8,))


def noise(key):
    """Whole numbers, whose sums are exact in any program."""
    return jax.random.randint(key, (), -99, 99).astype(jnp.float32)


def noisy(batches=False, pace=None, impl=None):
    """A method whose server adds noise from its key, the round, and noise from a key of its own."""
    base = nudge(PROBLEM, clients_per_round=4, weighting="uniform")

    def init(variables, key):
        own = jax.random.key(7, impl=impl)
        return {"own": own, "every": jax.random.split(own, 3), "host": np.zeros(2)}

    def update(state, variables, merged):
        assert (merged.round.dtype, merged.round.shape) == (jnp.int32, ())
        own = jax.random.fold_in(state["own"], merged.round)
        drawn = noise(merged.key) + 100 * noise(own) + merged.round.astype(jnp.float32)
        params = jax.tree.map(lambda w: w * 0 + drawn, merged.variables.params)
        added = jax.tree.map(jnp.add, jax.tree.map(jnp.round, variables.params), params)
        return {**state, "own": own}, merged.variables._replace(params=added)

    plan = Schedule(lambda now: base.plan((), None, now)[0]) if batches else None
    method = base._replace(init=init, update=update, pace=pace or base.pace)
    return method._replace(plan=plan or (lambda s, v, now: (base.plan((), v, now)[0], s)))


def run(method, **options):
    options = {"rounds": ROUNDS, "seed": SEED, "eval_every": 100, "chunk": 1, **options}
    return simulate(method, PROBLEM, **options)


def data_of(state):
    return jax.tree.map(
        lambda a: np.asarray(jax.random.key_data(a)) if _typed(a) else np.asarray(a), state
    )


def _typed(leaf):
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def assert_same(one, other):
    assert not differ(one.variables, other.variables)
    assert not differ(data_of(one.state), data_of(other.state))


@pytest.fixture(scope="module")
def base():
    return run(noisy())


def test_the_key_depends_on_seed_and_step_only(base):
    """By hand, from the streams of the seed."""
    root = jax.random.split(jax.random.key(SEED), 4)[2]
    own, total = jax.random.key(7), 0.0
    for t in range(ROUNDS):
        key = jax.random.fold_in(jax.random.fold_in(root, t), np.uint32(2**32 - 1))
        own = jax.random.fold_in(own, t)
        total += float(noise(key)) + 100 * float(noise(own)) + t
    start = PROBLEM.model.init(jax.random.split(jax.random.key(SEED), 4)[0])
    for before, after in zip(*map(jax.tree.leaves, (start.params, base.variables.params))):
        np.testing.assert_array_equal(after, np.round(before) + total)


@pytest.mark.parametrize(
    "options",
    [
        {"execution": "debug", "chunk": None},
        {"chunk": 4},
        {"devices": 2},
        {"batches": True},
        {"batches": True, "eval_every": 2},
        {"batches": True, "devices": 2},
    ],
)
def test_every_program_gives_the_same_key(base, options):
    method = noisy(batches=options.pop("batches", False))
    assert_same(run(method, **options), base)


def test_steps_with_a_single_client_have_them_too():
    lone, stored = (run(noisy(pace=arrivals(1)), chunk=chunk) for chunk in (1, 4))
    assert_same(lone, stored)


@pytest.mark.parametrize("impl", [None, "rbg"])
@pytest.mark.parametrize("batches", [False, True])
def test_keys_of_the_state_survive_a_checkpoint(tmp_path, batches, impl):
    whole = run(noisy(batches, impl=impl))
    options = {"workdir": tmp_path, "checkpoint_every": 2}
    run(noisy(batches, impl=impl), **options)
    shutil.rmtree(tmp_path / "checkpoints" / f"{ROUNDS:08d}", ignore_errors=True)
    (tmp_path / "summary.json").unlink()
    resumed = run(noisy(batches, impl=impl), **options)
    assert_same(resumed, whole)
    assert jax.random.key_impl(resumed.state["own"]) == jax.random.key_impl(whole.state["own"])
