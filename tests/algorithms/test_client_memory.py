"""SCAFFOLD and FedDyn: what clients remember, by hand, and where it leads."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    digits_problem,
    fleet,
    make_chunk,
    scalar_block,
    scalars,
    values_of,
)

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.client_memory import added
from fedjax_het.common.errors import InputError
from fedjax_het.contract.clock import window
from fedjax_het.contract.uploads import Upload
from fedjax_het.data.federated import from_arrays
from fedjax_het.engine import slots
from fedjax_het.engine.resources import Resources
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem
from fedjax_het.transforms.sending import uploading

SLOPE, LABEL, SIZES = np.asarray([1.0, 2.0, 0.5]), np.asarray([3.0, -2.0, 1.0]), (2, 4, 6)
RATE, STEPS = 0.05, 3


@functools.cache
def quadratics(clients=3):
    """One parameter; all samples of client i are (a_i, b_i), so F_i(w) = (a_i w - b_i)^2."""
    owner = np.repeat(np.arange(clients), SIZES[:clients])
    x, y = SLOPE[owner].astype(np.float32)[:, None], LABEL[owner].astype(np.float32)
    data = from_arrays(x, y, x, y, clients=owner, test_clients=owner)
    model = BlockModel("quadratics", (scalar_block("w"),), (1,), 1)
    return Problem(model, data, fleet(clients), objective=fh.objectives.regression())


def gradient(i, w):
    return 2 * SLOPE[i] * (SLOPE[i] * w - LABEL[i])


def trained(name, problem=None, *, rounds=3, chunk=1, step=None, run=None, **options):
    problem = problem or quadratics()
    chosen = {"learning_rate": RATE, "batch_size": 8, "local_steps": STEPS, **options}
    made = build(name, problem, **chosen)
    made = made if step is None else fh.compose(made, step)
    return fh.simulate(
        made, problem, rounds=rounds, eval_every=rounds, seed=2, chunk=chunk, **(run or {})
    )


def cohorts(result):
    """The clients of every step, from the records."""
    rows = result.record.clients
    return [[r["client"] for r in rows if r["step"] == s] for s in range(1, rows[-1]["step"] + 1)]


def weights(name):
    sizes = np.asarray(SIZES, float)
    return sizes / sizes.mean() if name == "samples" else np.ones(3)


def scaffold(sampled, weight, *, momentum=0.0, server=1.0):
    """Algorithm 1 with option II in float64; the mean gradient is (x - y) / (K rate) for SGD."""
    x, c, own = 0.0, 0.0, np.zeros(3)
    for clients in sampled:
        moved, change = 0.0, 0.0
        for i in clients:
            y, velocity, seen = x, 0.0, 0.0
            for _ in range(STEPS):
                g = gradient(i, y) - own[i] + c
                velocity = g + momentum * velocity
                y, seen = y - RATE * velocity, seen + g / STEPS
            if not momentum:
                assert seen == pytest.approx((x - y) / (STEPS * RATE))
            new = own[i] - c + seen
            moved, change = moved + weight[i] * (y - x), change + weight[i] * (new - own[i])
            own[i] = new
        x, c = x + server * moved / sum(weight[i] for i in clients), c + change / 3
    return x, c, own


def feddyn(sampled, weight, alpha):
    """Algorithm 1 in float64, each client with K steps of gradient descent."""
    x, h, own = 0.0, 0.0, np.zeros(3)
    for clients in sampled:
        ends = []
        for i in clients:
            y = x
            for _ in range(STEPS):
                y = y - RATE * (gradient(i, y) - own[i] + alpha * (y - x))
            own[i] -= alpha * (y - x)
            h -= alpha * weight[i] * (y - x) / 3
            ends.append(weight[i] * y)
        x = sum(ends) / sum(weight[i] for i in clients) - h / alpha
    return x, h, own


@pytest.mark.parametrize(
    ("weighting", "momentum", "server"),
    [("uniform", 0.0, 1.0), ("samples", 0.0, 0.5), ("uniform", 0.9, 1.0)],
)
def test_scaffold_golden(weighting, momentum, server):
    more = {"weighting": weighting, "momentum": momentum, "server_learning_rate": server}
    found = trained("scaffold", clients_per_round=2, **more)
    sampled = cohorts(found)
    assert len({tuple(sorted(clients)) for clients in sampled}) > 1
    x, c, own = scaffold(sampled, weights(weighting), momentum=momentum, server=server)
    variates = found.state.inner
    np.testing.assert_allclose(values_of(found.variables), [x], rtol=1e-5)
    np.testing.assert_allclose(variates.own["blocks"][0]["w"], own, rtol=1e-5)
    told = variates.common["blocks"][0]["w"] + variates.change["blocks"][0]["w"]
    assert float(told) == pytest.approx(c, rel=1e-5)
    assert c == pytest.approx(np.mean(weights(weighting) * own))


@pytest.mark.parametrize("weighting", ["uniform", "samples"])
def test_feddyn_golden(weighting):
    found = trained("feddyn", clients_per_round=2, alpha=0.5, weighting=weighting)
    x, h, own = feddyn(cohorts(found), weights(weighting), 0.5)
    np.testing.assert_allclose(values_of(found.variables), [x], rtol=1e-5)
    np.testing.assert_allclose(found.state.own["blocks"][0]["w"], own, rtol=1e-5)
    np.testing.assert_allclose(found.state.mean["blocks"][0]["w"], h, rtol=1e-5)
    assert h == pytest.approx(np.mean(weights(weighting) * own))


@pytest.mark.parametrize(
    ("name", "options"), [("scaffold", {}), ("feddyn", {"alpha": 1.0}), ("fedavg", {})]
)
def test_many_local_steps_lead_to_the_optimum_of_the_mean_and_not_between_the_clients(
    name, options
):
    """Optima at 3 and -1; (w - 3)^2 + (2 w + 2)^2 is least at -0.2, where FedAvg does not stop."""
    options = {"local_steps": 10, "weighting": "uniform", "schedule": "constant", **options}
    found = trained(name, quadratics(2), rounds=60, **options)
    (w,) = values_of(found.variables)
    if name == "fedavg":
        assert w > 0.2
    else:
        assert w == pytest.approx(-0.2, abs=1e-3)


def test_control_variates_are_priced_both_ways():
    plain, found = (
        trained(name, rounds=1, weighting="uniform").record.clients
        for name in ("fedavg", "scaffold")
    )
    for before, after in zip(plain, found, strict=True):
        for way in ("up", "down"):
            assert after[f"bytes_{way}"] == 2 * before[f"bytes_{way}"] == 8
        for part in ("upload_s", "download_s"):
            assert after[part] == pytest.approx(2 * before[part])
    dyn = trained("feddyn", rounds=1, weighting="uniform").record.clients
    assert [row["bytes_up"] for row in dyn] == [row["bytes_up"] for row in plain]


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_few_slots_for_results_do_not_change_what_clients_read(name, monkeypatch):
    found = trained(name, run={"devices": 2})
    monkeypatch.setattr(slots, "RESULT_BYTES", {"cpu": 4.0})
    few = trained(name, run={"devices": 2})
    assert_close(few.variables, found.variables)
    assert_close(few.state, found.state)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_the_rows_of_all_clients_are_changed_in_place(name, chunk, monkeypatch):
    """The program that trains and merges needs no second copy of them."""
    n, programs = 500, []
    problem = digits_problem((2,) * n, hidden=(8,))
    compiled = Resources.compile

    def compile(self, *arguments, **options):
        programs.append(compiled(self, *arguments, **options))
        return programs[-1]

    monkeypatch.setattr(Resources, "compile", compile)
    method = build(name, problem, learning_rate=RATE, clients_per_round=2)
    result = fh.simulate(method, problem, rounds=1, chunk=chunk)
    rows = n * sum(leaf.nbytes for leaf in jax.tree.leaves(result.variables.params))
    found = [program.memory_analysis() for program in programs]
    (train,) = [each for each in found if each.argument_size_in_bytes > rows]
    assert train.alias_size_in_bytes > rows
    assert train.temp_size_in_bytes < rows / 10


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_personal_models_are_trained_with_the_memory_of_their_clients(name):
    """A client of which the test samples are; one more local training by hand after a round."""
    found = trained(name, run={"personal": True, "client_eval": "last"}, rounds=1)
    state = found.state.inner if name == "scaffold" else found.state
    (x,), own = values_of(found.variables).tolist(), np.asarray(state.own["blocks"][0]["w"])
    for row in found.record.client_evaluations:
        i, y = row["client"], x
        for _ in range(STEPS):
            if name == "scaffold":
                # After the first round of everyone, the server's variate is the mean.
                y = y - RATE * (gradient(i, y) - own[i] + np.mean(own))
            else:
                y = y - RATE * (gradient(i, y) - own[i] + 0.01 * (y - x))
        assert row["personal_mse"] == pytest.approx((SLOPE[i] * y - LABEL[i]) ** 2, rel=1e-3)


def test_rows_of_padding_and_of_clients_without_an_update_stay():
    start = scalars([1.0])
    rows = {"blocks": ({"w": jnp.arange(3.0)},), "exits": ()}
    change = {"blocks": ({"w": jnp.asarray([10.0, 20.0, 30.0])},), "exits": ()}
    chunk = make_chunk(start, [1.0, 0.0, 2.0], change)
    chunk = chunk._replace(client=jnp.asarray([2, 1, 0], jnp.int32))
    found = added(rows, chunk, change)
    np.testing.assert_array_equal(found["blocks"][0]["w"], [30.0, 1.0, 12.0])
    nothing = jax.tree.map(lambda _: None, change)
    chex.assert_trees_all_equal(added(rows, chunk, nothing), rows)


def test_feddyn_follows_the_updates_that_are_sent_and_scaffold_takes_no_uploads():
    def change(kept, chunk):
        return kept, chunk._replace(delta=jax.tree.map(lambda d: 0.5 * d, chunk.delta))

    half = uploading(Upload("half", change), "compress")
    found = trained("feddyn", step=half, rounds=1, alpha=0.5)
    plain = trained("feddyn", rounds=1, alpha=0.5)
    assert_close(
        found.state.inner.own, jax.tree.map(lambda a: jnp.float32(0.5) * a, plain.state.own)
    )
    with pytest.raises(InputError, match=r"half of scaffold: .* the change of its control variate"):
        trained("scaffold", step=half)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_a_pace_that_leaves_tasks_waiting_is_refused(name):
    made = build(name, quadratics(), learning_rate=RATE)._replace(pace=window(1.0))
    with pytest.raises(InputError, match=f"pace of {name}: leaves tasks waiting"):
        fh.Simulation(made, quadratics(), rounds=1)
