"""FedEL's claims at a size for minutes on two CPU cores; see docs/results/fedel.md.

    python -m benchmarks.reproduce.fedel --plan_only
    python -m benchmarks.reproduce.fedel --arms=core --seeds=0,1,2 --out=runs/fedel

The data is Fashion-MNIST (6,000 training and 2,000 test images, averaged down to 14 x 14) on 20
clients (Dirichlet 0.1) with four device types, which take 1, 2, 3 and 4 times as long as the
fastest. A round has 10 clients with 5 local steps of 16. The network "pyramid" has seven
convolutions whose backward costs grow as those of VGG16, the last with the classifier; "plain6" has
six convolutions of nearly equal cost and a head (the runs of the page).

Every arm has the same step sizes to choose from on a seed of its own, by the mean accuracy over the
time, among those at which 80 % of FedEL's importances are positive. Before it trains, the program
prints the costs of the blocks and, for the arms "beta", which share of the masks is that of beta
0.6. Results are written to one JSON file per run.
"""

import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.cells import curve, edge, run_cells
from benchmarks.reproduce import fedel_table1_plans
from benchmarks.reproduce.fedel_masks import overlaps
from benchmarks.reproduce.fedel_networks import NETS, network
from benchmarks.reproduce.fedel_table1_report import best_rate, invalid
from fedjax_het import algorithms
from fedjax_het.data.federated import from_arrays
from fedjax_het.data.partition import partitioner
from fedjax_het.data.sources import load
from fedjax_het.fleet import presets
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TRAINING: dict[str, Any] = {
    "batch_size": 16,
    "local_steps": 5,
    "clients_per_round": 10,
    "weighting": "uniform",
}
CLIENTS, TRAIN, TEST, ROUNDS, TUNING_SEED = 20, 6_000, 2_000, 120, 100
BETAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


@functools.cache
def _images() -> tuple[np.ndarray, ...]:
    raw = load("fashion_mnist")
    rng = np.random.default_rng(0)

    def small(x: np.ndarray, y: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        keep = rng.permutation(len(x))[:count]
        x = x[keep].astype(np.float32).reshape(count, 14, 2, 14, 2, 1).mean(axis=(2, 4))
        return (x - 73.0) / 80.0, y[keep]

    return (*small(raw.x, raw.y, TRAIN), *small(raw.test_x, raw.test_y, TEST))


def setting(
    seed: int,
    net: str = "pyramid",
    *,
    slowdowns: Sequence[float] = (1.0, 2.0, 3.0, 4.0),
    alpha: float = 0.1,
    coarse: bool = False,
) -> Problem:
    """The problem of one seed: its own partition, the same images and fleet."""
    x, y, test_x, test_y = _images()
    split = partitioner("dirichlet", num_clients=CLIENTS, alpha=alpha, min_size=20)
    data = from_arrays(x, y, test_x, test_y, clients=split, num_classes=10, seed=seed)
    fleet = presets.build("fedel", CLIENTS, slowdowns=tuple(slowdowns), assignment="cyclic")
    return Problem(network(net, coarse), data, fleet)


# name -> (algorithm, its options, options of the setting)
Arm = tuple[str, dict[str, Any], dict[str, Any]]
_CORE: dict[str, Arm] = {
    "FedAvg": ("fedavg", {}, {}),
    "FedEL": ("fedel", {}, {}),
    "ElasticTrainer": ("fedel", {"variant": "elastic_only"}, {}),
    "FedPMT": ("fedpmt", {}, {}),
    "FedEL, total budget": ("fedel", {"budget": {"counts": "total"}}, {}),
    "FedEL-C": ("fedel", {"variant": "C"}, {}),
    "FedEL, no rollback": ("fedel", {"variant": "no_rollback"}, {}),
    "FedEL, plain mean": ("fedel", {"agg": "plain"}, {}),
}
# One pass over a client's data: the clients' numbers of steps differ, which FedNova is about.
_EPOCH: dict[str, Any] = {"local_steps": None, "epochs": 1}
# In effect the squared gradient, as the runs of the page; and the squared gradient itself.
_SMALL: dict[str, Any] = {"probe": {"step": 0.01}}
_GRADIENT: dict[str, Any] = {"probe": {"measure": "gradient"}}
_SPREAD_8: dict[str, Any] = {"slowdowns": (1.0, 2.0, 4.0, 8.0)}
_SPREAD_16: dict[str, Any] = {"slowdowns": (1.0, 4.0, 8.0, 16.0)}
_BETA: dict[str, Arm] = {
    **{f"beta {b:g}": ("fedel", {"beta": b}, {}) for b in BETAS if b != 0.6},
    "beta 0, adaptive": ("fedel", {"beta": 0.0, "extensions": {"adaptive_beta": True}}, {}),
}
_PROBE: dict[str, Arm] = {
    "FedEL, small probe": ("fedel", _SMALL, {}),
    "ElasticTrainer, small probe": ("fedel", {"variant": "elastic_only", **_SMALL}, {}),
    "FedEL, gradient norms": ("fedel", _GRADIENT, {}),
    "ElasticTrainer, gradient norms": ("fedel", {"variant": "elastic_only", **_GRADIENT}, {}),
    **{f"beta {b:g}, small probe": ("fedel", {"beta": b, **_SMALL}, {}) for b in BETAS if b != 0.6},
    "FedEL, exit probe": ("fedel", {"probe": {"head": "exit"}}, {}),
    "FedEL, end edge by kernels": ("fedel", {"end_edge": "kernel"}, {}),
}
# Nobody trains the front in every round: all devices afford a quarter of the network.
_EQUAL: dict[str, Any] = {"slowdowns": (1.0,)}
_HIDDEN: dict[str, Arm] = {
    "FedAvg, no fast client": ("fedavg", {}, _EQUAL),
    "FedEL, no fast client": ("fedel", {"threshold": 0.25}, _EQUAL),
    "ElasticTrainer, no fast client": (
        "fedel",
        {"variant": "elastic_only", "threshold": 0.25},
        _EQUAL,
    ),
}
_WRAPPED: dict[str, Arm] = {
    "FedAvg, 5 a round": ("fedavg", {"clients_per_round": 5}, {}),
    "FedEL, 5 a round": ("fedel", {"clients_per_round": 5}, {}),
    "ElasticTrainer, 5 a round": (
        "fedel",
        {"variant": "elastic_only", "clients_per_round": 5},
        {},
    ),
    "FedProx": ("fedprox", {"mu": 0.1}, {}),
    "FedProx + FedEL": ("fedel", {"mu": 0.1}, {}),
    "FedNova, 1 epoch": ("fednova", _EPOCH, {}),
    "FedNova + FedEL, 1 epoch": ("fedel", {"agg": "nova", **_EPOCH}, {}),
}
_SENSITIVITY: dict[str, Arm] = {
    "T_th 3/4": ("fedel", {"threshold": 0.75}, {}),
    "T_th 1/2": ("fedel", {"threshold": 0.5}, {}),
    "profile noise 20 %": ("fedel", {"extensions": {"profile_noise": 0.2}}, {}),
    "global momentum 0.9": ("fedel", {"extensions": {"global_momentum": 0.9}}, {}),
    "FedAvg, spread 8": ("fedavg", {}, _SPREAD_8),
    "FedEL, spread 8": ("fedel", {}, _SPREAD_8),
    "FedAvg, spread 16": ("fedavg", {}, _SPREAD_16),
    "FedEL, spread 16": ("fedel", {}, _SPREAD_16),
    "FedEL, pairs of layers": ("fedel", {}, {"coarse": True}),
    "FedAvg, alpha 10": ("fedavg", {}, {"alpha": 10.0}),
    "FedEL, alpha 10": ("fedel", {}, {"alpha": 10.0}),
    "ElasticTrainer, alpha 10": ("fedel", {"variant": "elastic_only"}, {"alpha": 10.0}),
}
ARMS = {
    "core": _CORE,
    "beta": _BETA,
    "probe": _PROBE,
    "no_fast": _HIDDEN,
    "wrapped": _WRAPPED,
    "sensitivity": _SENSITIVITY,
}


def run_arm(label: str, arm: Arm, seed: int, rounds: int, net: str, rate: float) -> dict[str, Any]:
    """One run; returns what the tables and plots need."""
    name, options, where = arm
    problem = setting(seed, net, **where)
    # The rate is a factor by round, which enters programs as data: all rates share one.
    step = {"learning_rate": 1.0, "schedule": lambda round: rate}
    algorithm = algorithms.build(name, problem, **{**TRAINING, **step, **options})
    began = time.perf_counter()
    # One program for all windows: on a CPU compiling a route costs more than it saves here.
    result = simulate(
        algorithm,
        problem,
        rounds=rounds,
        seed=seed,
        eval_every=5,
        execution="masked",
        evaluator=Evaluator(problem),
    )
    metrics = result.record.metrics
    full_s = float(np.max(problem.cost.step_flops() / problem.fleet.flops_per_s)) * 80
    fastest_s = float(np.min(problem.cost.step_flops() / problem.fleet.flops_per_s)) * 80
    info = [row["info"] or {} for row in metrics[1:]]
    positive = [i["positive_share"] for i in info if "positive_share" in i]
    trained = [i["trained_blocks"] for i in info if "trained_blocks" in i]
    return {
        "label": label,
        "seed": seed,
        "rate": rate,
        "net": net,
        "rounds": rounds,
        "faults": result.faults,
        **curve(result.record),
        "round_s": float(np.mean(np.diff([r["virtual_s"] for r in metrics]))),
        "budget_s": fastest_s,
        "slowest_s": full_s,
        "bytes_up": float(sum(r.get("bytes_up", 0) for r in metrics)),
        "o1": [i["o1"] for i in info if "o1" in i],
        "true_budget_ratio": [i["true_budget_ratio"] for i in info if "true_budget_ratio" in i],
        **({"positive": positive} if positive else {}),
        "tensors": [i["tensors_per_window"] for i in info if "tensors_per_window" in i],
        "overrun_clients": int(sum(i.get("overrun_clients", 0) for i in info)),
        "trained_blocks": np.sum(trained, axis=0).tolist() if trained else None,
        "tasks_by_group": np.bincount(
            problem.fleet.groups[[c["client"] for c in result.record.clients]], minlength=4
        ).tolist(),
        "wall_s": time.perf_counter() - began,
    }


def with_small_probe(arm: Arm) -> Arm:
    """The arm with the probe of the page's runs, unless it is not FedEL's or names its own."""
    name, options, where = arm
    return name, {**_SMALL, **options} if name == "fedel" else options, where


def study(
    chosen: dict[str, Arm],
    out: str,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    rounds: int,
    net: str,
) -> list[dict[str, Any]]:
    """Tunes every arm in runs of half the rounds, then runs it with every seed.

    Args:
      chosen: arms by label.
      out: directory of the cells; those of the tuning have one of their own in it.
      seeds: seeds of the reported runs.
      rates: step sizes to choose from; a single one is not tuned.
      rounds: rounds of a reported run.
      net: one of `NETS`.
    """

    def announce(name: str, row: dict[str, Any]) -> None:
        budgets = row["round_s"] / row["budget_s"]
        accuracy, wall_s = row["accuracy"][-1], row["wall_s"]
        print(f"{name:30s} {accuracy:.4f}, round {budgets:.3f} budgets, {wall_s:.0f} s", flush=True)

    runs = []
    for label, arm in chosen.items():
        best = rates[0]
        if len(rates) > 1:
            tuning = {
                f"{label} {rate:g}": functools.partial(
                    run_arm, label, arm, TUNING_SEED, -(-rounds // 2), net, rate
                )
                for rate in rates
            }
            tuned = list(run_cells(tuning, f"{out}/tuning", announce).values())
            best = best_rate(tuned)
            edge(label, best, rates)
        cells = {
            f"{label}-{best:g}-{seed}": functools.partial(
                run_arm, label, arm, seed, rounds, net, best
            )
            for seed in seeds
        }
        found = list(run_cells(cells, out, announce).values())
        if invalid(found):
            print(f"{label}: NOT VALID, fewer than 80 % of the importances are positive")
        runs += found
    return runs


def main(_: Sequence[str]) -> None:
    """Prints what the plans do, and runs what is missing in the directory."""
    every = {label: arm for group in ARMS.values() for label, arm in group.items()}
    chosen: dict[str, Arm] = {}
    for name in flags.FLAGS.arms:
        chosen |= ARMS.get(name) or {name: every[name]}
    if flags.FLAGS.small_probe:
        chosen = {label: with_small_probe(arm) for label, arm in chosen.items()}
    problem = setting(TUNING_SEED, flags.FLAGS.net)
    print(fedel_table1_plans.pyramid(problem, slowdown=4.0), flush=True)
    if flags.FLAGS.plan_only:
        return
    rates = [float(rate) for rate in flags.FLAGS.rates]
    if "beta" in flags.FLAGS.arms:
        for rate in rates:
            shares = overlaps(problem, {**TRAINING, "learning_rate": rate}, BETAS, rounds=20)
            said = ", ".join(f"{beta:g}: {share:.2f}" for beta, share in shares.items())
            print(f"step {rate:g}, masks as at beta 0.6: {said}", flush=True)
    study(
        chosen,
        flags.FLAGS.out,
        seeds=[int(seed) for seed in flags.FLAGS.seeds],
        rates=rates,
        rounds=flags.FLAGS.rounds,
        net=flags.FLAGS.net,
    )


if __name__ == "__main__":
    flags.DEFINE_list("arms", ["core"], f"{', '.join(ARMS)}, or labels of arms.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_list("rates", ["0.003", "0.01", "0.03", "0.1"], "Step sizes to choose from.")
    flags.DEFINE_string("out", "runs/fedel", "Directory of the results.")
    flags.DEFINE_integer("rounds", ROUNDS, "Server steps.")
    flags.DEFINE_enum("net", "pyramid", NETS, "Network.")
    flags.DEFINE_bool(
        "small_probe", False, "Whether FedEL's arms without a word on it have the small probe."
    )
    flags.DEFINE_bool("plan_only", False, "Whether to stop before training.")
    app.run(main)
