"""Privacy: clipping, calibrated noise, the clipping norm that adapts, epsilon, and refusals."""

import dataclasses
import functools
import importlib.util
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import SIZES, batch_norm_problem, digits_problem, fleet
from scipy.stats import norm

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.algorithm import Chunk
from fedjax_het.contract.uploads import Draw, Upload
from fedjax_het.transforms.privacy import mechanism
from fedjax_het.transforms.privacy.accounting import epsilon
from fedjax_het.transforms.sending import draw_of, uploading

PROBLEM = digits_problem()
N = PROBLEM.num_clients
OPTIONS = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 4}
RUN = {"rounds": 2, "eval_every": 2, "seed": 4}
FEDAVG = functools.partial(fh.algorithms.fedavg, **OPTIONS)
FEDPMT = functools.partial(fh.algorithms.fedpmt, **OPTIONS, depths=(1, 3))
FEDBUFF = functools.partial(fh.algorithms.fedbuff, **OPTIONS, buffer_size=2)
gaussian = fh.privacy.gaussian


def each(function, *trees):
    return jax.tree.map(function, *trees)


def simulation(method, *steps, problem=PROBLEM, **run):
    return fh.Simulation(fh.compose(method(problem), *steps), problem, **{**RUN, **run})


def trained(method, *steps, problem=PROBLEM, **run):
    return fh.simulate(fh.compose(method(problem), *steps), problem, **{**RUN, **run})


def chunk_of(delta, *, mask=None, weight=None, seed=0):
    count = len(jax.tree.leaves(delta)[0])
    weight = jnp.ones(count) if weight is None else jnp.asarray(weight, jnp.float32)
    keys = jax.random.split(jax.random.key(seed), count)
    nothing = dict.fromkeys(Chunk._fields)
    return Chunk(**{**nothing, "delta": delta, "mask": mask, "weight": weight, "key": keys})


# ---- clipping --------------------------------------------------------------------------------


def test_updates_are_clipped_over_everything_that_a_client_sends():
    delta = {"a": jnp.array([[3.0, 0.0], [0.3, 0.0]]), "b": jnp.array([[4.0], [0.4]]), "c": None}
    found, norms = mechanism.clipped(chunk_of(delta, weight=[7.0, 0.0]), 2.0)
    np.testing.assert_allclose(norms, [5.0, 0.5])
    expected = {"a": jnp.array([[1.2, 0.0], [0.3, 0.0]]), "b": jnp.array([[1.6], [0.4]]), "c": None}
    chex.assert_trees_all_close(found.delta, expected, rtol=1e-6)
    np.testing.assert_array_equal(found.delta["a"][1], delta["a"][1])  # shorter ones stay exactly
    np.testing.assert_array_equal(mechanism.equal(found).weight, [1.0, 0.0])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=6, max_size=6
    ),
    st.floats(2**-10, 2**10, width=32),
)
def test_no_client_moves_the_sum_by_more_than_the_limit(values, limit):
    rows = jnp.asarray(values, jnp.float32).reshape(2, 3)
    found, _ = mechanism.clipped(chunk_of({"a": rows[:, :2], "b": rows[:, 2:]}), limit)
    sent = np.concatenate([found.delta["a"], found.delta["b"]], axis=1).astype(np.float64)
    assert np.all(np.linalg.norm(sent, axis=1) <= limit * (1 + 1e-6))


@pytest.mark.parametrize("method", [FEDAVG, FEDPMT])
def test_a_round_is_the_mean_of_clipped_updates_with_equal_weights(method):
    moved = []

    def seen(kept, chunk):
        jax.debug.callback(lambda *leaves: moved.append(leaves), *jax.tree.leaves(chunk.delta))
        return kept, chunk

    limit = 0.02
    sees = uploading(Upload("seen", seen), "seen")
    run = simulation(method, gaussian(clip=limit, noise=0.0), sees, rounds=1, execution="masked")
    before = run.variables.params
    run.step()
    sent = [np.concatenate(parts) for parts in zip(*moved, strict=True)]  # a row for each client
    norms = np.sqrt(sum(np.sum(x**2, axis=tuple(range(1, x.ndim))) for x in sent))
    assert np.sum(norms > 0) == 4
    np.testing.assert_allclose(norms[norms > 0], limit, rtol=1e-5)
    counts = [np.sum(np.any(x != 0, axis=tuple(range(1, x.ndim)))) for x in sent]
    assert set(counts) == ({4} if method is FEDAVG else {1, 4})
    step = each(jnp.subtract, run.variables.params, before)
    for found, x, count in zip(jax.tree.leaves(step), sent, counts, strict=True):
        np.testing.assert_allclose(found, np.sum(x, axis=0) / count, atol=1e-7)


def test_without_limit_and_noise_the_method_stays_as_it_is():
    plain = FEDAVG(PROBLEM)
    same = fh.compose(plain, gaussian(clip=math.inf, noise=0.0))
    assert same is plain


# ---- noise -----------------------------------------------------------------------------------


def test_noise_is_calibrated_on_the_sum_and_added_once_on_any_number_of_devices():
    problem, deviation = digits_problem(hidden=(64, 64)), 0.5
    quiet = trained(FEDAVG, gaussian(clip=1.0, noise=0.0), problem=problem, rounds=1)
    one, two = (
        trained(FEDAVG, gaussian(clip=1.0, noise=0.5), problem=problem, rounds=1, devices=devices)
        for devices in (1, 2)
    )
    chex.assert_trees_all_close(one.variables, two.variables, rtol=1e-5, atol=1e-6)
    noise = each(jnp.subtract, one.variables.params, quiet.variables.params)
    values = 4 * np.concatenate([np.ravel(x) for x in jax.tree.leaves(noise)])  # of four clients
    assert abs(values.mean()) < 4 * deviation / np.sqrt(values.size)
    error = abs(np.mean(values**2) - deviation**2)
    assert error < 4 * deviation**2 * np.sqrt(2 / values.size)


def test_local_noise_is_calibrated_on_the_coordinates_that_a_client_trains():
    size = 40_000
    delta = {"a": jnp.zeros((3, size)), "b": jnp.zeros((3, size)), "c": None}
    mask = {"a": jnp.ones((3, 1), bool), "b": jnp.array([[True], [False], [True]]), "c": None}
    mask["c"] = jnp.zeros((3, 1), bool)
    found = mechanism.noised(chunk_of(delta, mask=mask, weight=[2.0, 1.0, 0.0]), 0.3).delta
    assert found["c"] is None
    for sent, silent in ((found["a"][:2], found["a"][2]), (found["b"][:1], found["b"][1:])):
        values = np.asarray(sent, np.float64)
        np.testing.assert_array_equal(silent, 0.0)
        assert abs(np.mean(values**2) - 0.09) < 4 * 0.09 * np.sqrt(2 / values.size)
    together = np.asarray(found["a"][0] * found["a"][1], np.float64)  # clients are independent
    assert abs(together.mean()) < 4 * 0.09 / np.sqrt(size)


@pytest.mark.parametrize(
    ("method", "step"),
    [
        (FEDPMT, gaussian(clip=0.1, noise=0.5)),
        (FEDBUFF, gaussian(clip=0.1, noise=0.5, central=False)),
        (FEDPMT, fh.privacy.adaptive_clip(noise=0.3, clip=0.05)),
    ],
    ids=["central", "local", "adaptive"],
)
def test_every_execution_agrees_and_a_resumed_run_is_the_same(method, step, tmp_path):
    found = trained(method, step)
    other = trained(method, step, execution="masked", devices=2)
    chex.assert_trees_all_close(other.variables, found.variables, rtol=1e-4, atol=1e-5)
    half = {"workdir": tmp_path / "run", "checkpoint_every": 1}
    trained(method, step, rounds=1, **half)
    resumed = trained(method, step, **half)
    chex.assert_trees_all_equal(resumed.variables, found.variables)
    told = found.record.metrics[2]["info"]
    assert {"epsilon", "epsilon_updates"} & set(told)
    assert resumed.record.metrics[2]["info"] == told


# ---- the clipping norm that adapts -----------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.3, 0.8])
def test_the_clipping_norm_goes_to_the_quantile(quantile):
    step = fh.privacy.adaptive_clip(
        noise=0.5, quantile=quantile, clip=0.1, bit_noise=1.0, clip_learning_rate=0.1
    )
    (upload,) = fh.compose(FEDAVG(PROBLEM), step).uploads
    rng = np.random.default_rng(0)
    kept = upload.keep(None, N)

    @jax.jit
    def advance(kept, lengths, key):
        rows = jnp.zeros((200, 3)).at[:, 1].set(lengths)
        kept, _ = upload.change(upload.renew(kept, key), chunk_of({"a": rows}))
        return kept

    clips = []
    for t in range(900):
        lengths = rng.exponential(2.0, 200).astype(np.float32)
        kept = advance(kept, lengths, jax.random.key(t))
        clips.append(float(kept.clip))
    expected = -2.0 * np.log(1 - quantile)  # quantile of the exponential distribution
    np.testing.assert_allclose(np.mean(clips[300:]), expected, rtol=0.03)


def test_noise_of_updates_and_bits_have_the_multiplier_together():
    z, bits = 0.5, 0.4
    step = fh.privacy.adaptive_clip(noise=z, bit_noise=bits, clip=0.2)
    (upload,) = fh.compose(FEDAVG(PROBLEM), step).uploads
    kept = upload.keep(None, N)
    found = upload.noise(kept, {"a": jnp.zeros(40_000)}, jax.random.key(0))["a"]
    deviation = (1 / (1 / z**2 - 1 / (2 * bits) ** 2)) ** 0.5 * 0.2
    error = abs(float(jnp.mean(jnp.square(found))) - deviation**2)
    assert error < 4 * deviation**2 * np.sqrt(2 / 40_000)
    with pytest.raises(InputError, match=r"bit_noise = 0.2 with noise = 0.5: must be above"):
        fh.compose(FEDAVG(PROBLEM), fh.privacy.adaptive_clip(noise=0.5))


# ---- epsilon ---------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_accountants():
    dp = pytest.importorskip("dp_accounting")
    replaced = dp.NeighboringRelation.REPLACE_ONE
    # dp-accounting's own example: a deviation of one sensitivity has epsilon 1 at this delta,
    # which is also Phi(1/2 - 1) - e Phi(-1/2 - 1) of Balle and Wang.
    delta = norm.cdf(-0.5) - np.e * norm.cdf(-1.5)
    np.testing.assert_allclose(delta, 0.12693674, rtol=1e-7)
    np.testing.assert_allclose(epsilon(2.0, 1, delta), 1.0, rtol=1e-9)
    # The accountant by loss distributions doubles the sensitivity by itself, that by Renyi
    # divergences takes it as it is.
    losses = dp.pld.PLDAccountant(replaced).compose(dp.GaussianDpEvent(4.0), 10)
    np.testing.assert_allclose(epsilon(4.0, 10, 1e-5), losses.get_epsilon(1e-5), rtol=1e-3)
    sampled = dp.rdp.RdpAccountant(neighboring_relation=replaced)
    event = dp.SampledWithoutReplacementDpEvent(1000, 20, dp.GaussianDpEvent(0.6))
    sampled.compose(event, 30)
    found = epsilon(1.2, 30, 1e-4, size=20, clients=1000)
    np.testing.assert_allclose(found, sampled.get_epsilon(1e-4), rtol=1e-12)
    assert epsilon(0.0, 1, 1e-5) == math.inf
    # Sampling nearly everyone is never worse than everyone, as far as divergence tells.
    assert epsilon(8.0, 60, 1e-3, size=103, clients=207) < 1.12 * epsilon(8.0, 60, 1e-3)


def told(method, *steps, round=0, problem=PROBLEM):
    """What the only upload tells of a round."""
    made = fh.compose(method(problem), *steps)
    (upload,) = made.uploads
    return dict(upload.told(round, draw_of(made, problem)))


def test_rows_tell_epsilon_with_sampling_where_it_holds():
    step = gaussian(clip=1.0, noise=2.0, delta=1e-3)
    amplified = [epsilon(2.0, t, 1e-3, size=4, clients=N) for t in (1, 2)]
    whole = [epsilon(2.0, t, 1e-3) for t in (1, 2)]
    assert amplified[1] < whole[1]
    rows = [row["info"] for row in trained(FEDAVG, step).record.metrics if row["step"]]
    assert [row["epsilon"] for row in rows] == amplified
    assert [row["delta"] for row in rows] == [1e-3, 1e-3]
    adaptive = fh.privacy.adaptive_clip(noise=0.3, delta=1e-3)
    one = epsilon(0.3, 1, 1e-3, size=4, clients=N)
    assert told(FEDAVG, adaptive) == {"epsilon": one, "delta": 1e-3}
    local = gaussian(clip=1.0, noise=2.0, delta=1e-3, central=False)
    assert told(FEDAVG, local, round=1) == {"epsilon": whole[1], "delta": 1e-3}
    assert told(FEDAVG, step, fh.select.weighted(), round=1)["epsilon_updates"] == whole[1]
    assert told(FEDAVG, gaussian(clip=1.0, noise=2.0))["delta"] == N**-1.1
    assert told(FEDAVG, gaussian(clip=1.0, noise=0.0))["epsilon"] == math.inf


def test_a_method_that_learns_from_more_than_updates_tells_the_epsilon_of_updates():
    step = gaussian(clip=1.0, noise=2.0, delta=1e-3)
    found = told(FEDPMT, step, fh.select.oort())
    assert found == {"epsilon_updates": epsilon(2.0, 1, 1e-3), "delta": 1e-3}


def test_devices_that_are_not_always_on_give_no_amplification():
    on = fh.fleet.from_intervals([np.array([[0.0, 1.0]])] * N, [1.0] * N)
    problem = dataclasses.replace(PROBLEM, fleet=fleet(len(SIZES), availability=on))
    step = gaussian(clip=1.0, noise=2.0, delta=1e-3)
    assert told(FEDAVG, step, problem=problem, round=1)["epsilon"] == epsilon(2.0, 2, 1e-3)


# ---- secure aggregation ----------------------------------------------------------------------


def test_secure_aggregation_costs_what_the_paper_counts():
    plain = trained(FEDAVG)
    found = trained(FEDAVG, fh.privacy.secure_aggregation(value_bits=16, mask_flops=10.0))
    chex.assert_trees_all_equal(found.variables, plain.variables)
    k, a_k, a_s = 4, 32, 32
    for before, after in zip(plain.record.clients, found.record.clients, strict=True):
        numbers = before["bytes_up"] // 4
        masked = math.ceil(numbers * (16 + 2) / 8)
        more = after["bytes_up"] + after["bytes_down"] - before["bytes_down"]
        assert more == 2 * k * a_k + (5 * k - 4) * a_s + masked
        assert after["bytes_up"] == 2 * a_k + (3 * k - 2) * a_s + masked
        flops = before["flops"] + 10 * k * numbers
        assert after["flops"] == flops
        np.testing.assert_allclose(
            after["compute_s"], before["compute_s"] * flops / before["flops"], rtol=1e-6
        )
        np.testing.assert_allclose(
            after["upload_s"],
            before["upload_s"] * after["bytes_up"] / before["bytes_up"],
            rtol=1e-6,
        )


def test_three_more_messages_take_their_latency():
    slow = dataclasses.replace(PROBLEM, fleet=fleet(len(SIZES), latency_s=0.5))
    step = fh.privacy.secure_aggregation(mask_flops=0.0)
    quick, late = (trained(FEDAVG, step, problem=p).record.clients for p in (PROBLEM, slow))
    for a, b in zip(quick, late, strict=True):
        np.testing.assert_allclose(b["upload_s"] - a["upload_s"], 2.0, rtol=1e-6)
        np.testing.assert_allclose(b["download_s"] - a["download_s"], 2.0, rtol=1e-6)


# ---- refusals --------------------------------------------------------------------------------


def thinning():
    upload = Upload("thinning", lambda k, c: (k, c), price=lambda timing, k: timing)
    return uploading(upload, "compress")


def lengthening():
    return uploading(Upload("lengthening", lambda k, c: (k, c), contracts=False), "attack")


LOCAL = gaussian(clip=1.0, noise=1.0, central=False)
CENTRAL = gaussian(clip=1.0, noise=1.0)
SECURE = fh.privacy.secure_aggregation()


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([CENTRAL, lengthening()], "lengthening after privacy.gaussian: may make an update longer"),
        ([CENTRAL, CENTRAL], "privacy.gaussian after privacy.gaussian|a method has one privacy"),
        ([thinning(), LOCAL], "privacy.gaussian after thinning: gives a value to every coordinate"),
        ([thinning(), SECURE], "secure_aggregation after thinning: gives a value to every"),
        ([SECURE, CENTRAL], "privacy.gaussian after privacy.secure_aggregation: changes single"),
        ([SECURE, thinning()], "thinning after privacy.secure_aggregation: changes single"),
    ],
)
def test_orders_that_break_a_promise_are_refused(steps, message):
    with pytest.raises(InputError, match=message):
        fh.compose(FEDAVG(PROBLEM), *steps)


@pytest.mark.parametrize(
    "steps",
    [[lengthening(), CENTRAL], [CENTRAL, thinning()], [LOCAL, thinning()], [CENTRAL, SECURE]],
)
def test_orders_that_keep_every_promise_compose(steps):
    assert len(fh.compose(FEDAVG(PROBLEM), *steps).uploads) == 2


@pytest.mark.parametrize("step", [CENTRAL, SECURE])
def test_what_needs_a_mean_refuses_other_merges(step):
    with pytest.raises(InputError, match="and this method merges by a rule of its own"):
        fh.compose(FEDBUFF(PROBLEM), step)

    def own(algorithm):
        return algorithm._replace(merge=algorithm.merge._replace(mean=False))

    with pytest.raises(InputError, match="and this method merges by a rule of its own"):
        simulation(FEDAVG, step, own)


def test_weights_that_carry_a_rule_stay_with_local_noise_and_are_refused_with_central():
    fedfix = functools.partial(fh.algorithms.fedfix, **OPTIONS, interval_s=0.12)
    plain = trained(fedfix, rounds=1)
    same = trained(fedfix, gaussian(clip=100.0, noise=0.0, central=False), rounds=1)
    chex.assert_trees_all_close(same.variables, plain.variables, rtol=1e-6)
    with pytest.raises(InputError, match="gives all clients equal weights in a mean"):
        simulation(fedfix, gaussian(clip=100.0, noise=0.0))


def test_running_statistics_are_refused_before_anything_compiles():
    problem = batch_norm_problem(sizes=(3,) * 5)
    with pytest.raises(InputError, match=r"running statistics of model .*norm='group'"):
        simulation(FEDAVG, CENTRAL, problem=problem)


def test_paces_that_a_promise_does_not_fit_are_refused():
    def paced(pace):
        return lambda algorithm: algorithm._replace(pace=pace)

    refilling = fh.clock.arrivals(2, refill=True)
    with pytest.raises(InputError, match="here one may be merged twice at once"):
        simulation(FEDAVG, CENTRAL, paced(refilling))
    with pytest.raises(InputError, match="a protocol among the clients of one round"):
        simulation(FEDAVG, SECURE, paced(fh.clock.arrivals(2)))
    waiting = told(FEDAVG, CENTRAL, paced(fh.clock.arrivals(2)), round=1)
    assert waiting["epsilon_updates"] == epsilon(1.0, 2, N**-1.1)
    on = fh.fleet.from_intervals([np.array([[0.0, 1.0]])] * N, [1.0] * N)
    problem = dataclasses.replace(PROBLEM, fleet=fleet(len(SIZES), availability=on))
    with pytest.raises(InputError, match="here a step may send none"):
        simulation(FEDAVG, CENTRAL, paced(fh.clock.arrivals(2)), problem=problem)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian(clip=0.0, noise=1.0), "clip = 0.0: must be a positive norm"),
        (lambda: gaussian(clip=math.inf, noise=1.0), "clip = inf with noise = 1.0: must be finite"),
        (lambda: gaussian(clip=1.0, noise=-1.0), "noise = -1.0: must be a finite multiple"),
        (lambda: gaussian(clip=1.0, noise=1.0, delta=1.0), "delta = 1.0: must lie in"),
        (lambda: fh.privacy.adaptive_clip(noise=1.0, quantile=2.0), "quantile = 2.0"),
        (lambda: fh.privacy.secure_aggregation(value_bits=40), "value_bits = 40"),
    ],
)
def test_bad_options_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()


def test_a_missing_accountant_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'fedjax-het\[privacy\]'"):
        gaussian(clip=1.0, noise=1.0)
    gaussian(clip=1.0, noise=0.0)


def test_draws_say_whether_cohorts_are_uniform_and_who_else_is_heard():
    assert Draw(4, N, True, False) == draw_of(FEDAVG(PROBLEM), PROBLEM)


def test_configurations_name_privacy():
    method = fh.algorithms.build(
        "fedavg",
        PROBLEM,
        **OPTIONS,
        compose=[{"name": "privacy.gaussian", "clip": 1.0, "noise": 0.5}],
    )
    assert method.options["privacy"] == {
        "name": "privacy.gaussian",
        "clip": 1.0,
        "noise": 0.5,
        "delta": None,
        "central": True,
    }
