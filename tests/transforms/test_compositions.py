"""Methods with transformations: each pair trains exactly, resumes and is audited, or is refused.

The quick tests hold a few pairs; the long ones take every method with one transformation of every
kind, turn by turn, and random pairs of transformations.
"""

import functools
import shutil

import chex
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from methods import DEFAULT, SETTINGS, choosing
from problems import assert_close, differ, digits_problem

import fedjax_het as fh
from benchmarks.faults.tiny import TRANSFORMATIONS as OPTIONS
from fedjax_het.algorithms import ALGORITHMS
from fedjax_het.common.errors import InputError
from fedjax_het.engine.engine import make_engine
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.start import run_keys
from fedjax_het.transforms.catalogue import TRANSFORMATIONS
from fedjax_het.transforms.named import named

KINDS = sorted({name.partition(".")[0] for name in TRANSFORMATIONS})


def transformation(name):
    return named({"name": name, **OPTIONS.get(name, {})}, TRANSFORMATIONS, "transformation")


@functools.cache
def problem_of(make):
    problem = make()
    return problem, Evaluator(problem)


def composed(method, *names):
    """The method after these transformations with its problem, or why it is refused."""
    make, options = SETTINGS.get(method, DEFAULT)
    problem, evaluator = problem_of(make)
    plain = fh.algorithms.build(method, problem, **options)
    steps = [transformation(name) for name in names]
    try:
        return fh.compose(plain, *steps), problem, evaluator
    except InputError as error:
        reason = str(error)
    # It says what cannot be composed, and why.
    assert any(name.partition(".")[2] in reason for name in names), reason
    return None, problem, evaluator


def check(algorithm, problem, evaluator, workdir):
    @functools.cache
    def engine(execution):
        return make_engine(algorithm, problem, execution=execution)

    def run(rounds, workdir=None, method=algorithm, execution="routed"):
        return fh.simulate(
            method,
            problem,
            rounds=rounds,
            workdir=workdir,
            checkpoint_every=1,
            engine=engine(execution),
            evaluator=evaluator,
        )

    whole = run(2, workdir)
    assert whole.faults == []
    start = problem.model.init(run_keys(0)["model"])
    assert differ(whole.variables.params, start.params)
    few = choosing(algorithm, lambda round, count: np.arange(count)[-3:])
    exact, fast = (run(1, method=few, execution=how) for how in ("debug", "routed"))
    assert_close(exact.variables, fast.variables, rtol=2e-5, atol=2e-6)
    shutil.rmtree(workdir / "checkpoints" / f"{2:08d}")
    resumed = run(2, workdir)
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    assert resumed.record.clients == whole.record.clients


QUICK = {("fedavg", "compress"), ("fedpmt", "robust"), ("fedel", "select")}


def turns():
    """Every method with one transformation of every kind, another one for the next method."""
    for turn, method in enumerate(sorted(ALGORITHMS)):
        for kind in KINDS:
            own = [name for name in sorted(TRANSFORMATIONS) if name.startswith(f"{kind}.")]
            name = own[turn % len(own)]
            marks = () if (method, kind) in QUICK else pytest.mark.slow
            yield pytest.param(method, name, marks=marks, id=f"{method}-{name}")


@pytest.mark.parametrize(("method", "name"), list(turns()))
def test_a_transformed_method_is_exact_or_refused(method, name, tmp_path):
    algorithm, problem, evaluator = composed(method, name)
    if algorithm is not None:
        check(algorithm, problem, evaluator, tmp_path / "run")


@pytest.mark.slow
@settings(
    max_examples=24,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    method=st.sampled_from(["fedavg", "fedpmt", "fedbuff", "fedel"]),
    names=st.lists(st.sampled_from(sorted(TRANSFORMATIONS)), min_size=2, max_size=2, unique=True),
)
def test_two_transformations_in_any_order_are_exact_or_refused(method, names, tmp_path_factory):
    algorithm, problem, evaluator = composed(method, *names)
    if algorithm is not None:
        check(algorithm, problem, evaluator, tmp_path_factory.mktemp("run") / "run")


# What does not change the model of FedAvg with uniform cohorts, of equal numbers of steps.
KEEP = {"pace.barrier", "privacy.secure_aggregation", "select.uniform", "server.normalised"}
LATE = {"name": "pace.buffer", "count": 2, "staleness": "polynomial", "a": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TRANSFORMATIONS))
def test_a_transformation_is_not_lost_and_the_pace_stands_anywhere(name):
    problem, evaluator = problem_of(digits_problem)
    plain = fh.algorithms.fedavg(
        problem, learning_rate=0.1, batch_size=4, clients_per_round=4, local_steps=2
    )

    def model(*transformations):
        """The model after three rounds; None if the composition is refused."""
        try:
            made = fh.compose(plain, *transformations)
            return fh.simulate(made, problem, rounds=3, evaluator=evaluator).variables
        except InputError:
            return None

    options = {"deadline_s": 0.05} if name == "pace.deadline" else OPTIONS.get(name, {})
    own = named({"name": name, **options}, TRANSFORMATIONS, "transformation")
    assert differ(model(own), model()) == (name not in KEEP)
    if name.startswith("pace."):
        return
    late = named(LATE, TRANSFORMATIONS, "transformation")
    before, after = model(late, own), model(own, late)
    assert (before is None) == (after is None)
    if before is not None:
        chex.assert_trees_all_equal(before, after)
        if name not in KEEP and not name.startswith("select."):
            assert differ(before, model(late))


def test_options_name_transformations():
    assert set(OPTIONS) <= set(TRANSFORMATIONS)
