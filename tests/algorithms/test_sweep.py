"""What every registered method must satisfy, on one small problem.

A method that needs options, exit heads or a certain fleet gets them in `methods.SETTINGS`;
everything else is the same for all.
"""

import dataclasses
import functools
import gc
import shutil

import chex
import jax
import numpy as np
import pytest
from methods import DEFAULT, SETTINGS, choosing
from problems import assert_close, differ, situation

from fedjax_het.algorithms import ALGORITHMS, TRAINING_OPTIONS, build
from fedjax_het.algorithms.registry import option_names
from fedjax_het.common.errors import InputError
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.redraw import Redraw
from fedjax_het.models import with_compute_dtype
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

ROUNDS = 2
EVALUATED = ("step", "virtual_s", "accuracy", "bytes_up", "bytes_down", "merged", "dropped")
EVALUATED += ("client_accuracy_mean", "client_accuracy_worst_decile", "nonfinite")


@functools.cache
def shared(make_problem, compute_dtype):
    """A problem and its evaluator, which methods share as far as they are given the same."""
    problem = make_problem()
    model = with_compute_dtype(problem.model, compute_dtype)
    problem = dataclasses.replace(problem, model=model)
    return problem, Evaluator(problem)


class Case:
    """One method, its compiled engines, and its reference run."""

    def __init__(self, name, compute_dtype="float32"):
        make_problem, self.options = SETTINGS.get(name, DEFAULT)
        self.name = name
        self.problem, self.evaluator = shared(make_problem, compute_dtype)
        self.algorithm = build(name, self.problem, **self.options)
        self._engines = {}

    def engine(self, **options):
        kind = tuple(sorted(options.items()))
        if kind not in self._engines:
            self._engines[kind] = make_engine(self.algorithm, self.problem, **options)
        return self._engines[kind]

    def run(self, *, algorithm=None, rounds=ROUNDS, seed=0, workdir=None, **engine):
        return simulate(
            algorithm or self.algorithm,
            self.problem,
            rounds=rounds,
            seed=seed,
            workdir=workdir,
            checkpoint_every=1,
            engine=self.engine(**engine),
            evaluator=self.evaluator,
        )

    @functools.cached_property
    def base(self):
        return self.run()

    @functools.cached_property
    def one_round(self):
        """What other engines are compared on: one round needs fewer of their programs."""
        return self.run(rounds=1)


# Methods that differ from another one in an option or a transformation: for the long tests.
VARIANTS = {"adel_drop", "adel_wait", "drop_stragglers", "fedadam", "fednova", "fedyogi"}
VARIANTS |= {"prfl_fedasyn", "prfl_fedfix"}


def every_method():
    for name in sorted(ALGORITHMS):
        yield pytest.param(name, marks=pytest.mark.slow if name in VARIANTS else ())


@pytest.fixture(scope="module", params=list(every_method()))
def case(request):
    yield Case(request.param)
    # With its engines go some thousand memory maps; a process may have 65,530 on Linux.
    gc.collect()


def rows(result):
    return [{name: row.get(name) for name in EVALUATED} for row in result.record.metrics]


def assert_same_answer(one, other):
    """The same up to the order in which floats were added."""
    assert_close(one.variables, other.variables, rtol=2e-5, atol=2e-6)
    assert_close(one.state, other.state, rtol=2e-4, atol=1e-6)
    assert rows(one) == rows(other)
    for a, b in zip(one.record.clients, other.record.clients, strict=True):
        assert (a["loss"] is None) == (b["loss"] is None)
        if a["loss"] is not None:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)
        assert {**a, "loss": None} == {**b, "loss": None}


def assert_identical(one, other):
    chex.assert_trees_all_equal(one.variables, other.variables)
    chex.assert_trees_all_equal(one.state, other.state)
    assert rows(one) == rows(other)
    assert one.record.clients == other.record.clients


def test_it_trains_and_its_log_is_sound(case):
    start = case.problem.model.init(jax.random.key(0))
    assert differ(case.base.variables.params, start.params)
    assert case.base.faults == []
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(case.base.variables))
    metrics = case.base.record.metrics
    assert [row["step"] for row in metrics] == list(range(ROUNDS + 1))
    assert metrics[-1]["virtual_s"] > metrics[1]["virtual_s"] > 0
    assert {row["status"] for row in case.base.record.clients} >= {"merged"}


def test_masks_alone_give_the_same_answer(case):
    assert_same_answer(case.run(execution="masked", chunk=1, rounds=1), case.one_round)


def test_debug_gives_the_same_answer(case):
    """On the last three clients of the plan, for it is slow."""
    few = choosing(case.algorithm, lambda round, count: np.arange(count)[-3:])
    debug = case.run(algorithm=few, execution="debug", rounds=1)
    assert_same_answer(debug, case.run(algorithm=few, chunk=7, rounds=1))


def test_chunks_do_not_matter(case):
    assert_same_answer(case.run(chunk=7, rounds=1), case.one_round)


def test_devices_do_not_matter(case):
    assert_same_answer(case.run(devices=2, chunk=1, rounds=1), case.one_round)


def test_the_order_of_the_clients_does_not_matter(case):
    """Sums of floats depend on their order, so the answer agrees up to rounding."""
    shuffled = lambda round, count: np.random.default_rng(round).permutation(count)
    turned = case.run(algorithm=choosing(case.algorithm, shuffled))

    def by_client(result):
        tasks = sorted(result.record.clients, key=lambda row: (row["step"], row["client"]))
        return result._replace(record=dataclasses.replace(result.record, clients=tasks))

    assert_same_answer(by_client(turned), by_client(case.base))


def test_a_seed_decides_everything(case):
    assert_identical(case.run(), case.base)
    assert differ(case.run(seed=1).variables.params, case.base.variables.params)


@pytest.mark.parametrize(
    "name",
    ["fedavg", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dtfl", "fedel", "prfl"))],
)
def test_bfloat16_changes_updates_by_its_rounding_and_nothing_else(name):
    plain, mixed = (Case(name, dtype).run(rounds=1) for dtype in ("float32", "bfloat16"))
    exact, ours = (jax.tree.leaves(run.variables) for run in (plain, mixed))
    assert {leaf.dtype.name for leaf in ours} == {"float32"}
    exact, ours = (np.concatenate([leaf.ravel() for leaf in leaves]) for leaves in (exact, ours))
    assert 0 < np.linalg.norm(ours - exact) < 0.02 * np.linalg.norm(exact)
    clock = ("step", "virtual_s", "bytes_up", "bytes_down", "merged", "dropped")
    told = [
        [[row.get(name) for name in clock] for row in run.record.metrics] for run in (plain, mixed)
    ]
    assert told[0] == told[1]
    assert mixed.faults == []


def test_records_are_written_and_a_checkpoint_resumes_bit_for_bit(case, tmp_path):
    whole = case.run(workdir=tmp_path / "whole")
    assert_identical(whole, case.base)
    loaded = RunRecord.load(tmp_path / "whole")
    assert loaded.metrics == whole.record.metrics
    assert loaded.summary["steps"] == ROUNDS
    assert loaded.config["identity"]["algorithm"] == case.algorithm.name
    assert loaded.config["identity"]["options"] == case.algorithm.options
    assert case.algorithm.options["learning_rate"] == case.options["learning_rate"]
    # As if the run had been killed during its last round.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / f"{ROUNDS:08d}")
    (tmp_path / "cut" / "summary.json").unlink()
    assert_identical(case.run(workdir=tmp_path / "cut"), case.base)
    rows = [(tmp_path / place / "clients.jsonl").read_bytes() for place in ("cut", "whole")]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_the_schedule_scales_the_steps_of_every_round(name):
    make_problem, options = SETTINGS.get(name, DEFAULT)
    problem, _ = shared(make_problem, "float32")
    factors = (1.0, 0.25, 0.5)
    algorithm = build(name, problem, **{**options, "schedule": lambda t: factors[min(t, 2)]})
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(1))
    for round, factor in enumerate(factors):
        clients = np.arange(algorithm.cohort_size)
        now = situation(problem, round=round, clients=clients)
        plan, state = algorithm.plan(state, variables, now)
        assert plan.learning_rate_scale == factor


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_devices_that_are_drawn_anew_are_honoured_or_refused(name):
    """From round 5 on every device is a third as fast: the plan charges it, or there is no plan."""
    make_problem, options = SETTINGS.get(name, DEFAULT)
    problem, _ = shared(make_problem, "float32")
    n, speed = problem.num_clients, np.asarray(problem.fleet.flops_per_s)
    # Profile k is device k, profile n + k the same device at a third of its speed.
    speeds, links = np.append(speed, speed / 3), np.full(2 * n, 1e5)
    draws = Redraw(np.arange(n), speeds, links, np.arange(n, 2 * n), 5, 1.0, seed=0)
    fleet = dataclasses.replace(problem.fleet, redraw=draws)
    problem = dataclasses.replace(problem, fleet=fleet)
    try:
        algorithm = build(name, problem, **options)
    except InputError as error:
        assert "redraw_every" in str(error)  # noqa: PT017
        return
    variables = problem.model.init(jax.random.key(0))
    state = algorithm.init(variables, jax.random.key(1))
    plan, _ = algorithm.plan(state, variables, situation(problem, round=5))
    devices = fleet.at(5).flops_per_s[plan.clients]
    # Split training may also wait for the server.
    assert np.all(plan.timing.compute_s >= (1 - 1e-6) * plan.timing.flops / devices)


def test_every_training_option_is_accepted(case):
    options = {
        "learning_rate": 0.1,
        "momentum": 0.9,
        "client_optimizer": "sgd",
        "weight_decay": 1e-3,
        "clip_norm": None,  # the halves of dtfl cannot share a norm
        "proximal": 0.1,
        "schedule": "cosine",
        "decay_rounds": 10.0,
        "decay_factor": 0.5,
        "warmup_rounds": 1,
        "batch_size": 3,
        "epochs": 2,
        "local_steps": 1,
        "clients_per_round": 4,
        "weighting": "uniform",
    }
    assert set(options) == set(TRAINING_OPTIONS)
    known = {name: options[name] for name in option_names(case.name) & set(options)}
    assert {"learning_rate", "clients_per_round"} <= set(known)
    assert build(case.name, case.problem, **{**case.options, **known}).cohort_size == 4
