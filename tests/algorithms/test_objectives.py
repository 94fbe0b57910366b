"""Every registered method with every kind of objective: it trains, exactly, or says why not.

The problems have the clients, the fleet in seconds, and the number of blocks of the sweep's, so
that deadlines and budgets mean the same. The quick tests hold plain training, windows with
exits, splits and a refusal, the long ones all.
"""

import dataclasses
import functools
import shutil

import chex
import flax.linen as nn
import jax
import numpy as np
import pytest
from methods import DEFAULT, SETTINGS, choosing
from problems import assert_close, differ
from sklearn.datasets import load_digits

from fedjax_het import objectives
from fedjax_het.algorithms import ALGORITHMS, build
from fedjax_het.common.errors import InputError
from fedjax_het.data import from_arrays
from fedjax_het.engine.engine import make_engine
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models.base import BlockModel
from fedjax_het.models.block import flax_block
from fedjax_het.models.exits import with_exits
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

# What the test set's columns are for each objective.
METRICS = {
    "regression": ("mse", "mae", "rmse", "r2"),
    "multilabel": ("macro_f1", "label_accuracy"),
    "next_token": ("accuracy", "perplexity"),
    "segmentation": ("mean_iou", "accuracy"),
}
# Methods that distil from logits of classes, one of them for one label per sample, or decide by an
# accuracy.
REFUSED = {("fedgkt", name): "no logits of classes|one label a sample" for name in METRICS}
REFUSED |= {("depthfl", name): "no logits of classes" for name in ("regression", "multilabel")}
REFUSED |= {("scalefl", name): "no logits of classes" for name in ("regression", "multilabel")}
REFUSED |= {("sub_fedavg", name): "has no accuracy" for name in ("regression", "multilabel")}


class Step(nn.Module):
    """One dense layer on the last axis, so that sequences and maps keep their positions."""

    width: int
    symbols: int = 0
    last: bool = False

    @nn.compact
    def __call__(self, x):
        if self.symbols:
            x = nn.Embed(self.symbols, self.width)(x)
        x = nn.Dense(self.width)(x)
        return x if self.last else nn.relu(x)


@functools.cache
def arrays(objective):
    """Inputs and labels of 60 samples, from scikit-learn's digits."""
    x, y = load_digits(return_X_y=True)
    x, y = (x[:400] / 16).astype(np.float32), y[:400]
    if objective == "regression":
        return x, (y / 10).astype(np.float32)
    if objective == "multilabel":
        return x, (y[:, None] >> np.arange(3)) & 1
    maps = x.reshape(-1, 8, 8)[:, ::2, ::2]
    if objective == "segmentation":
        return maps[..., None], (maps > 0.5).astype(np.int32)
    tokens = (3.9 * maps.reshape(len(x), 16)[:, 4:11]).astype(np.int32)
    following = tokens[:, 1:].copy()
    length = 2 + y % 5  # the rest of a sequence is padding
    following[np.arange(6) >= length[:, None]] = -1
    return tokens[:, :6], following


@functools.cache
def problem_of(objective, base):
    """The problem of an objective with the sizes and the task durations of another."""
    x, y = arrays(objective)
    sizes = base.data.sizes
    n = int(sizes.sum())
    owner = np.repeat(np.arange(len(sizes)), sizes)
    data = from_arrays(x[:n], y[:n], x[n : n + 30], y[n : n + 30], clients=owner)
    chosen = objectives.build(objective)
    outputs = chosen.shape(data)[-1]
    symbols = 4 if objective == "next_token" else 0
    steps = [Step(8, symbols), *[Step(8)] * (base.model.num_blocks - 2), Step(outputs, last=True)]
    model = BlockModel(
        f"dense_{objective}",
        tuple(flax_block(f"step{b}", step) for b, step in enumerate(steps)),
        data.input_shape,
        outputs,
        input_dtype=data.input_dtype,
    )
    model = with_exits(model) if base.model.exits else model
    table = cost_table(model)
    work = float(table.step_flops() / base.cost.step_flops())
    moved = table.download_bytes() / base.cost.download_bytes()
    fleet = dataclasses.replace(
        base.fleet,
        flops_per_s=base.fleet.flops_per_s * work,
        downlink_bytes_per_s=base.fleet.downlink_bytes_per_s * moved,
        uplink_bytes_per_s=base.fleet.uplink_bytes_per_s * moved,
    )
    return Problem(model, data, fleet, objective=chosen)


@functools.cache
def evaluator_of(problem):
    return Evaluator(problem)


QUICK = {
    ("fedavg", "regression"),
    ("fedel", "next_token"),
    ("dtfl", "multilabel"),
    ("fedgkt", "regression"),
}


def pairs():
    for name in sorted(ALGORITHMS):
        for objective in METRICS:
            marks = () if (name, objective) in QUICK else pytest.mark.slow
            yield pytest.param(name, objective, marks=marks, id=f"{name}-{objective}")


@pytest.mark.parametrize(("name", "objective"), list(pairs()))
def test_it_trains_exactly_or_is_refused(name, objective, tmp_path):
    make_problem, options = SETTINGS.get(name, DEFAULT)
    problem = problem_of(objective, make_problem())
    if (name, objective) in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name, objective]):
            build(name, problem, **options)
        return
    algorithm = build(name, problem, **options)

    @functools.cache
    def engine(execution):
        return make_engine(algorithm, problem, execution=execution)

    def run(rounds, workdir=None, method=algorithm, execution="routed"):
        return simulate(
            method,
            problem,
            rounds=rounds,
            workdir=workdir,
            checkpoint_every=1,
            engine=engine(execution),
            evaluator=evaluator_of(problem),
        )

    whole = run(2, tmp_path / "whole")
    assert differ(whole.variables.params, problem.model.init(jax.random.key(0)).params)
    last = whole.record.metrics[-1]
    assert all(np.isfinite(last[metric]) for metric in (*METRICS[objective], "loss"))
    assert whole.record.metric.name == METRICS[objective][0]
    assert_close(run(1, execution="masked").variables, run(1).variables, rtol=2e-5, atol=2e-6)
    few = choosing(algorithm, lambda round, count: np.arange(count)[-2:])
    exact, fast = (run(1, method=few, execution=how) for how in ("debug", "routed"))
    assert_close(exact.variables, fast.variables, rtol=2e-5, atol=2e-6)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / f"{2:08d}")
    resumed = run(2, tmp_path / "whole")
    chex.assert_trees_all_equal(resumed.variables, whole.variables)
    assert [row["loss"] for row in resumed.record.metrics] == [
        row["loss"] for row in whole.record.metrics
    ]
