"""Static batch norm: statistics of all training samples, for every width its own."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from problems import batch_norm_problem, differ, digits, digits_problem, fleet, one_round, situation

import fedjax_het as fh
from fedjax_het.algorithms import build
from fedjax_het.algorithms.networks import networks
from fedjax_het.algorithms.static_norm import StaticNorm
from fedjax_het.common.errors import InputError
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.mlp import Dense
from fedjax_het.models.norm import BatchNorm
from fedjax_het.problem import Problem

TRAINING = {"learning_rate": 0.1, "batch_size": 4}


class Normed(nn.Module):
    """A dense layer and a batch norm of the library or of flax."""

    features: int
    flax_norm: bool = False

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(self.features)(x)
        if self.flax_norm:
            return nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.relu(BatchNorm()(x, train=train))


@functools.cache
def problem_of(sizes=(150, 120), flax_norm=False):
    blocks = (flax_block("fc1", Normed(8, flax_norm)), flax_block("fc2", Dense(10)))
    return Problem(BlockModel("normed", blocks, (64,), 10), digits(sizes), fleet(len(sizes)))


def outputs_of_dense(problem, variables):
    layer = variables.params["blocks"][0]["Dense_0"]
    x = np.asarray(problem.data.x[problem.data.order], np.float64)
    return x @ np.asarray(layer["kernel"], np.float64) + np.asarray(layer["bias"])


def moments(variables):
    stats = variables.stats["blocks"][0]["BatchNorm_0"]
    return np.asarray(stats["mean"]), np.asarray(stats["var"])


@pytest.mark.parametrize("flax_norm", [False, True])
def test_statistics_are_the_mean_moments_over_all_samples(flax_norm):
    problem = problem_of(flax_norm=flax_norm)
    variables = problem.model.init(jax.random.key(0))
    mean, var = moments(StaticNorm(problem)(problem.model, variables))
    y = outputs_of_dense(problem, variables)
    np.testing.assert_allclose(mean, y.mean(0), rtol=2e-5, atol=2e-6)
    # 128, 128 and 14 of 270 samples in the order of the pass; the library's norm is unbiased.
    order = np.random.default_rng(0).permutation(270)
    parts = np.split(y[order], (128, 256))
    within = sum(len(p) * p.var(0, ddof=0 if flax_norm else 1) for p in parts) / 270
    np.testing.assert_allclose(var, within, rtol=1e-4)


def test_one_batch_has_the_moments_of_numpy():
    problem = problem_of((40, 30))
    variables = problem.model.init(jax.random.key(1))
    mean, var = moments(StaticNorm(problem)(problem.model, variables))
    y = outputs_of_dense(problem, variables)
    np.testing.assert_allclose(mean, y.mean(0), rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(var, y.var(0, ddof=1), rtol=1e-4)


def test_old_statistics_do_not_matter_and_parameters_stay():
    problem = problem_of((40, 30))
    variables = problem.model.init(jax.random.key(1))
    static = StaticNorm(problem)
    other = variables._replace(stats=jax.tree.map(lambda a: a + 5.0, variables.stats))
    one, two = (static(problem.model, each) for each in (variables, other))
    chex.assert_trees_all_equal(one, two)
    assert one.params is variables.params
    assert static(problem.model, other).stats is two.stats


def test_large_moments_keep_their_digits():
    problem = problem_of((40, 30), flax_norm=True)
    variables = problem.model.init(jax.random.key(1))
    params = jax.tree.map(lambda a: 100.0 * a + 1000.0, variables.params)
    variables = variables._replace(params=params)
    mean, _ = moments(StaticNorm(problem)(problem.model, variables))
    np.testing.assert_allclose(mean, outputs_of_dense(problem, variables).mean(0), rtol=1e-4)


def method(name="heterofl", problem=None, **options):
    problem = problem or batch_norm_problem()
    levels = (0, 1) * 8
    given = {"rates": (1.0, 0.5), "levels": levels[: problem.num_clients], **TRAINING, **options}
    return build(name, problem, **given)


@pytest.mark.parametrize("name", ["heterofl", "fedrolex", "fjord"])
def test_clients_send_no_statistics(name):
    problem = batch_norm_problem()
    start = problem.model.init(jax.random.key(0))
    merged, _ = one_round(method(name), problem, start)
    assert differ(merged.params, start.params)
    chex.assert_trees_all_equal(merged.stats, start.stats)
    algorithm = method(name)
    plan, _ = algorithm.plan(algorithm.init(start, None), start, situation(problem))
    width = np.asarray([8, 4, 8])
    sent = 4 * (64 * width + 3 * width + width * 10 + 10)
    assert plan.timing.bytes_up.tolist() == sent.tolist()
    assert plan.timing.bytes_down.tolist() == sent.tolist()


def test_without_static_norm_clients_send_statistics_and_nothing_is_calibrated():
    problem = batch_norm_problem()
    start = problem.model.init(jax.random.key(0))
    algorithm = method(static_norm=False)
    merged, _ = one_round(algorithm, problem, start)
    assert differ(merged.stats, start.stats)
    assert algorithm.calibrate is None
    plan, _ = algorithm.plan(algorithm.init(start, None), start, situation(problem))
    table = cost_table(problem.model)
    assert plan.timing.bytes_up[0] == int(table.upload_bytes(0, None))


def test_models_without_statistics_have_no_static_norm():
    assert method(problem=digits_problem()).calibrate is None
    with pytest.raises(InputError, match=r"static_norm = True .* no running statistics"):
        method(problem=digits_problem(), static_norm=True)


def test_every_level_has_its_own_statistics():
    problem = problem_of()
    algorithm = method(problem=problem)
    variables = problem.model.init(jax.random.key(0))
    found = algorithm.submodels.models((), variables)
    static = StaticNorm(problem)
    for name, (model, own) in found.items():
        chex.assert_trees_all_equal(own, static(model, own))
        assert moments(own)[0].shape == ((8,) if name == "width_1" else (4,))
    whole = algorithm.calibrate(variables)
    chex.assert_trees_all_equal(found["width_1"][1], whole)


class Deep(nn.Module):
    """Inputs far from zero, so that statistics of 0 and 1 drown what tells samples apart."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dense(16)(x) + 100.0
        return nn.relu(BatchNorm()(x, train=train))


@functools.cache
def trained():
    """A run on digits, whose result has statistics, and its algorithm and problem."""
    blocks = (flax_block("fc1", Deep()), flax_block("fc2", Dense(10)))
    data = digits((60,) * 6)
    problem = Problem(BlockModel("deep", blocks, (64,), 10), data, fleet(6))
    algorithm = method(problem=problem, learning_rate=0.2, batch_size=10, epochs=2)
    return fh.simulate(algorithm, problem, rounds=6, eval_every=3), algorithm, problem


def test_forgetting_the_statistics_leaves_a_model_at_chance():
    result, _, problem = trained()
    evaluate = fh.simulation.evaluation.Evaluator(problem)
    accuracy = result.record.metrics[-1]["accuracy"]
    assert accuracy > 0.6
    assert evaluate(result.variables)["accuracy"] == accuracy
    start = problem.model.init(jax.random.key(0))
    assert evaluate(result.variables._replace(stats=start.stats))["accuracy"] < 0.3
    # The narrow level needs its own: those of the complete network are of other inputs.
    assert result.record.metrics[-1]["accuracy[width_0.5]"] > 0.4


def test_a_resumed_run_and_its_files_have_the_same_model(tmp_path):
    problem = batch_norm_problem()
    algorithm = method()
    start, options = problem.model.init(jax.random.key(0)), {"rounds": 2, "checkpoint_every": 1}
    whole = fh.simulate(algorithm, problem, **options)
    fh.simulate(algorithm, problem, workdir=tmp_path, rounds=1, checkpoint_every=1)
    resumed = fh.simulate(algorithm, problem, workdir=tmp_path, **options)
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    loaded = fh.load_model(tmp_path / "model.safetensors", model=problem.model)
    chex.assert_trees_all_equal(jax.tree.leaves(loaded.variables), jax.tree.leaves(whole.variables))
    assert differ(whole.variables.stats, start.stats)


def test_statistics_do_not_affect_the_training():
    """Evaluations after every round and after the last one lead to one model."""
    problem = batch_norm_problem()
    often, seldom = (fh.simulate(method(), problem, rounds=2, eval_every=every) for every in (1, 2))
    chex.assert_trees_all_equal(often.variables, seldom.variables)


def test_measured_prices_hold_without_statistics():
    problem = batch_norm_problem()
    slow = dataclasses.replace(problem.cost, forward_flops=2 * problem.cost.forward_flops)
    measured = dataclasses.replace(problem, cost_override=slow)
    plain, own = (networks(each, (1.0, 0.5)).costs for each in (problem, measured))
    for a, b in zip(plain, own, strict=True):
        np.testing.assert_allclose(b.forward_flops, 2 * a.forward_flops)
        assert b.upload_bytes(0, None) == a.upload_bytes(0, None)
        assert not b.stats_bytes.any()


def test_a_pass_runs_the_network_once():
    """The second run, with other old statistics, must vanish in the compiled program."""
    problem = problem_of((40, 30))
    variables = problem.model.init(jax.random.key(1))
    static = StaticNorm(problem)
    static(problem.model, variables)
    text = static._programs[problem.model].as_text()
    # The last layer has no statistics after it.
    assert text.count(" dot(") + text.count(" custom-call(") == 1
