"""PR-FL's claims at a size for minutes on two CPU cores; see docs/results/pr_fl.md.

    python -m benchmarks.reproduce.pr_fl --data=femnist --split=noniid --seeds=0,1,2
    python -m benchmarks.reproduce.pr_fl_figures --runs=runs/pr_fl

Ten clients have the author's links, whose rates are scaled with the model so that the whole model
takes as long as the author's VGG-11. The data is CIFAR-10 (10,000 training images averaged down to
16 x 16; IID or Dirichlet 1.0, clients sorted by size, the fastest has the fewest) or FEMNIST (190
writers, 14 x 14; assigned at random, or 19 writers per client). The network has two convolutions
and two dense layers; clients take 5 local steps of 20. `--data=digits` runs the same on
scikit-learn's digits with a small MLP, in seconds. Results are written to one JSON file per run; a
run with a file is not repeated.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags

from benchmarks.cells import curve, run_cells
from fedjax_het import algorithms
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.sources import load
from fedjax_het.fleet import presets
from fedjax_het.fleet.published import MIB
from fedjax_het.models import from_flax
from fedjax_het.models.base import BlockModel
from fedjax_het.models.cnn import Conv
from fedjax_het.models.mlp import Dense, mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

CLIENTS, VGG11 = 10, 9_747_136
TRAINING: dict[str, Any] = {"batch_size": 20, "local_steps": 5, "learning_rate": 0.1}
# Adjustments come oftener than the author's 50 rounds: runs are a tenth as long.
CONTROL: dict[str, Any] = {"density": {"interval": 40}, "recovery": {"patience": 5}}


def network(shape: tuple[int, ...], classes: int) -> BlockModel:
    """Convolutions of 16 and 32, each pooled, 128 hidden units, a linear head.

    For the digits two hidden layers of 64 instead.
    """
    if shape[0] < 14:
        return mlp(shape, classes, hidden=(64, 64))
    layers = [Conv(16, 3, pool=True), Conv(32, 3, pool=True), Dense(128, relu=True), Dense(classes)]
    return from_flax(layers, shape, classes, name="conv2")


@functools.cache
def _images(name: str) -> tuple[np.ndarray, ...]:
    """Images averaged over 2 x 2 pixels, standardised; labels; writers of FEMNIST."""
    raw = load(name)
    if name == "digits":
        return raw.x, raw.y, raw.test_x, raw.test_y, raw.y

    def small(x: np.ndarray) -> np.ndarray:
        h, w, c = x.shape[1:]
        x = x.astype(np.float32).reshape(len(x), h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
        return (x - 100.0) / 75.0

    rng = np.random.default_rng(0)
    keep = rng.permutation(len(raw.x))[:10_000] if name == "cifar10" else np.arange(len(raw.x))
    held = rng.permutation(len(raw.test_x))[:2000]
    writers = keep if raw.clients is None else np.asarray(raw.clients)
    return small(raw.x[keep]), raw.y[keep], small(raw.test_x[held]), raw.test_y[held], writers


def _owners(name: str, split: str, seed: int, y: np.ndarray, who: np.ndarray) -> np.ndarray:
    """The client of each sample; the fastest clients come first."""
    rng = np.random.default_rng([seed, 1])
    if split == "iid":
        return rng.permutation(np.arange(len(y)) % CLIENTS)
    if name == "femnist":
        writers = rng.permutation(np.unique(who))
        place = {writer: min(i // 19, CLIENTS - 1) for i, writer in enumerate(writers)}
        return np.asarray([place[writer] for writer in who])
    owner = np.zeros(len(y), np.int64)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        cuts = np.cumsum(rng.dirichlet(np.ones(CLIENTS)))[:-1] * len(members)
        for k, part in enumerate(np.split(members, cuts.astype(int))):
            owner[part] = k
    by_size = np.argsort(np.argsort(np.bincount(owner, minlength=CLIENTS), kind="stable"))
    return by_size[owner]


def federated(name: str, split: str, seed: int) -> FederatedData:
    """The data of one seed: its own partition, a twentieth held out for recovery."""
    x, y, test_x, test_y, who = _images(name)
    owner = _owners(name, split, seed, y, who)
    classes = 62 if name == "femnist" else 10
    return from_arrays(
        x,
        y,
        test_x,
        test_y,
        clients=owner,
        num_classes=classes,
        validation_fraction=0.04,
        seed=seed,
    )


def setting(name: str, split: str, seed: int) -> tuple[Problem, float]:
    """The problem, and the factor on all rates."""
    data = federated(name, split, seed)
    model = network(data.input_shape, data.num_classes)
    shapes = model.shapes.params
    weights = sum(leaf.size for leaf in jax.tree.leaves(shapes) if len(leaf.shape) >= 2)
    scale = weights / VGG11
    # A local training of the whole model takes half a second.
    flops_per_s = 2 * 100 * 2e6
    fleet = presets.build("prfl", CLIENTS, scale=scale, flops_per_s=flops_per_s)
    return Problem(model, data, fleet), scale


# label -> (algorithm, options, virtual seconds over the base)
Arm = tuple[str, dict[str, Any], float]
METHODS: dict[str, Arm] = {
    "PR-FL": ("prfl", CONTROL, 1.0),
    "nested masks synchronous": ("nested_mask_sync", {"density": CONTROL["density"]}, 1.5),
    "FedFix of the author": ("prfl_fedfix", {}, 2.0),
    "FedAsyn of the author": ("prfl_fedasyn", {}, 3.0),
    "FedAvg": ("nested_mask_sync", {"density": {"start": (1.0,), "lowest": 1.0}}, 4.0),
}
ABLATIONS: dict[str, Arm] = {
    "no recovery": ("prfl", {**CONTROL, "recovery": None}, 1.0),
    "no buffer": ("prfl", {**CONTROL, "merge": {"buffered": False}}, 1.0),
    "no masks": ("prfl", {**CONTROL, "merge": {"masked": False}}, 1.0),
    "no residual distribution": ("prfl", {**CONTROL, "distribution": "distinct"}, 1.0),
}
# Runs of the digits are short: recovery is looked for four times as often.
_SOON: dict[str, Any] = {"density": {"interval": 10}, "recovery": {"patience": 3}}
EARLY: dict[str, Arm] = {
    "early recovery": ("prfl", _SOON, 1.0),
    "early adaptation without recovery": ("prfl", {**_SOON, "recovery": None}, 1.0),
}


def _changed(options: dict[str, Any], group: str, **changes: Any) -> Arm:
    """PR-FL with these options and some of a group changed."""
    return "prfl", {**options, group: {**options.get(group, {}), **changes}}, 1.0


STUDY: dict[str, Arm] = {
    # The increment matters once recovery fires.
    "early recovery with increment 0.1": _changed(_SOON, "recovery", increment=0.1),
    "early recovery with increment 0.4": _changed(_SOON, "recovery", increment=0.4),
    "increment 0.1": _changed(CONTROL, "recovery", increment=0.1),
    "increment 0.4": _changed(CONTROL, "recovery", increment=0.4),
    "floor 0.05": _changed(CONTROL, "density", lowest=0.05),
    "floor 0.2": _changed(CONTROL, "density", lowest=0.2),
    "interval 20": _changed(CONTROL, "density", interval=20),
    "interval 80": _changed(CONTROL, "density", interval=80),
    "a 0": _changed(CONTROL, "merge", a=0.0),
    "a 1.2": _changed(CONTROL, "merge", a=1.2),
    "rule of the slides": ("prfl", {**CONTROL, "mode": "paper"}, 1.0),
    "frozen staleness": _changed(CONTROL, "merge", live=False),
    "start at 1": _changed(CONTROL, "density", start=(1.0,)),
}
ARMS = {"methods": METHODS, "ablations": ABLATIONS, "early": EARLY, "study": STUDY}


def run_arm(label: str, arm: Arm, name: str, split: str, seed: int, total_s: float) -> Any:
    """One run; returns what the tables need."""
    method, options, factor = arm
    problem, scale = setting(name, split, seed)
    links = {
        "sizes": "coo64",
        "server_up_bytes_per_s": 10 * MIB * scale,
        "server_down_bytes_per_s": 50 * MIB * scale,
    }
    algorithm = algorithms.build(method, problem, **TRAINING, links=links, **options)
    began = time.perf_counter()
    result = simulate(
        algorithm,
        problem,
        rounds=10**6,
        max_virtual_s=total_s * factor,
        seed=seed,
        eval_every_s=total_s / 100,
        evaluator=Evaluator(problem),
    )
    metrics = result.record.metrics
    trained = np.bincount([row["client"] for row in result.record.clients], minlength=CLIENTS)
    densities = [
        (r["virtual_s"], r["info"]["densities"]) for r in metrics[1:] if "densities" in r["info"]
    ]
    return {
        "label": label,
        "data": name,
        "split": split,
        "seed": seed,
        "faults": result.faults,
        **curve(result.record),
        "steps": metrics[-1]["step"],
        "trained": trained.tolist(),
        "densities": densities,
        "recovered": [
            (row["virtual_s"], row["info"]["recovered"])
            for row in metrics[1:]
            if row["info"].get("recovered")
        ],
        "rolled_back": sum(bool(row["info"].get("rolled_back")) for row in metrics[1:]),
        "bytes_up": result.record.summary["bytes_up"],
        "bytes_down": result.record.summary["bytes_down"],
        "staleness": float(np.mean([row["staleness"] for row in result.record.clients])),
        "wall_s": time.perf_counter() - began,
    }


def main(_: Sequence[str]) -> None:
    """Runs the arms."""
    every = {label: arm for arms in ARMS.values() for label, arm in arms.items()}
    labels: list[str] = []
    for chosen in flags.FLAGS.arms:
        labels += list(ARMS.get(chosen, {chosen: every.get(chosen)}))
    data, split = flags.FLAGS.data, flags.FLAGS.split
    total_s = flags.FLAGS.total_s
    cells = {
        f"{data}-{split}-{label}-{seed}": functools.partial(
            run_arm, label, every[label], data, split, seed, total_s
        )
        for seed in map(int, flags.FLAGS.seeds)
        for label in labels
    }

    def announce(name: str, run: dict[str, Any]) -> None:
        best, wall_s = max(run["accuracy"]), run["wall_s"]
        print(f"{name}: best {best:.4f}, {run['steps']} merges, {wall_s:.0f} s", flush=True)

    run_cells(cells, flags.FLAGS.out, announce)


if __name__ == "__main__":
    flags.DEFINE_enum("data", "femnist", ["femnist", "cifar10", "digits"], "Data set.")
    flags.DEFINE_enum("split", "noniid", ["iid", "noniid"], "How it is dealt.")
    flags.DEFINE_list("arms", ["methods"], "methods, ablations, early, study, or labels.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_string("out", "runs/pr_fl", "Directory of the results.")
    flags.DEFINE_float("total_s", 7000.0, "Virtual seconds of PR-FL.")
    app.run(main)
