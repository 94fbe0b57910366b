"""DTFL's claims at a size for an hour or two on two CPU cores; see docs/results/dtfl.md.

    python -m benchmarks.reproduce.dtfl --arms=iid,skewed --seeds=0,1,2 --out=runs/dtfl

The data is CIFAR-10 averaged down to 16 x 16, with `--per_client` images each (batches of 20, so
200 images give 10 local steps a round and 1,000 the paper's 50). The optimiser is AMSGrad. The
networks have batch norm and the eight modules md1..md8: "resnet", bottlenecks with one unit per
group (20 layers) at half the width; "plain", seven convolutions of 4 to 64 channels and a head,
whose activations are to each other as those of ResNet-56; "plain_half", whose md1 sends half of
what md2 sends in place of a quarter (the runs of the page). The fleet is DTFL's, scaled so that a
batch of 100 takes the reference machine 0.16 s as in the authors' code, with the same ratio of
transfer time to compute time as ResNet-56. Results are written to one JSON file per run;
`benchmarks.reproduce.dtfl_figures` makes tables and figures from them.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import app, flags

from benchmarks.cells import curve, run_cells
from benchmarks.reproduce.dtfl_habits import alike, eager_server, last_client
from fedjax_het import algorithms, models
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.partition import partitioner
from fedjax_het.data.sources import load
from fedjax_het.engine.engine import Engine
from fedjax_het.fleet import presets
from fedjax_het.models.base import BlockModel
from fedjax_het.models.resnet import Head
from fedjax_het.models.vgg import ConvNorm
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.simulate import simulate

PER_CLIENT, TEST, SIDE = 200, 2_000, 16
ROUNDS, EVAL_EVERY = 80, 2
# Seconds per batch of 100 on the reference machine (constant of the authors' code), and the bytes
# of such a batch after md2 with ResNet-56.
BATCH_S, BATCH, REFERENCE_BYTES = 0.16, 100, 262_144
TRAINING: dict[str, Any] = {
    "learning_rate": 1e-3,
    "batch_size": 20,
    "client_optimizer": "amsgrad",
    "weight_decay": 5e-4,
}

# label -> (algorithm, its options, options of the setting)
Arm = tuple[str, dict[str, Any], dict[str, Any]]
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "DTFL": ("dtfl", {}),
    "FedAvg": ("fedavg", {}),
    "FedYogi": ("fedyogi", {"server_learning_rate": 1e-2}),
    # A quarter of the server's epochs, for the wall's sake.
    "FedGKT": ("fedgkt", {"weight_decay": 1e-4, "server_epochs": (5,)}),
    "SplitFed": ("splitfed", {}),
}
_CASE_2 = {"profiles": (1, 3, 5)}
ARMS: dict[str, dict[str, Arm]] = {
    "iid": {f"{label}, IID": (*m, {}) for label, m in _METHODS.items()},
    "skewed": {f"{label}, Dirichlet": (*m, {"alpha": 0.5}) for label, m in _METHODS.items()},
    "yogi": {
        "FedYogi 1e-3, IID": ("fedyogi", {"server_learning_rate": 1e-3}, {}),
        "FedYogi 1e-3, Dirichlet": (
            "fedyogi",
            {"server_learning_rate": 1e-3},
            {"alpha": 0.5},
        ),
    },
    "fixed": {
        f"tier {m} for all": ("dtfl", {"scheduler": {"fixed_tier": m}}, _CASE_2)
        for m in range(1, 8)
    },
    "tiers": {f"{m} tiers": ("dtfl", {"tiers": m}, {}) for m in range(1, 7)},
    "clients": {
        f"{label}, {n} clients": (*_METHODS[label], {"clients": n, "participation": 0.1})
        for n in (20, 50, 100)
        for label in ("DTFL", "FedAvg")
    },
    "privacy": {
        **{f"dcor {a:g}": ("dtfl", {"privacy": {"dcor": a}}, {}) for a in (0.25, 0.5, 0.75)},
        "patch shuffling": ("dtfl", {"privacy": {"shuffle": "space"}}, {}),
        "channel shuffling": ("dtfl", {"privacy": {"shuffle": "channel"}}, {}),
    },
    # The authors' schedule of epochs, and the loss of their paper.
    "gkt": {
        "FedGKT, 20 epochs": ("fedgkt", {"weight_decay": 1e-4}, {}),
        "FedGKT, distils on the server": (
            "fedgkt",
            {"weight_decay": 1e-4, "server_epochs": (5,), "distill_on_server": True},
            {},
        ),
    },
    # Habits of the authors' code: the server's optimiser, and the model that is evaluated.
    "habits": {
        f"tier {m}, reset every {reset}, {which}": (
            "dtfl",
            {"scheduler": {"fixed_tier": m}, "server_opt_reset": reset},
            {**_CASE_2, "last_client": which == "last client"},
        )
        for m in (1, 7)
        for reset in ("round", "batch")
        for which in ("aggregate", "last client")
    }
    | {"FedAvg, last client": ("fedavg", {}, {**_CASE_2, "last_client": True})},
    # Why the server's head is late in tier 7.
    "head": {
        "tier 7, heads alike": (
            "dtfl",
            {"scheduler": {"fixed_tier": 7}},
            {**_CASE_2, "heads_alike": True},
        ),
        "tier 7, five times the server's step": (
            "dtfl",
            {"scheduler": {"fixed_tier": 7}},
            {**_CASE_2, "server_rate": 5.0},
        ),
    },
    "variants": {
        "server optimiser reset": ("dtfl", {"server_opt_reset": "batch"}, {}),
        "dynamic devices, DTFL": ("dtfl", {}, {"redraw_every": 10}),
        "dynamic devices, FedAvg": ("fedavg", {}, {"redraw_every": 10}),
    },
}


@functools.cache
def _images(train: int) -> tuple[np.ndarray, ...]:
    raw = load("cifar10")
    rng = np.random.default_rng(0)
    mean = np.asarray([0.4914, 0.4822, 0.4465], np.float32)
    std = np.asarray([0.2470, 0.2435, 0.2616], np.float32)
    side = 32 // SIDE

    def small(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        keep = rng.permutation(len(x))[:count]
        tiles = x[keep].astype(np.float32).reshape(count, SIDE, side, SIDE, side, 3)
        return ((tiles.mean(axis=(2, 4)) / 255 - mean) / std).astype(np.float32), y[keep]

    return (*small(raw.test_x, raw.test_y, TEST), *small(raw.x, raw.y, train))


# Channels of the convolutions, and whether 2 x 2 pooling follows.
_PLAIN = {
    "plain": (
        (4, False),
        (16, False),
        (16, False),
        (32, True),
        (32, False),
        (64, True),
        (64, False),
    ),
    "plain_half": (
        (4, False),
        (8, False),
        (8, True),
        (16, False),
        (16, True),
        (32, False),
        (32, False),
    ),
}
NETS = ("resnet", *_PLAIN)


def network(name: str) -> BlockModel:
    """One of `NETS`, with exit heads."""
    shape = (SIDE, SIDE, 3)
    if name == "resnet":
        return models.build(
            "resnet",
            shape,
            10,
            exits=True,
            bottleneck=True,
            units_per_group=1,
            norm="batch",
            granularity="module",
            width=8,
        )
    blocks = [ConvNorm(channels, "batch", pool) for channels, pool in _PLAIN[name]]
    return models.with_exits(models.from_flax([*blocks, Head(10)], shape, 10, name="plain8"))


def samples(clients: int, alpha: float | None, per_client: int = PER_CLIENT) -> FederatedData:
    """The same images and the same partition whatever the seed of the run, as in the paper."""
    test_x, test_y, x, y = _images(per_client * clients)
    split = (
        partitioner("iid", num_clients=clients)
        if alpha is None
        else partitioner("dirichlet", num_clients=clients, alpha=alpha, min_size=10)
    )
    return from_arrays(x, y, test_x, test_y, clients=split, num_classes=10, seed=0)


def setting(
    net: str,
    *,
    alpha: float | None = None,
    clients: int = 10,
    participation: float = 1.0,
    profiles: Sequence[int] = (1, 2, 3, 4, 5),
    redraw_every: int | None = None,
    per_client: int = PER_CLIENT,
) -> tuple[Problem, float, int]:
    """The problem, the server's speed and the clients per round of an arm."""
    data = samples(clients, alpha, per_client)
    model = network(net)
    speed = float(Problem(model, data, presets.build("uniform", clients)).cost.step_flops())
    speed *= BATCH / BATCH_S
    sent = int(np.prod(model.activation_shapes(1)[1].shape)) * 4
    fleet = presets.build(
        "dtfl",
        clients,
        profiles=tuple(profiles),
        base_flops_per_s=speed,
        link_scale=sent / REFERENCE_BYTES,
        redraw_every=redraw_every,
    )
    return Problem(model, data, fleet), speed, max(1, round(participation * clients))


class Prepared(NamedTuple):
    """An arm whose programs all its seeds share."""

    problem: Problem
    algorithm: Algorithm
    options: dict[str, Any]
    engine: Engine
    evaluator: Evaluator
    heads_alike: bool


def prepare(arm: Arm, net: str, rounds: int, per_client: int) -> Prepared:
    """Makes the setting of an arm, its method, and their programs."""
    name, options, where = arm
    # What is not of the problem: how the arm is started, trained and evaluated.
    where = dict(where)
    last, started = where.pop("last_client", False), where.pop("heads_alike", False)
    rate = where.pop("server_rate", 1.0)
    problem, speed, per_round = setting(net, per_client=per_client, **where)
    options = {**TRAINING, **options, "clients_per_round": per_round}
    if rate != 1.0:
        options = eager_server(options, cut=problem.model.num_blocks - 2, factor=rate)
    if "server_flops_per_s" in algorithms.option_names(name):
        options["server_flops_per_s"] = speed
    algorithm = algorithms.build(name, problem, **options)
    if last:
        algorithm = last_client(algorithm)
    # One program for all tiers: on a CPU compiling a route costs more than it saves here.
    execution = "masked" if name == "dtfl" else "routed"
    # FedGKT is as many models as clients, each of which is evaluated.
    every = 5 * EVAL_EVERY if name == "fedgkt" else EVAL_EVERY
    run: dict[str, Any] = {"rounds": rounds, "eval_every": every, "execution": execution}
    engine = Engine(algorithm, RunOptions.parse(run).resources(problem))
    return Prepared(problem, algorithm, run, engine, Evaluator(problem), started)


def run_arm(label: str, made: Callable[[], Prepared], seed: int) -> dict[str, Any]:
    """One run; returns what the tables and plots need."""
    problem, algorithm, run, engine, evaluator, heads_alike = made()
    began = time.perf_counter()
    if heads_alike:
        run = {**run, "initial": alike(problem.model, seed)}
    result = simulate(algorithm, problem, seed=seed, engine=engine, evaluator=evaluator, **run)
    metrics, tasks = result.record.metrics, result.record.clients
    return {
        "label": label,
        "seed": seed,
        "faults": result.faults,
        **curve(result.record),
        "correlation": [m["info"].get("correlation") for m in metrics[1:]],
        "round_s": np.diff([m["virtual_s"] for m in metrics]).tolist(),
        "tasks": {
            key: [task[key] for task in tasks]
            for key in ("step", "client", "cut_block", "compute_s", "bytes_up", "bytes_down")
        },
        "speed": [
            problem.fleet.at(r).flops_per_s.tolist() for r in range(0, run["rounds"], EVAL_EVERY)
        ],
        "wall_s": time.perf_counter() - began,
    }


def main(_: Sequence[str]) -> None:
    """Runs what is missing in the directory."""
    every = {
        label.replace(",", "_"): arm for group in ARMS.values() for label, arm in group.items()
    }
    chosen: dict[str, Arm] = {}
    for name in flags.FLAGS.arms:
        chosen |= ARMS.get(name) or {name: every[name]}
    cells = {}
    for label, arm in chosen.items():
        shown = label.replace("_", ",")
        # The seeds of an arm come one after another and share its programs, made when needed.
        made = functools.cache(
            functools.partial(
                prepare, arm, flags.FLAGS.net, flags.FLAGS.rounds, flags.FLAGS.per_client
            )
        )
        for seed in map(int, flags.FLAGS.seeds):
            cells[f"{shown}-{seed}"] = functools.partial(run_arm, shown, made, seed)

    def announce(name: str, row: dict[str, Any]) -> None:
        accuracy, virtual_s, wall_s = row["accuracy"][-1], row["virtual_s"][-1], row["wall_s"]
        print(f"{name:30s} {accuracy:.3f}, {virtual_s:.1f} virtual s, {wall_s:.0f} s", flush=True)

    run_cells(cells, flags.FLAGS.out, announce)


if __name__ == "__main__":
    flags.DEFINE_list("arms", ["iid"], f"{', '.join(ARMS)}, or labels with _ for a comma.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_string("out", "runs/dtfl", "Directory of the results.")
    flags.DEFINE_enum("net", "resnet", NETS, "Network.")
    flags.DEFINE_integer("rounds", ROUNDS, "Server steps.")
    flags.DEFINE_integer("per_client", PER_CLIENT, "Training images of a client.")
    app.run(main)
