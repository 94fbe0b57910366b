"""FedEL's Table 1: eight methods on five boards and five that are twice as slow.

    python -m benchmarks.reproduce.fedel_table1 --plan_only
    python -m benchmarks.reproduce.fedel_table1 --out=runs/fedel_table1

Reduced against the paper: 5,000 training and 1,000 test images of CIFAR-10, averaged down to 16 x
16; seven convolutions whose backward costs grow as those of VGG16 on an Orin board; a round has ten
local steps of 16 images on all ten devices (Dirichlet 0.1). Every method has the same grid of step
sizes on a seed of its own, and the best by the mean of the accuracies over time; where FedEL's
importance comes from a whole step of the client, as in ElasticTrainer, the best among the rates at
which 80 % of the importances are positive. Weights of the clients are uniform.

Prints what the plans do before it trains (`--plan_only` stops there): costs of the blocks, and the
work, the upload and the trained blocks of both types of device. Every cell is written when it has
run; a cell with a file is not repeated.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import app, flags

from benchmarks import harness
from benchmarks.cells import curve, run_cells
from benchmarks.reproduce import fedel_table1_plans as plans_of
from benchmarks.reproduce import fedel_table1_report as report
from fedjax_het import algorithms
from fedjax_het.algorithms.fedel import Probe
from fedjax_het.algorithms.fedel.tensors import tensor_times
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.submodels import SubModels
from fedjax_het.data.federated import from_arrays
from fedjax_het.data.partition import dirichlet
from fedjax_het.data.sources import load
from fedjax_het.fleet import presets
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models import from_flax, with_exits
from fedjax_het.models.base import BlockModel
from fedjax_het.models.cnn import Conv
from fedjax_het.models.norm import GroupNorm
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

DEVICES, TRAIN, TEST, ALPHA = 10, 5_000, 1_000, 0.1
ROUNDS, TUNING_SEED = 40, 100
TRAINING: dict[str, Any] = {"batch_size": 16, "local_steps": 10, "weighting": "uniform"}
# Channels of the convolutions, and those that 2 x 2 pooling follows.
CHANNELS, POOLED = (6, 12, 24, 28, 28, 28, 28), (0, 1)
# Share of a round of FedAvg that its transfers take (methods/fedel.md 5.3).
COMMUNICATION = 0.032

# Label -> method and options; a device trains the largest sub-model that its speed affords.
_SIZES: dict[str, Any] = {"sizes": (1.0, 0.5)}
_SMALL: dict[str, Any] = {"probe": Probe(step=0.01)}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "FedAvg": ("fedavg", {}),
    "ElasticTrainer": ("fedel", {"variant": "elastic_only"}),
    "HeteroFL": ("heterofl", {"rates": (1.0, 0.66, 0.5)}),
    "DepthFL": ("depthfl", {"exits": (1, 3, 4, 6)}),
    "PyramidFL": ("pyramidfl", {}),
    "TimelyFL": ("timelyfl", {}),
    "FIARSE": ("fiarse", _SIZES),
    "FedEL": ("fedel", {}),
    "ElasticTrainer, small probe": ("fedel", {"variant": "elastic_only", **_SMALL}),
    "FedEL, small probe": ("fedel", _SMALL),
    "FedEL, end edge by kernels": ("fedel", {"end_edge": "kernel"}),
}
# Training is that of the arm without the suffix; only the clock differs.
IDEAL = "FIARSE, ideal clock"
_PRICED = {**ARMS, IDEAL: ("fiarse", {**_SIZES, "flops": "ideal"})}


class _Layer(nn.Module):
    """3x3 convolution, ReLU, optional pooling, norm over all channels; a classifier at the end.

    The classifier is in the block of the last convolution, so that no exit head doubles it.
    """

    features: int
    pool: bool = False
    last: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        # One group divides the channels of every sub-network by width.
        x = GroupNorm(1)(Conv(self.features, 3, pool=self.pool)(x))
        return nn.Dense(10)(x.mean(axis=(1, 2))) if self.last else x


def network(
    shape: tuple[int, int, int] = (16, 16, 3), channels: Sequence[int] | None = None
) -> BlockModel:
    """Convolutions, a block each, with an exit head after every block but the last.

    Args:
      shape: shape of an image.
      channels: channels of the convolutions; None for `CHANNELS`.
    """
    channels = CHANNELS if channels is None else channels
    last = len(channels) - 1
    layers = [_Layer(c, pool=i in POOLED, last=i == last) for i, c in enumerate(channels)]
    return with_exits(from_flax(layers, shape, 10, name="vgg7"))


@functools.cache
def _images() -> tuple[np.ndarray, ...]:
    raw = load("cifar10")
    rng = np.random.default_rng(0)

    def small(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        keep = rng.permutation(len(x))[:count]
        x = x[keep].astype(np.float32).reshape(count, 16, 2, 16, 2, 3).mean(axis=(2, 4))
        return (x - 120.0) / 60.0, y[keep]

    return (*small(raw.x, raw.y, TRAIN), *small(raw.test_x, raw.test_y, TEST))


def setting(seed: int, images: tuple[np.ndarray, ...] | None = None) -> Problem:
    """The problem of one seed: its own partition, the same images, boards and links.

    Args:
      seed: seed of the partition.
      images: training images and labels, test images and labels; None for CIFAR-10.
    """
    x, y, test_x, test_y = _images() if images is None else images
    split = dirichlet(DEVICES, alpha=ALPHA, min_size=20)
    data = from_arrays(x, y, test_x, test_y, clients=split, num_classes=10, seed=seed)
    model = network()
    cost = cost_table(model)
    boards = presets.fedel(DEVICES, slowdowns=(1.0, 2.0), assignment="cyclic")
    samples = TRAINING["batch_size"] * TRAINING["local_steps"]
    slowest_s = samples * float(cost.step_flops()) / float(np.min(boards.flops_per_s))
    moved = cost.download_bytes() + float(cost.upload_bytes())
    rate = moved / (slowest_s * COMMUNICATION / (1 - COMMUNICATION))
    fleet = replace(boards, downlink_bytes_per_s=rate, uplink_bytes_per_s=rate)
    return Problem(model, data, fleet)


def _options(label: str, rate: float) -> dict[str, Any]:
    # The rate is a factor by round, which enters programs as data: all rates share one.
    return {**TRAINING, "learning_rate": 1.0, "schedule": lambda round: rate, **_PRICED[label][1]}


def build(label: str, problem: Problem, rate: float) -> Algorithm:
    """The method of an arm with a step size; of sub-models it has DepthFL's ensemble alone."""
    algorithm = algorithms.build(_PRICED[label][0], problem, **_options(label, rate))
    if label != "DepthFL":
        return algorithm._replace(submodels=None)
    every = algorithm.submodels
    assert every is not None

    def ensemble(state: Any, variables: Any) -> Mapping[str, Any]:
        return {"ensemble": every.models(state, variables)["ensemble"]}

    return algorithm._replace(submodels=SubModels(ensemble))


class Watched:
    """FedEL's plans as they are, with notes of the trained kernels.

    Args:
      algorithm: FedEL or a variant.
      problem: problem of the run.

    Attributes:
      kernels: int64[types, B], tasks of each type of device that trained the kernel of each block.
    """

    def __init__(self, algorithm: Algorithm, problem: Problem):
        self.kernels = np.zeros((2, problem.model.num_blocks), np.int64)
        self._inner, self._problem = algorithm, problem
        self._times = tensor_times(problem.model, problem.cost)

    @property
    def algorithm(self) -> Algorithm:
        """The method, whose plans are noted."""
        return self._inner._replace(plan=self._plan)

    def _plan(self, state: Any, variables: Any, situation: Situation) -> tuple[Plan, Any]:
        plan, state = self._inner.plan(state, variables, situation)
        kernels = np.asarray(["kernel" in name for name in self._times.names])
        trained = self._times.blocks_of(plan.rows["chosen"] & kernels)
        for group, blocks in zip(self._problem.fleet.groups[plan.clients], trained, strict=True):
            self.kernels[group] += blocks
        return plan, state


def run(
    label: str,
    seed: int,
    rate: float,
    rounds: int,
    images: tuple[np.ndarray, ...] | None = None,
) -> dict[str, Any]:
    """One run of an arm; returns what the table and the plot need."""
    problem = setting(seed, images)
    algorithm = build(label, problem, rate)
    watched = Watched(algorithm, problem) if ARMS[label][0] == "fedel" else None
    if watched is not None:
        algorithm = watched.algorithm
    began_s, worked_s = time.perf_counter(), time.process_time()
    # One program for all windows: on a CPU compiling a route costs more than it saves here.
    result = simulate(
        algorithm,
        problem,
        rounds=rounds,
        seed=seed,
        eval_every=max(rounds // 10, 1),
        execution="masked",
    )
    metrics = result.record.metrics
    own = curve(result.record)
    found = {
        "label": label,
        "seed": seed,
        "rate": rate,
        "rounds": rounds,
        "devices": DEVICES,
        "faults": result.faults,
        **own,
        "fast_step_s": plans_of.fast_step_s(problem, TRAINING),
        "bytes_up": sum(row.get("bytes_up", 0) for row in metrics),
        "bytes_down": sum(row.get("bytes_down", 0) for row in metrics),
        "steps": float(np.mean([task["steps"] for task in result.record.clients])),
        "wall_s": time.perf_counter() - began_s,
        "cpu_s": time.process_time() - worked_s,
    }
    if label == "DepthFL":
        # The paper predicts by the mean of all heads.
        evaluated = [row for row in metrics if row.get("accuracy") is not None]
        ensemble = [row["accuracy[ensemble]"] for row in evaluated]
        found |= {"accuracy": ensemble, "last_head": own["accuracy"]}
    if watched is not None:
        info = [row["info"] for row in metrics[1:]]
        found |= {
            "positive": [each["positive_share"] for each in info],
            "tensors": [each["tensors_per_window"] for each in info],
            "kernels": watched.kernels.tolist(),
        }
    return found


def plans_by_arm(problem: Problem, labels: Sequence[str], rounds: int) -> dict[str, Any]:
    """What the plans of the arms do with the model as it is drawn, see `planned`."""
    variables = jax.jit(problem.model.init)(jax.random.key(0))
    return {
        label: plans_of.planned(build(label, problem, 0.1), problem, variables, TRAINING, rounds)
        for label in labels
    }


def study(
    out: str,
    *,
    rounds: int,
    seeds: Sequence[int],
    rates: Sequence[float],
    labels: Sequence[str] = tuple(ARMS),
    images: tuple[np.ndarray, ...] | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Tunes every arm in runs of half the rounds, then runs it with every seed; runs by arm."""

    def announce(name: str, one: dict[str, Any]) -> None:
        print(f"{name}: {100 * one['accuracy'][-1]:.1f} %, {one['cpu_s']:.0f} s", flush=True)

    runs: dict[str, list[dict[str, Any]]] = {}
    # Arm by arm, so that an interrupted study has whole rows.
    for label in labels:
        tuning = {
            f"tuning {label} {rate:g}": functools.partial(
                run, label, TUNING_SEED, rate, rounds // 2, images
            )
            for rate in rates
        }
        best = report.best_rate(list(run_cells(tuning, out, announce).values()))
        cells = {
            f"{label} {best:g} {seed}": functools.partial(run, label, seed, best, rounds, images)
            for seed in seeds
        }
        runs[label] = list(run_cells(cells, out, announce).values())
    return runs


def main(_: Sequence[str]) -> None:
    """Prints what the plans do, runs what is missing, and prints the tables."""
    chosen = flags.FLAGS
    problem = setting(TUNING_SEED)
    plans = plans_by_arm(problem, tuple(_PRICED), rounds=6)
    print(harness.describe(harness.machine()), end="\n\n")
    print(plans_of.pyramid(problem), plans_of.activity(plans), sep="\n\n", end="\n\n", flush=True)
    if chosen.plan_only:
        return
    runs = study(
        chosen.out,
        rounds=chosen.rounds,
        seeds=[int(seed) for seed in chosen.seeds],
        rates=[float(rate) for rate in chosen.rates],
        labels=chosen.arms or tuple(ARMS),
    )
    if "FIARSE" in runs:
        runs[IDEAL] = report.repriced(runs["FIARSE"], IDEAL, plans[IDEAL]["round_s"])
    print(report.table(runs), report.signs(runs), sep="\n\n")
    if chosen.figure:
        report.figure(runs).savefig(chosen.figure, dpi=130)


if __name__ == "__main__":
    flags.DEFINE_string("out", "runs/fedel_table1", "Directory of the cells.")
    flags.DEFINE_integer("rounds", ROUNDS, "Server steps.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds that are reported.")
    flags.DEFINE_list("rates", ["0.03", "0.1", "0.3"], "Step sizes to choose from.")
    flags.DEFINE_list("arms", [], "Labels; all if empty.")
    flags.DEFINE_bool("plan_only", False, "Whether to stop before training.")
    flags.DEFINE_string("figure", "", "File of the plot; none if empty.")
    app.run(main)
