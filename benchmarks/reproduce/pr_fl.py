"""PR-FL's claims at a size for minutes on two CPU cores; see docs/results/pr_fl.md.

    python -m benchmarks.reproduce.pr_fl --data=femnist --split=noniid --seeds=0,1,2
    python -m benchmarks.reproduce.pr_fl --data=digits --arms=recovery --total_s=16000
    python -m benchmarks.reproduce.pr_fl_figures --runs=runs/pr_fl
    python -m benchmarks.reproduce.pr_fl --data=digits --plan_only

Ten clients have the author's links, whose rates are scaled with the model so that the whole model
takes as long as the author's VGG-11. The data is CIFAR-10 (10,000 training images averaged down to
16 x 16; IID or Dirichlet 1.0, clients sorted by size, the fastest has the fewest) or FEMNIST (190
writers, 14 x 14; assigned at random, or 19 writers per client). The network has two convolutions
and two dense layers; clients take 5 local steps of 20. `--data=digits` runs the same on
scikit-learn's digits with a small MLP, in seconds.

Whole models take 4 bytes a weight, as in the author's runs, and sub-models a bit for every weight
on top; the arms "coo64" have the sizes of the author's code. All arms run for the same virtual
time. Every arm has the same step sizes to choose from on a seed of its own, by its mean accuracy
over the time. Before an arm with recovery trains, its clock says whether recovery can fire;
`--plan_only` prints the participation of all clients by the clock alone, and stops there. Results
are written to one JSON file per run; a run with a file is not repeated.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks.cells import curve, edge, run_cells
from benchmarks.reproduce.claims import store
from benchmarks.reproduce.pr_fl_clock import planned, recovery_check
from benchmarks.reproduce.pr_fl_setting import (
    CLIENTS,
    TRAINING,
    scale,
    setting,
)
from fedjax_het import algorithms
from fedjax_het.algorithms.prfl import Density, Links, Recovery
from fedjax_het.algorithms.prfl.links import no_traffic, priced
from fedjax_het.algorithms.prfl.ranking import network as sizes_of
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.fleet.published import MIB
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulate import simulate

TUNING_SEED = 100
# Adjustments come oftener than the author's 50 rounds: runs are shorter.
CONTROL: dict[str, Any] = {"density": {"interval": 40}, "recovery": {"patience": 5}}


# label -> (algorithm, options)
Arm = tuple[str, dict[str, Any]]
# Methods whose clients train the whole model.
WHOLE = ("fedavg", "prfl_fedasyn", "prfl_fedfix")
METHODS: dict[str, Arm] = {
    "PR-FL": ("prfl", CONTROL),
    "nested masks synchronous": ("nested_mask_sync", {"density": CONTROL["density"]}),
    "FedFix of the author": ("prfl_fedfix", {}),
    "FedAsyn of the author": ("prfl_fedasyn", {}),
    "FedAvg": ("fedavg", {}),
}
# The sizes of the author's code: 20 bytes a weight down, whole models included.
COO64: dict[str, Arm] = {
    f"{label}, coo64": (method, {**options, "links": {"sizes": "coo64"}})
    for label, (method, options) in METHODS.items()
}
ABLATIONS: dict[str, Arm] = {
    "no recovery": ("prfl", {**CONTROL, "recovery": None}),
    "no buffer": ("prfl", {**CONTROL, "merge": {"buffered": False}}),
    "no masks": ("prfl", {**CONTROL, "merge": {"masked": False}}),
    "no residual distribution": ("prfl", {**CONTROL, "distribution": "distinct"}),
    # The fastest client has the least data.
    "weights by samples": ("prfl", {**CONTROL, "weighting": "samples"}),
}
# Interval and patience of the author, for runs of thousands of merges.
_AUTHOR: dict[str, Any] = {"density": {"interval": 50}, "recovery": {"patience": 10}}
RECOVERY: dict[str, Arm] = {
    "recovery": ("prfl", _AUTHOR),
    "recovery off": ("prfl", {**_AUTHOR, "recovery": None}),
}
# Runs of the digits are short: recovery is looked for four times as often.
_SOON: dict[str, Any] = {"density": {"interval": 10}, "recovery": {"patience": 3}}
EARLY: dict[str, Arm] = {
    "early recovery": ("prfl", _SOON),
    "early adaptation without recovery": ("prfl", {**_SOON, "recovery": None}),
}


def _changed(options: dict[str, Any], group: str, **changes: Any) -> Arm:
    """PR-FL with these options and some of a group changed."""
    return "prfl", {**options, group: {**options.get(group, {}), **changes}}


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
    "rule of the slides": ("prfl", {**CONTROL, "mode": "paper"}),
    "frozen staleness": _changed(CONTROL, "merge", live=False),
    "start at 1": _changed(CONTROL, "density", start=(1.0,)),
}
ARMS = {
    "methods": METHODS,
    "coo64": COO64,
    "ablations": ABLATIONS,
    "recovery": RECOVERY,
    "early": EARLY,
    "study": STUDY,
}


def build(arm: Arm, problem: Problem, learning_rate: float = 0.1, **changes: Any) -> Algorithm:
    """The method of an arm on the server's link, with some of its options changed."""
    method, options = arm[0], {**arm[1], **changes}
    factor = scale(problem.model)
    links = {
        "sizes": "dense" if method in WHOLE else "bitmap",
        "server_up_bytes_per_s": 10 * MIB * factor,
        "server_down_bytes_per_s": 50 * MIB * factor,
        **options.pop("links", {}),
    }
    common = {**TRAINING, "learning_rate": learning_rate}
    if method == "fedavg":
        return through_links(
            algorithms.build(method, problem, **common, **options), problem, Links(**links)
        )
    return algorithms.build(method, problem, **common, links=links, **options)


def through_links(algorithm: Algorithm, problem: Problem, links: Links) -> Algorithm:
    """A synchronous method of whole models whose transfers share PR-FL's server link.

    Args:
      algorithm: method whose plan is a `Schedule`.
      problem: problem of the method.
      links: options of the server's link.
    """
    sizes, cost = sizes_of(problem.model, 1.0), problem.cost
    assert isinstance(algorithm.plan, Schedule)

    def over_links(situation: Situation, tasks: Plan) -> Plan:
        # The server waits for everyone, so no earlier upload is on its way.
        timing, _, _ = priced(
            problem,
            situation,
            no_traffic(problem.num_clients),
            sizes,
            np.full(len(tasks.clients), sizes.weights),
            np.rint(tasks.timing.flops / cost.step_flops()).astype(np.int64),
            dense_share=0.0,
            links=links,
            way="distinct",
        )
        return tasks._replace(timing=timing)

    return algorithm._replace(plan=replace(algorithm.plan.amended(over_links), apart=False))


def checks(arm: Arm, problem: Problem, total_s: float) -> str | None:
    """Whether recovery can fire within the time, by the clock alone; None for arms without it."""
    options = arm[1]
    if arm[0] != "prfl" or options.get("recovery", {}) is None:
        return None
    clock = planned(build(arm, problem, recovery=None), problem, until_s=total_s)
    density, recovery = Density(**options.get("density", {})), options.get("recovery", {})
    return recovery_check(clock, density, Recovery(**recovery))


def participation(labels: Sequence[str], problem: Problem, total_s: float) -> dict[str, np.ndarray]:
    """Trainings of each client over the most, by the clock alone and by arm, float64[n] each."""
    every = {label: arm for arms in ARMS.values() for label, arm in arms.items()}
    found = {}
    for label in labels:
        method, _ = every[label]
        if method != "fedavg":  # all take part in every round
            quiet: dict[str, Any] = {"recovery": None} if method == "prfl" else {}
            clock = planned(build(every[label], problem, **quiet), problem, until_s=total_s)
            found[label] = clock.participation
            said = " ".join(f"{share:.2f}" for share in clock.participation)
            print(f"{label}: {len(clock.ends_s)} merges, trainings {said}", flush=True)
    return found


def run_arm(
    label: str, arm: Arm, name: str, split: str, seed: int, total_s: float, learning_rate: float
) -> Any:
    """One run; returns what the tables need."""
    problem = setting(name, split, seed)
    algorithm = build(arm, problem, learning_rate)
    began = time.perf_counter()
    result = simulate(
        algorithm,
        problem,
        rounds=10**6,
        max_virtual_s=total_s,
        seed=seed,
        eval_every_s=total_s / 100,
        evaluator=Evaluator(problem),
    )
    metrics = result.record.metrics
    trained = np.bincount([row["client"] for row in result.record.clients], minlength=CLIENTS)
    info = [(row["virtual_s"], row["info"] or {}) for row in metrics[1:]]
    return {
        "label": label,
        "data": name,
        "split": split,
        "seed": seed,
        "learning_rate": learning_rate,
        "faults": result.faults,
        **curve(result.record),
        "steps": metrics[-1]["step"],
        "trained": trained.tolist(),
        "densities": [(at_s, own["densities"]) for at_s, own in info if "densities" in own],
        "recovered": [(at_s, own["recovered"]) for at_s, own in info if own.get("recovered")],
        "rolled_back": sum(bool(own.get("rolled_back")) for _, own in info),
        "bytes_up": result.record.summary["bytes_up"],
        "bytes_down": result.record.summary["bytes_down"],
        "staleness": float(np.mean([row["staleness"] for row in result.record.clients])),
        "wall_s": time.perf_counter() - began,
    }


def study(
    labels: Sequence[str],
    name: str,
    split: str,
    out: str,
    *,
    seeds: Sequence[int],
    total_s: float,
    rates: Sequence[float],
) -> list[dict[str, Any]]:
    """Tunes every arm, then runs it with every seed.

    Args:
      labels: arms to run.
      name: data set.
      split: how it is dealt.
      out: directory of the cells.
      seeds: seeds of the reported runs.
      total_s: virtual seconds of every run.
      rates: step sizes to choose from; a single one is not tuned.
    """
    every = {label: arm for arms in ARMS.values() for label, arm in arms.items()}

    def announce(cell: str, run: dict[str, Any]) -> None:
        best, wall_s = max(run["accuracy"]), run["wall_s"]
        print(f"{cell}: best {best:.4f}, {run['steps']} merges, {wall_s:.0f} s", flush=True)

    def cells(label: str, rate: float, seeds: Sequence[int], prefix: str) -> dict[str, Any]:
        return {
            f"{prefix}{name}-{split}-{label}-{rate:g}-{seed}": functools.partial(
                run_arm, label, every[label], name, split, seed, total_s, rate
            )
            for seed in seeds
        }

    runs: list[dict[str, Any]] = []
    for label in labels:
        said = checks(every[label], setting(name, split, TUNING_SEED), total_s)
        if said is not None:
            print(f"{label}: {said}", flush=True)
        best = rates[0]
        if len(rates) > 1:
            tuned: dict[str, Any] = {}
            for rate in rates:
                tuned |= cells(label, rate, (TUNING_SEED,), "tuning-")
            # Tuning runs have a directory of their own, for the tables read all that is in one.
            found = run_cells(tuned, f"{out}/tuning", announce).values()
            best = max(found, key=lambda run: np.mean(run["accuracy"]))["learning_rate"]
            edge(label, best, rates)
        runs += run_cells(cells(label, best, seeds, ""), out, announce).values()
    return runs


def main(_: Sequence[str]) -> None:
    """Runs the arms."""
    labels: list[str] = []
    for chosen in flags.FLAGS.arms:
        labels += list(ARMS.get(chosen, {chosen: None}))
    if flags.FLAGS.plan_only:
        problem = setting(flags.FLAGS.data, flags.FLAGS.split, 0)
        found = participation(labels, problem, flags.FLAGS.total_s)
        if flags.FLAGS.store:
            store("pr_fl", {f"slowest, {label}": [np.min(s)] for label, s in found.items()})
        return
    study(
        labels,
        flags.FLAGS.data,
        flags.FLAGS.split,
        flags.FLAGS.out,
        seeds=[int(seed) for seed in flags.FLAGS.seeds],
        total_s=flags.FLAGS.total_s,
        rates=[float(rate) for rate in flags.FLAGS.rates],
    )


if __name__ == "__main__":
    flags.DEFINE_enum("data", "femnist", ["femnist", "cifar10", "digits"], "Data set.")
    flags.DEFINE_enum("split", "noniid", ["iid", "noniid"], "How it is dealt.")
    flags.DEFINE_list("arms", ["methods"], f"{', '.join(ARMS)}, or labels.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.")
    flags.DEFINE_list("rates", ["0.05", "0.1", "0.25"], "Step sizes to choose from.")
    flags.DEFINE_bool("plan_only", False, "Whether to print participations and stop.")
    flags.DEFINE_bool("store", False, "Whether to store what --plan_only finds as claims.")
    flags.DEFINE_string("out", "runs/pr_fl", "Directory of the results.")
    flags.DEFINE_float("total_s", 7000.0, "Virtual seconds of every run.")
    app.run(main)
