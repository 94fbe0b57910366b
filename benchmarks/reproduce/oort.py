"""Oort against uniform selection, and PyramidFL against Oort, in virtual time to two targets.

    python -m benchmarks.reproduce.oort --out=runs/oort
    python -m benchmarks.reproduce.oort --data=digits --seconds=100 --out=runs/oort_digits

207 writers of FEMNIST, 62 classes, images averaged down to 14 x 14; or scikit-learn's digits, 100
clients by Dirichlet 0.3, for a quick look. The network has one hidden layer. Speeds and links are
log-normal, drawn per seed: a whole task takes a median device about two seconds of work and one of
transfers. Twenty clients take five local steps of 20 (of the digits, three of 5). FedAvg and
FedYogi run with uniform selection and with Oort, whose preferred durations begin at the fastest
30 % (its 10 % of 207 is one cohort); PyramidFL is Oort with two more rules, each of which is run
alone as well. Every arm has the same grid of step sizes on a seed of its own, and the best by the
mean of the accuracies over time.

Every cell is written when it has run; a cell with a file is not repeated. Prints how the selections
differ (a check that they are active), and the times to the targets.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks import harness
from benchmarks.cells import curve, run_cells
from fedjax_het import algorithms
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.partition import dirichlet
from fedjax_het.data.sources import load
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate

COHORT, TUNING_SEED = 20, 100
# Batches and steps; clients of the digits have 14 samples, and five epochs bound the added work.
TRAINING: dict[str, dict[str, Any]] = {
    "femnist": {"batch_size": 20, "local_steps": 5, "clients_per_round": COHORT},
    "digits": {"batch_size": 5, "local_steps": 3, "clients_per_round": COHORT},
}
OORT: dict[str, Any] = {"preferred_percent": 30.0}
SELECTED = {"select": {"name": "oort", **OORT}}
WHOLE = {"thinned_from": 0.0, "thinned_to": 0.0}
YOGI = {"server_learning_rate": 0.01}
# Label -> method and options.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "FedAvg": ("fedavg", {}),
    "FedAvg + Oort": ("fedavg", SELECTED),
    "FedYogi": ("fedyogi", YOGI),
    "FedYogi + Oort": ("fedyogi", {**YOGI, **SELECTED}),
    "PyramidFL": ("pyramidfl", {"oort": OORT}),
    "PyramidFL, added work only": ("pyramidfl", {"oort": OORT, **WHOLE}),
    "PyramidFL, thinning only": ("pyramidfl", {"oort": OORT, "beta": 0.0}),
}
TARGETS = {"femnist": (0.5, 0.65), "digits": (0.8, 0.9)}


@functools.cache
def federated(name: str, seed: int) -> FederatedData:
    """The data; digits are dealt out anew for every seed."""
    raw = load(name)
    if name == "digits":
        parts = dirichlet(100, alpha=0.3)
        return from_arrays(
            raw.x, raw.y, raw.test_x, raw.test_y, clients=parts, num_classes=10, seed=seed
        )

    def small(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), 14, 2, 14, 2, 1).astype(np.float32)
        return (x.mean(axis=(2, 4)) / 255 - 0.17) / 0.33

    assert raw.clients is not None
    held = np.random.default_rng(0).permutation(len(raw.test_x))[:2000]
    return from_arrays(
        small(raw.x),
        raw.y,
        small(raw.test_x[held]),
        raw.test_y[held],
        clients=raw.clients,
        num_classes=62,
    )


def setting(name: str, seed: int) -> Problem:
    """The problem of a seed, on its own log-normal fleet."""
    data = federated(name, seed)
    model = mlp(data.input_shape, data.num_classes, hidden=(200,))
    cost, n, rng = cost_table(model), data.num_clients, np.random.default_rng([seed, 7])
    samples = TRAINING[name]["batch_size"] * TRAINING[name]["local_steps"]
    speed, rate = rng.lognormal(0.0, 1.0, n), rng.lognormal(0.0, 1.0, n)
    fleet = Fleet(
        flops_per_s=float(cost.step_flops()) * samples / 2.0 * speed,
        downlink_bytes_per_s=cost.download_bytes() / 0.25 * rate,
        uplink_bytes_per_s=float(cost.upload_bytes()) / 0.75 * rate,
        compute_jitter=0.2,
        link_jitter=0.2,
        name="log-normal",
    )
    return Problem(model, data, fleet)


def run(label: str, data: str, seed: int, learning_rate: float, seconds: float) -> dict[str, Any]:
    """One run of an arm for so many virtual seconds."""
    method, options = ARMS[label]
    problem = setting(data, seed)
    algorithm = algorithms.build(
        method, problem, **TRAINING[data], learning_rate=learning_rate, **options
    )
    began = time.perf_counter()
    result = simulate(
        algorithm,
        problem,
        rounds=10**6,
        max_virtual_s=seconds,
        seed=seed,
        eval_every_s=seconds / 60,
    )
    metrics, tasks = result.record.metrics, result.record.clients
    last = metrics[-1]
    lasted_s = [task["arrived_s"] - task["dispatched_s"] for task in tasks]
    seen = np.bincount([task["client"] for task in tasks], minlength=problem.num_clients)
    info = [row["info"] for row in metrics[1:] if row["info"]]
    return {
        "label": label,
        "seed": seed,
        "learning_rate": learning_rate,
        "faults": result.faults,
        **curve(result.record),
        "rounds": last["step"],
        "round_s": last["virtual_s"] / last["step"],
        "task_s": float(np.mean(lasted_s)),
        "clients_seen": float(np.mean(seen > 0)),
        # Tasks of the tenth of the clients that was selected most often.
        "top_share": float(np.sort(seen)[-(len(seen) // 10) :].sum() / seen.sum()),
        "steps": float(np.mean([task["steps"] for task in tasks])),
        "thinned_share": float(np.mean([row.get("thinned_share", 0.0) for row in info] or [0.0])),
        "wall_s": time.perf_counter() - began,
    }


def reached_s(one: Mapping[str, Any], target: float) -> float:
    """Virtual seconds until an evaluation reached the accuracy; inf if none did."""
    pairs = zip(one["virtual_s"], one["accuracy"], strict=True)
    return next((second for second, accuracy in pairs if accuracy >= target), np.inf)


def best_rates(tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The step size of each arm with the highest mean accuracy over time."""
    best: dict[str, tuple[float, float]] = {}
    for one in tuned.values():
        scored = float(np.mean(one["accuracy"])), one["learning_rate"]
        best[one["label"]] = max(best.get(one["label"], (-1.0, 0.0)), scored)
    return {label: rate for label, (_, rate) in best.items()}


def activity(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What the selections and the added work did, as a table."""
    columns = ("rounds", "round_s", "task_s", "clients_seen", "top_share", "steps", "thinned_share")
    rows = [
        (label, *(f"{np.mean([one[name] for one in group]):.3g}" for name in columns))
        for label, group in runs.items()
    ]
    return harness.table(("arm", *columns), rows)


def checks(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Whether each mechanism is active, in words, as far as its arms have run."""

    def mean(label: str, name: str) -> float:
        return float(np.mean([one[name] for one in runs[label]])) if label in runs else np.nan

    claims = {
        "Oort's rounds are shorter": mean("FedAvg + Oort", "round_s") < mean("FedAvg", "round_s"),
        "Oort prefers fast clients": mean("FedAvg + Oort", "task_s") < mean("FedAvg", "task_s"),
        "early finishers train more": mean("PyramidFL", "steps") > mean("FedAvg", "steps"),
        "uploads are thinned": mean("PyramidFL", "thinned_share") > 0,
    }
    return [f"{claim}: {'yes' if holds else 'NO'}" for claim, holds in claims.items()]


def times(runs: Mapping[str, Sequence[Mapping[str, Any]]], targets: Sequence[float]) -> str:
    """Times to the targets and last accuracies, mean and standard deviation, as a table."""
    rows = []
    for label, group in runs.items():
        row = [label, f"{group[0]['learning_rate']:g}"]
        for target in targets:
            every = np.asarray([reached_s(one, target) for one in group])
            found = every[np.isfinite(every)]
            missed = len(every) - len(found)
            spread = (
                f"{np.mean(found):.0f} ± {np.std(found, ddof=len(found) > 1):.0f} s"
                if not missed
                else ""
            )
            row.append(spread or f"not by {missed} of {len(every)}")
        last = [100 * one["accuracy"][-1] for one in group]
        rows.append((*row, f"{np.mean(last):.1f} ± {np.std(last, ddof=len(last) > 1):.1f} %"))
    heads = [f"{100 * target:g} %" for target in targets]
    return harness.table(("arm", "step size", *heads, "at the end"), rows)


def study(
    data: str,
    out: str,
    *,
    seconds: float,
    seeds: Sequence[int],
    rates: Sequence[float],
    labels: Sequence[str] = tuple(ARMS),
) -> dict[str, list[dict[str, Any]]]:
    """Tunes every arm, then runs it with every seed; the runs by arm.

    Args:
      data: "femnist" or "digits".
      out: directory of the cells.
      seconds: virtual seconds of a run; tuning runs last half as long.
      seeds: seeds of the reported runs.
      rates: step sizes to choose from.
      labels: arms to run.
    """

    def announce(name: str, one: dict[str, Any]) -> None:
        last = 100 * one["accuracy"][-1]
        print(f"{name}: {last:.1f} %, {one['rounds']} rounds, {one['wall_s']:.0f} s", flush=True)

    tuned = run_cells(
        {
            f"{data} tuning {label} {rate:g}": functools.partial(
                run, label, data, TUNING_SEED, rate, seconds / 2
            )
            for label in labels
            for rate in rates
        },
        out,
        announce,
    )
    chosen = best_rates(tuned)
    found = run_cells(
        {
            f"{data} {label} {chosen[label]:g} {seed}": functools.partial(
                run, label, data, seed, chosen[label], seconds
            )
            for seed in seeds
            for label in labels
        },
        out,
        announce,
    )
    return {label: [one for one in found.values() if one["label"] == label] for label in labels}


def main(_: Sequence[str]) -> None:
    """Runs the study and prints its tables."""
    chosen = flags.FLAGS
    runs = study(
        chosen.data,
        chosen.out,
        seconds=chosen.seconds,
        seeds=[int(seed) for seed in chosen.seeds],
        rates=[float(rate) for rate in chosen.rates],
        labels=chosen.arms or tuple(ARMS),
    )
    targets = [float(target) for target in chosen.targets] or TARGETS[chosen.data]
    found = activity(runs), "\n".join(checks(runs)), times(runs, targets)
    print(*found, sep="\n\n")


if __name__ == "__main__":
    flags.DEFINE_enum("data", "femnist", list(TARGETS), "Data set.")
    flags.DEFINE_string("out", "runs/oort", "Directory of the cells.")
    flags.DEFINE_float("seconds", 1200.0, "Virtual seconds of a run.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds that are reported.")
    flags.DEFINE_list("rates", ["0.03", "0.1", "0.3"], "Step sizes to choose from.")
    flags.DEFINE_list("targets", [], "Accuracies; those of the data set if empty.")
    flags.DEFINE_list("arms", [], "Labels; all if empty.")
    app.run(main)
