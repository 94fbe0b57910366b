"""Optimisers on the server, and FedNova's merge, as transformations of any method."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from methods import SETTINGS
from problems import assert_close, differ, digits_problem, make_plan, nudge, one_round

import fedjax_het as fh
from fedjax_het.common.errors import InputError
from fedjax_het.contract.uploads import Upload
from fedjax_het.engine.engine import make_engine
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.transforms.sending import uploading

PROBLEM = digits_problem()
RUN = {"rounds": 2, "eval_every": 2, "seed": 4}
OPTIONS = {"learning_rate": 0.1, "batch_size": 4, "clients_per_round": 4}
METHODS = {"fedavg": {}, "fedpmt": {"depths": (1, 3)}, "fedbuff": {"buffer_size": 2}}


def method(name, *steps):
    made = fh.algorithms.build(name, PROBLEM, **OPTIONS, **METHODS[name])
    return fh.compose(made, *steps)


def trained(algorithm, **run):
    return fh.simulate(algorithm, PROBLEM, **{**RUN, **run})


@pytest.mark.parametrize("name", METHODS)
def test_plain_descent_at_a_step_size_of_one_is_the_plain_method(name):
    plain = trained(method(name))
    same = trained(method(name, fh.server.optimizer("sgd", learning_rate=1.0)))
    assert_close(same.variables, plain.variables)
    assert differ(plain.variables.params, PROBLEM.model.init(jax.random.key(0)).params)


def test_fedopt_and_fednova_are_fedavg_with_these_steps():
    composed = trained(method("fedavg", fh.server.optimizer({"name": "yogi"}, learning_rate=0.05)))
    known = fh.algorithms.fedyogi(PROBLEM, server_learning_rate=0.05, **OPTIONS)
    chex.assert_trees_all_equal(composed.variables, trained(known).variables)
    normal = trained(method("fedavg", fh.server.normalised()))
    known = fh.algorithms.fednova(PROBLEM, **OPTIONS)
    chex.assert_trees_all_equal(normal.variables, trained(known).variables)
    assert known.name == "fednova"


@pytest.mark.slow
def test_fedpmt_with_yogi_agrees_in_every_execution_and_when_resumed(tmp_path):
    problem = digits_problem((3, 5, 8), hidden=(8,))
    options = {"learning_rate": 0.1, "local_steps": 1, "depths": (1, 2)}
    step = fh.server.optimizer("yogi", learning_rate=0.05)
    method = fh.compose(fh.algorithms.fedpmt(problem, **options), step)
    evaluator, routed = Evaluator(problem), make_engine(method, problem)

    def run(engine=routed, **options):
        parts = {"engine": engine, "evaluator": evaluator}
        return fh.simulate(method, problem, **{**RUN, **options}, **parts)

    found = run()
    for resources in ({"execution": "masked"}, {"execution": "debug"}, {"devices": 2}):
        other = run(make_engine(method, problem, **resources))
        assert_close(other.variables, found.variables, rtol=1e-4, atol=1e-5)
    half = {"workdir": tmp_path / "run", "checkpoint_every": 1}
    run(rounds=1, **half)
    resumed = run(**half)
    chex.assert_trees_all_equal(resumed.variables, found.variables)
    chex.assert_trees_all_equal(resumed.state, found.state)


def test_the_step_is_the_optimisers_on_the_change_of_the_merge():
    """FedPMT, one round: the pseudo-gradient is that of the merge, by optax on the host."""
    start = PROBLEM.model.init(jax.random.key(0))
    merged, _ = one_round(method("fedpmt"), PROBLEM, start)
    found, _ = one_round(method("fedpmt", fh.server.optimizer(optax.adagrad(0.1))), PROBLEM, start)
    rule = optax.adagrad(0.1)
    gradient = jax.tree.map(jnp.subtract, start.params, merged.params)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        step, _ = rule.update(gradient, rule.init(start.params), start.params)
    assert_close(found.params, optax.apply_updates(start.params, step))


def test_of_two_optimisers_the_later_one_takes_the_step_of_the_earlier_one():
    half = fh.server.optimizer("sgd", learning_rate=0.5)
    both = method("fedavg", half, half)
    quarter = method("fedavg", fh.server.optimizer("sgd", learning_rate=0.25))
    assert_close(trained(both).variables, trained(quarter).variables)
    said = {"name": "optimizer", "choice": "sgd", "learning_rate": 0.5}
    assert both.options["server"] == [said, said]
    assert both.plans_ahead


def test_steps_have_names_in_configurations():
    choice = {"name": "server.optimizer", "choice": {"name": "adam", "tau": 0.1}}
    made = fh.algorithms.fedavg(
        PROBLEM, **OPTIONS, compose=["server.normalised", {**choice, "learning_rate": 0.1}]
    )
    assert [step["name"] for step in made.options["server"]] == ["normalised", "optimizer"]
    assert made.options["server"][1]["choice"] == {"name": "adam", "tau": 0.1}
    given = method("fedavg", fh.server.optimizer(optax.sgd(1.0))).options["server"][0]
    other = method("fedavg", fh.server.optimizer(optax.sgd(0.5))).options["server"][0]
    assert given["choice"].startswith("optax transformation")
    assert given != other


def test_normalisation_counts_the_steps_of_the_plan():
    """Every client moves by 1: w + (sum c tau) (sum c / tau) with the shares c of samples."""
    start = PROBLEM.model.init(jax.random.key(0))
    steps = np.asarray([1, 2, 4, 1, 2, 4, 1, 8])
    share = PROBLEM.data.sizes / np.sum(PROBLEM.data.sizes)
    moved = np.sum(share * steps) * np.sum(share / steps)
    made = fh.compose(nudge(PROBLEM), fh.server.normalised())
    rows = {"first": np.zeros(8, np.int32), "exit": np.full(8, 2, np.int32)}
    found, _ = one_round(made, PROBLEM, start, make_plan(PROBLEM, steps=steps, rows=rows))
    assert_close(found.params, jax.tree.map(lambda w: w + jnp.float32(moved), start.params))


def test_methods_that_replace_their_model_take_no_optimiser():
    step = fh.server.optimizer("sgd", learning_rate=1.0)
    for name in ("fedgkt", "prfl"):
        make, options = SETTINGS[name]
        recovery = (
            {"recovery": {**options["recovery"], "roll_back": True}} if "prfl" in name else {}
        )
        made = fh.algorithms.build(name, make(), **{**options, **recovery})
        with pytest.raises(InputError, match=f"server.optimizer of {name}: .* outside the merge"):
            fh.compose(made, step)


def test_the_buffers_of_prfl_take_one():
    make, options = SETTINGS["nested_mask_sync"]
    made = fh.algorithms.build("nested_mask_sync", make(), **options)
    plain, same = made, fh.compose(made, fh.server.optimizer("sgd", learning_rate=1.0))
    assert_close(trained(same).variables, trained(plain).variables)


def test_only_a_mean_without_noise_is_normalised():
    with pytest.raises(InputError, match=r"server.normalised of fedbuff: .* a rule of its own"):
        method("fedbuff", fh.server.normalised())
    noisy = Upload(
        "noise", lambda kept, chunk: (kept, chunk), noise=lambda kept, params, key: params
    )
    with pytest.raises(InputError, match="fedavg with noise: adds noise to the mean"):
        method("fedavg", uploading(noisy, "privacy"), fh.server.normalised())
