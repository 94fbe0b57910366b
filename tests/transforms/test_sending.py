"""Uploads: their order, keys, prices and memory, in every way of execution."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from methods import SETTINGS
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.uploads import Upload, leaf_keys
from fedjax_het.transforms.sending import uploading

PROBLEM = digits_problem()
RUN = {"rounds": 3, "eval_every": 3, "seed": 4}
OPTIONS = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 4}


def each(function, *trees):
    return jax.tree.map(function, *trees)


def adding(amount):
    """Adds a number to every coordinate that was trained."""

    def change(kept, chunk):
        counts = chunk.weight > 0
        delta = each(
            lambda d: d + jnp.where(counts, amount, 0.0).reshape((-1,) + (1,) * (d.ndim - 1)),
            chunk.delta,
        )
        return kept, chunk._replace(delta=delta)

    return Upload("adding", change)


def scaling(factor, **fields):
    def change(kept, chunk):
        return kept, chunk._replace(delta=each(lambda d: factor * d, chunk.delta))

    return Upload("scaling", change, **fields)


def trained(method, *uploads, problem=PROBLEM, run=RUN, **options):
    steps = [uploading(u, f"step {i}") for i, u in enumerate(uploads)]
    made = fh.compose(method(problem, **{**OPTIONS, **options}), *steps)
    return fh.simulate(made, problem, **run)


def test_uploads_change_updates_from_left_to_right():
    run = {**RUN, "rounds": 1}
    plain = trained(fh.algorithms.fedavg, run=run)
    moved = trained(fh.algorithms.fedavg, scaling(2.0), adding(0.25), run=run)
    before = fh.Simulation(
        fh.algorithms.fedavg(PROBLEM, **OPTIONS), PROBLEM, **run
    ).variables.params
    expected = each(lambda w0, w: w0 + 2 * (w - w0) + 0.25, before, plain.variables.params)
    chex.assert_trees_all_close(moved.variables.params, expected, rtol=1e-5, atol=1e-6)
    other = trained(fh.algorithms.fedavg, adding(0.25), scaling(2.0), run=run)
    expected = each(lambda w: w + 0.25, expected)
    chex.assert_trees_all_close(other.variables.params, expected, rtol=1e-5, atol=1e-6)


def noisy():
    """Adds noise by the key of each task, so that equal keys or another order would show."""

    def change(kept, chunk):
        def of(delta, key, weight):
            scale = jnp.where(weight > 0, 0.1, 0.0)
            return each(
                lambda x, k: x + scale * jax.random.normal(k, x.shape),
                delta,
                leaf_keys(key, delta),
            )

        return kept, chunk._replace(delta=jax.vmap(of)(chunk.delta, chunk.key, chunk.weight))

    return Upload("noisy", change, contracts=False)


def counting():
    """Keeps for each client how often it sent, and scales its update by that number."""

    def change(kept, chunk):
        sent = jnp.where(chunk.weight > 0, 1.0, 0.0)
        count = kept.at[chunk.client].add(sent)
        own = count[chunk.client]
        delta = each(lambda d: d * own.reshape((-1,) + (1,) * (d.ndim - 1)), chunk.delta)
        return count, chunk._replace(delta=delta)

    return Upload("counting", change, keep=lambda variables, n: jnp.zeros(n))


METHODS = {
    "fedavg": (fh.algorithms.fedavg, {}),
    "fedbuff": (fh.algorithms.fedbuff, {"buffer_size": 2}),
    "fedpmt": (fh.algorithms.fedpmt, {"depths": (1, 3)}),
}


@pytest.mark.parametrize(
    ("name", "upload"),
    [
        ("fedavg", counting),
        pytest.param("fedbuff", noisy, marks=pytest.mark.slow),
        pytest.param("fedpmt", noisy, marks=pytest.mark.slow),
    ],
)
def test_uploads_agree_in_every_execution_and_when_resumed(name, upload, tmp_path):
    method, options = METHODS[name]
    plain = trained(method, **options)
    found = trained(method, upload(), **options)
    assert not np.allclose(
        jax.tree.leaves(found.variables)[0], jax.tree.leaves(plain.variables)[0], atol=1e-4
    )
    for execution in ("debug", "masked"):
        other = trained(method, upload(), run={**RUN, "execution": execution}, **options)
        chex.assert_trees_all_close(other.variables, found.variables, rtol=1e-4, atol=1e-5)
    both = trained(method, upload(), run={**RUN, "devices": 2}, **options)
    chex.assert_trees_all_close(both.variables, found.variables, rtol=1e-4, atol=1e-5)
    half = {**RUN, "rounds": 2, "workdir": tmp_path / "run", "checkpoint_every": 1}
    trained(method, upload(), run=half, **options)
    resumed = trained(method, upload(), run={**half, "rounds": 3}, **options)
    chex.assert_trees_all_equal(resumed.variables, found.variables)


def test_noise_is_added_once_per_step_to_the_sum():
    def noise(kept, params, key):
        del kept, key
        return each(lambda p: jnp.ones_like(p), params)

    def change(kept, chunk):
        return kept, chunk._replace(weight=jnp.where(chunk.weight > 0, 1.0, 0.0))

    for devices in (1, 2):
        noised = trained(
            fh.algorithms.fedavg,
            Upload("noise", change, noise=noise),
            run={**RUN, "rounds": 1, "devices": devices},
        )
        first = trained(fh.algorithms.fedavg, run={**RUN, "rounds": 1}, weighting="uniform")
        expected = each(lambda w: w + 1 / 4, first.variables.params)
        chex.assert_trees_all_close(noised.variables.params, expected, rtol=1e-5, atol=1e-6)


def test_prices_and_numbers_of_uploads_reach_the_records():
    def price(timing, count):
        assert count == 4
        return timing.moving(bytes_up=timing.bytes_up // 4)

    upload = scaling(
        1.0, price=price, told=lambda round, draw: {"spent": round + draw.size / draw.clients}
    )
    plain, found = trained(fh.algorithms.fedavg), trained(fh.algorithms.fedavg, upload)
    chex.assert_trees_all_equal(found.variables, plain.variables)
    before, after = plain.record.clients, found.record.clients
    np.testing.assert_allclose(
        [row["upload_s"] for row in after], [row["upload_s"] / 4 for row in before], rtol=1e-6
    )
    assert [row["bytes_up"] for row in after] == [row["bytes_up"] // 4 for row in before]
    told = [row["info"]["spent"] for row in found.record.metrics if row["step"]]
    assert told == [round + 4 / PROBLEM.num_clients for round in range(3)]
    kept = trained(fh.algorithms.fedavg, upload, counting())
    told = [row["info"]["spent"] for row in kept.record.metrics if row["step"]]
    assert told == [round + 4 / PROBLEM.num_clients for round in range(3)]


@pytest.mark.parametrize("name", ["dtfl", "splitfed", "fedgkt", "prfl"])
def test_methods_that_send_no_updates_refuse_uploads(name):
    make, options = SETTINGS.get(name, (digits_problem, {"learning_rate": 0.1}))
    method = fh.algorithms.build(name, make(), **options)
    with pytest.raises(InputError, match=f"scaling of {name}: changes updates, but a client"):
        fh.compose(method, uploading(scaling(2.0), "compress"))


def test_a_method_has_one_upload_of_a_kind():
    step = uploading(scaling(2.0), "compress")
    with pytest.raises(InputError, match="a method has one compress"):
        fh.compose(fh.algorithms.fedavg(PROBLEM, **OPTIONS), step, step)
