"""Methods that break the contract are told so, by name, before anything runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import digits_problem, nudge, scalar_problem, windows

from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import ClientResult, Merged
from fedjax_het.simulation.simulate import simulate

PROBLEM = scalar_problem((3, 4))


def moving(change):
    """A method whose local update returns `change` of a sound result."""
    sound = nudge(PROBLEM)

    def local(route, start, data, task):
        return change(sound.local(route, start, data, task))

    return sound._replace(name="careless", local=local)


def with_mask(mask):
    return windows(digits_problem())._replace(name="careless", mask=mask)


def with_finalize(finalize):
    sound = nudge(PROBLEM)
    return sound._replace(name="careless", merge=sound.merge._replace(finalize=finalize))


BROKEN = {
    "mask of another structure": (
        lambda: with_mask(lambda row, shared: {"blocks": ()}),
        "mask of careless.*structure of the parameters",
    ),
    "mask of numbers": (
        lambda: with_mask(lambda row, shared: ones_like(digits_problem(), jnp.float32)),
        "mask of careless.*float32",
    ),
    "mask of a shape that does not fit": (
        lambda: with_mask(lambda row, shared: ones_like(digits_problem(), bool, (5,))),
        r"mask of careless.*\(5,\) does not broadcast",
    ),
    "update of another dtype": (
        lambda: moving(lambda r: r._replace(delta=jax.tree.map(half, r.delta))),
        "local update of careless.*float16",
    ),
    "update of more than the route trains": (
        lambda: moving(lambda r: r._replace(delta={**r.delta, "exits": (jnp.zeros(3),)})),
        "local update of careless",
    ),
    "loss per sample": (
        lambda: moving(lambda r: r._replace(loss=jnp.zeros(3))),
        r"local update of careless.*\(3,\)",
    ),
    "samples as a float": (
        lambda: moving(lambda r: r._replace(samples=jnp.float32(1))),
        "local update of careless.*float32",
    ),
    "finalize that returns a tuple": (
        lambda: with_finalize(lambda acc, variables, shared: (variables, {})),
        "merge of careless.*returned a tuple",
    ),
    "finalize of other shapes": (
        lambda: with_finalize(lambda acc, v, shared: Merged(jax.tree.map(lambda a: a[None], v))),
        "merge of careless.*shapes",
    ),
}


def half(leaf):
    return leaf.astype(jnp.float16)


def ones_like(problem, dtype, shape=()):
    params = problem.model.shapes.params
    return jax.tree.map(lambda _: jnp.ones(shape, dtype), params)


@pytest.mark.parametrize("execution", ["routed", "debug"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_part_is_named(name, execution):
    make, message = BROKEN[name]
    problem = digits_problem() if "mask" in name else PROBLEM
    with pytest.raises(InputError, match=f"(?s){message}"):
        simulate(make(), problem, rounds=1, execution=execution)


# ---- the two kinds of leaves of a state ------------------------------------------------------


def counting(update, first):
    return nudge(PROBLEM)._replace(
        name="careless", init=lambda variables, key: {"count": first}, update=update
    )


def add_one(state, variables, merged):
    return {"count": state["count"] + 1}, merged.variables


def test_leaves_of_jax_are_the_server_s_and_numpy_leaves_keep_their_precision():
    result = simulate(counting(add_one, jnp.zeros((), jnp.int32)), PROBLEM, rounds=3)
    assert int(result.state["count"]) == 3
    third = np.asarray(1 / 3)  # not a float32

    def observe(state, variables, report):
        return {"count": state["count"] + third}, variables, {}

    keep = lambda state, variables, merged: (state, merged.variables)
    watched = counting(keep, np.float64(0))._replace(observe=observe)
    result = simulate(watched, PROBLEM, rounds=3)
    assert result.state["count"].dtype == np.float64
    assert float(result.state["count"]) == third + third + third


@pytest.mark.parametrize(
    "update",
    [
        lambda state, variables, merged: ({"count": jnp.int32(7)}, merged.variables),
        lambda state, variables, merged: ({"count": np.int64(7)}, merged.variables),
    ],
)
def test_a_step_that_changes_a_numpy_leaf_is_refused(update):
    with pytest.raises(InputError, match=r"update of careless: changes state\['count'\].*host"):
        simulate(counting(update, np.int64(0)), PROBLEM, rounds=1)


def test_a_step_cannot_read_a_numpy_leaf():
    """It would be rounded to 32 bits, or frozen into the program."""
    with pytest.raises(TypeError, match="HostLeaf"):
        simulate(counting(add_one, np.int64(0)), PROBLEM, rounds=1)


def test_a_step_that_drops_a_field_is_refused():
    drop = lambda state, variables, merged: ({}, merged.variables)
    with pytest.raises(InputError, match=r"update of careless: returns a state of structure"):
        simulate(counting(drop, jnp.zeros(())), PROBLEM, rounds=1)


def test_aux_goes_to_the_merge_and_info_to_the_host():
    sound, seen, reports = nudge(PROBLEM), [], []

    def local(route, start, data, task):
        result = sound.local(route, start, data, task)
        aux, info = jnp.arange(3, dtype=jnp.float32), {"client": task.client}
        return ClientResult(result.delta, result.stats, result.loss, result.samples, aux, info)

    def add(acc, chunk):
        seen.append(chunk.aux.shape)
        assert chunk.staleness.shape == chunk.weight.shape
        return sound.merge.add(acc, chunk)

    def observe(state, variables, report):
        reports.append(report)
        return state, variables, {}

    method = sound._replace(local=local, merge=sound.merge._replace(add=add), observe=observe)
    simulate(method, PROBLEM, rounds=1, chunk=2)
    assert seen
    assert all(shape[1:] == (3,) for shape in seen)
    np.testing.assert_array_equal(reports[0].client_info["client"], [0, 1])
    assert isinstance(reports[0].client_info["client"], np.ndarray)
    assert set(reports[0].info) == {"merged_weight"}
