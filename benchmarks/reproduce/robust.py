"""Robust merges under attack, at a size for an hour; see docs/results/robust.md.

    python -m benchmarks.reproduce.robust --out=runs/robust

Ten clients, of which two attack (the same in all seeds), take part in every round with 5 local
steps of 20. The data is scikit-learn's digits (Dirichlet 1.0) or FEMNIST (190 writers at 14 x 14,
19 writers a client), the network has two hidden layers of 64. Results are written to one JSON file
per run; a run with a file is not repeated. The tables are printed from the files.
"""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.cells import curve, run_cells
from benchmarks.reproduce import pr_fl, pr_fl_setting
from fedjax_het import algorithms
from fedjax_het.data import flip_labels
from fedjax_het.fleet import presets
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms import Transformation, attack, compose, robust

CLIENTS, SHARE = 10, 0.2
ROUNDS = {"digits": 60, "femnist": 120}
TRAINING: dict[str, Any] = {"batch_size": 20, "local_steps": 5, "learning_rate": 0.1}
# Honest updates are 0.2 to 0.9 long, measured on seed 0 without attackers in rounds 1 to 30.
LIMIT = 0.5

# FedPMT's devices train the head, all but the first layer, or everything.
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "fedpmt": {"capacity": np.resize([0.55, 0.75, 1.0], CLIENTS).tolist()},
    "prfl": pr_fl.CONTROL,
}
RULES: dict[str, Callable[[], Transformation] | None] = {
    "mean": None,
    "median": robust.median,
    "trimmed mean": functools.partial(robust.trimmed_mean, share=SHARE),
    "Krum": functools.partial(robust.krum, attackers=2),
    "multi-Krum": functools.partial(robust.krum, attackers=2, keep=8),
    "norm bound": functools.partial(robust.norm_bound, limit=LIMIT),
}
# Attacks on updates. Flipped labels are in the data.
ATTACKS: dict[str, Callable[..., Transformation] | None] = {
    "none": None,
    "sign flip x 4": functools.partial(attack.scaled, factor=-4.0),
    "noise": functools.partial(attack.noise, deviation=0.1),
    "label flip": None,
}
# Data -> method -> rules. PR-FL sends weights, which it merges by a rule of its own.
STUDY: dict[str, dict[str, Sequence[str]]] = {
    "digits": {"fedavg": tuple(RULES)},
    "femnist": {"fedavg": tuple(RULES), "fedpmt": ("mean", "median"), "prfl": ("mean",)},
}


def setting(name: str, seed: int, *, flipped: bool) -> Problem:
    """The problem of one seed: its own partition, and wrong labels of attackers if they flip."""
    data = pr_fl_setting.federated(name, "noniid", seed)
    if flipped:
        data = flip_labels(data, share=SHARE)
    model = mlp(data.input_shape, data.num_classes, hidden=(64, 64))
    return Problem(model, data, presets.build("prfl", CLIENTS))


def run(name: str, method: str, attacked: str, rule: str, seed: int) -> dict[str, Any]:
    """One run; returns what the tables need."""
    problem = setting(name, seed, flipped=attacked == "label flip")
    algorithm = algorithms.build(method, problem, **TRAINING, **METHODS[method])
    attacking, merging = ATTACKS[attacked], RULES[rule]
    if attacking is not None:
        algorithm = compose(algorithm, attacking(share=SHARE))
    if merging is not None:
        algorithm = compose(algorithm, merging())
    began, rounds = time.perf_counter(), ROUNDS[name]
    # One program for all depths of FedPMT: compiling a route costs more than it saves here.
    result = simulate(
        algorithm, problem, rounds=rounds, seed=seed, eval_every=rounds // 20, execution="masked"
    )
    return {
        "data": name,
        "method": method,
        "attack": attacked,
        "rule": rule,
        "seed": seed,
        "faults": result.faults,
        **curve(result.record),
        "wall_s": time.perf_counter() - began,
    }


def at_the_end(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Mean accuracy of the last three evaluations of each run, in percent, float64[runs]."""
    return np.asarray([100 * np.mean(each["accuracy"][-3:]) for each in runs])


def tables(found: Mapping[str, Any]) -> list[str]:
    """The results as lines of Markdown, and whether each attack hurts the mean."""
    lines = []

    def of(name: str, method: str, attacked: str, rule: str) -> np.ndarray:
        wanted = {"data": name, "method": method, "attack": attacked, "rule": rule}
        every = sorted(found.values(), key=lambda run: run["seed"])
        return at_the_end([r for r in every if all(r[k] == v for k, v in wanted.items())])

    for name in sorted({run["data"] for run in found.values()}):
        lines += ["", f"### {name}", "", f"| method | rule | {' | '.join(ATTACKS)} |"]
        lines.append("|---" * (2 + len(ATTACKS)) + "|")
        for method, rules in STUDY[name].items():
            for rule in rules:
                cells = [_cell(of(name, method, attacked, rule)) for attacked in ATTACKS]
                lines.append(f"| {method} | {rule} | {' | '.join(cells)} |")
        for method in STUDY[name]:
            whole = of(name, method, "none", "mean")
            for attacked in list(ATTACKS)[1:]:
                lost = whole - of(name, method, attacked, "mean")
                verdict = "hurts" if np.all(lost > 0) else "does not hurt in every seed"
                each = ", ".join(f"{points:.1f}" for points in lost)
                lines.append(f"check: {attacked} {verdict} the mean of {method}: {each} points")
    return lines


def _cell(ends: np.ndarray) -> str:
    """Mean and standard deviation over seeds; one seed has no deviation."""
    return f"{np.mean(ends):.1f}" + (f" ± {np.std(ends, ddof=1):.1f}" if len(ends) > 1 else "")


def main(_: Sequence[str]) -> None:
    """Runs what is missing in the directory, and prints the tables."""
    cells = {
        f"{name}-{method}-{attacked}-{rule}-{seed}": functools.partial(
            run, name, method, attacked, rule, seed
        )
        for seed in map(int, flags.FLAGS.seeds)
        for name in flags.FLAGS.data
        for method, rules in STUDY[name].items()
        for rule in rules
        for attacked in ATTACKS
    }

    def announce(name: str, row: dict[str, Any]) -> None:
        end, wall_s = at_the_end([row])[0], row["wall_s"]
        print(f"{name:50s} {end:5.1f} %, {wall_s:.0f} s", flush=True)

    print("\n".join(tables(run_cells(cells, flags.FLAGS.out, announce))))


if __name__ == "__main__":
    flags.DEFINE_list("data", list(ROUNDS), "Data sets.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_string("out", "runs/robust", "Directory of the results.")
    app.run(main)
