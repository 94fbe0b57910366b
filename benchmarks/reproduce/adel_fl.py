"""The tables and figures of docs/results/adel_fl.md, from the runs of the adel configurations.

    python -m benchmarks.reproduce.adel_fl --runs=runs/adel_mnist_mlp --total_s=400
    python -m benchmarks.reproduce.adel_fl --figures=docs/results/images
    python -m benchmarks.reproduce.adel_fl --bias
    python -m benchmarks.reproduce.adel_fl --plans=configs/adel_mnist_mlp.py

`--plans` prints, before a configuration is trained, what its planned batches and deadlines can be
worth. `--runs` prints accuracy at equal total time from a comparison's directory. `--figures` draws
the planned deadlines over the step size. `--bias` computes, without training, the bias of the merge
rules if layer times are not exponential, and if devices are not as fast as assumed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from matplotlib.figure import Figure

from benchmarks import harness
from benchmarks.reproduce.adel_plans import Planned, plans, split
from benchmarks.reproduce.claims import store
from fedjax_het import algorithms, experiment
from fedjax_het.algorithms.adel.bound import Bound, Constants
from fedjax_het.algorithms.adel.planning import Limits, plan_deadlines
from fedjax_het.common.writing import write_atomic
from fedjax_het.contract.plan import Situation
from fedjax_het.data.load import load_federated
from fedjax_het.data.partition import partitioner
from fedjax_het.fleet import presets
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.speed import SpeedTrace
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.report.records import RunRecord
from fedjax_het.report.style import legend_above, method_style, png, styled

_BUDGET = ("rounds", "total_s")
USERS, ROUNDS, PERIOD_S, LAYERS_THAT_FIT = 20, 600, 3.0, 0.85


def at_equal_time(root: Path, total_s: float) -> str:
    """A Markdown table: what each method has reached when the time is over."""
    methods: dict[str, list[RunRecord]] = {}
    for path in sorted(root.glob("*/seed*/summary.json")):
        record = RunRecord.load(path.parent)
        methods.setdefault(record.summary["name"], []).append(record)
    lines = [
        "| method | accuracy at the end of the time (%) | per seed | best | rounds | dropped |",
        "|---|---|---|---|---|---|",
    ]
    rows = []
    for name, records in methods.items():
        last, best, rounds, dropped = [], [], [], []
        for record in records:
            seconds, accuracy = record.evaluations("virtual_s", "accuracy")
            inside = seconds <= total_s * (1 + 1e-9)
            last.append(100 * accuracy[inside][-1])
            best.append(100 * accuracy[inside].max())
            ends = np.asarray([row["virtual_s"] for row in record.metrics])
            rounds.append(np.sum(ends <= total_s * (1 + 1e-9)) - 1)
            dropped.append(100 * record.summary["dropped"] / record.summary["tasks"])
        spread = f" ± {np.std(last, ddof=1):.1f}" if len(last) > 1 else ""
        seeds = ", ".join(f"{value:.1f}" for value in last)
        rows.append(
            (
                -np.mean(last),
                f"| {name} | {np.mean(last):.1f}{spread} | {seeds} | {np.mean(best):.1f} | "
                f"{np.mean(rounds):.0f} | {np.mean(dropped):.0f} % |",
            )
        )
    return "\n".join([*lines, *(line for _, line in sorted(rows))])


@styled
def deadlines() -> Figure:
    """Planned deadlines under an inverse-time and under a constant step size."""
    figure = Figure(figsize=(6.6, 3.4))
    axes = figure.add_subplot()
    rounds = 50
    steps = {
        "step size 0.5 / (t + 1)": 0.5 / (np.arange(rounds) + 2.0),
        "constant step size 0.1": np.full(rounds, 0.1),
    }
    constants = Constants()
    entries: list[tuple[str, Any]] = []
    for i, (name, eta) in enumerate(steps.items()):
        bound = Bound(8, 20, eta, constants.noise(np.full(20, 4096.0), 20), constants)
        plan = plan_deadlines(bound, Limits(200.0, 0.1))
        look: dict[str, Any] = {**method_style(i), "marker": ""}
        (line,) = axes.plot(np.arange(1, rounds + 1), plan.deadlines_s, lw=2, **look)
        entries.append((f"{name}, m = {plan.scale:.2f}", line))
    axes.axhline(4.0, color="#555555", lw=1, ls=(0, (4, 3)))
    axes.annotate("equal deadlines", (50, 4.0), (-4, 4), textcoords="offset points", ha="right")
    axes.set_xlabel("round")
    axes.set_ylabel("deadline (s)")
    axes.grid(True)
    legend_above(figure, entries)
    return figure


def _problem(law: str) -> Problem:
    """Digits and a network of three layers on 20 devices whose layer times follow `law`."""
    data = load_federated("digits", partition=partitioner("iid", USERS))
    model = mlp(data.input_shape, 10, hidden=(32, 16))
    base = presets.build("adel", USERS, flops_per_sample_layer=1e4, max_power=16.0, stages=3)
    columns: dict[str, Any] = {"flops_per_s": base.flops_per_s, "latency_s": base.latency_s}
    exponential = {"compute_distribution": "exponential", "compute_stages": 3}
    if law.startswith("log-normal"):
        columns["compute_jitter"] = float(law.split()[-1])
    elif law == "exponential":
        columns |= exponential
    elif law.startswith("half at"):
        factor = np.where(np.arange(USERS) % 2 == 0, float(law.split()[-1]), 1.0)
        columns |= {**exponential, "speed_trace": SpeedTrace(np.zeros(1), factor[None])}
    elif law == "walking":
        columns |= {**exponential, "speed_trace": _walk()}
    return Problem(model, data, Fleet(**columns))


def _walk() -> SpeedTrace:
    walk = presets.build("adel", USERS, drift=0.1, drift_every_s=30.0, drift_until_s=1800.0)
    assert walk.speed_trace is not None
    return walk.speed_trace


def bias() -> str:
    """Chance that all miss the input layer, and mean weight of an update in it, many rounds."""
    rows = []
    cases: list[tuple[str, dict[str, Any]]] = [
        *((law, {}) for law in ("exponential", "log-normal 0.25", "log-normal 0.5")),
        *((law, {}) for law in ("log-normal 1.0", "constant")),
        ("exponential", {"rates": "physical"}),
        ("half at 0.5", {"rates": "physical"}),
        ("half at 0.5", {"rates": "physical", "online": {}}),
        ("walking", {"rates": "physical"}),
        ("walking", {"rates": "physical", "online": {}}),
    ]
    for law, options in cases:
        problem = _problem(law)
        mean = problem.fleet.flops_per_s.mean() * 3 / float(problem.cost.step_flops())
        algorithm = algorithms.build(
            "adel",
            problem,
            rounds=ROUNDS,
            total_s=PERIOD_S * ROUNDS,
            learning_rate=0.5,
            # So few layers fit that everyone misses the input layer now and then.
            batch_size=int(mean * PERIOD_S / LAYERS_THAT_FIT),
            batch_scale=(1.0, 1.0),
            schedule="constant",
            constants={"strong_convexity": 0.0},
            max_miss=0.49,
            **options,
        )
        state = algorithm.init(problem.model.init(jax.random.key(0)), jax.random.key(0))
        everyone, assumed = np.arange(USERS), []
        for t in range(ROUNDS):
            rng = np.random.default_rng([0, t])
            situation = Situation(t, PERIOD_S * t, everyone, jax.random.key(0), rng)
            plan, state = algorithm.plan(state, None, situation)  # type: ignore[arg-type]
            assumed.append(1.0 - plan.shared["merge_probability"][0])
        weight = state.tally.weight[:, 0] / state.tally.seen
        rule = "ipw" if options else "corrected"
        rule += ", learning" if "online" in options else ""
        rows.append(
            [
                law,
                rule,
                f"{np.mean(assumed):.3f}",
                f"{state.tally.missed[0] / ROUNDS:.3f}",
                f"{weight.mean():.2f}",
                f"{weight.min():.2f}-{weight.max():.2f}",
            ]
        )
    header = ["layer times", "merge", "p assumed", "p counted", "weight", "over clients"]
    return harness.table(header, rows)


def planned(options: Mapping[str, Any], problem: Problem) -> dict[str, Planned]:
    """The three plans of the section `algorithm` of a configuration, see `adel_plans`."""
    own = {name: value for name, value in options.items() if name not in ("name", *_BUDGET)}
    budget = {name: options[name] for name in _BUDGET}
    return plans(problem, own, **budget)


def main(argv: list[str]) -> None:
    """Prints and draws what was asked for."""
    del argv
    for path in flags.FLAGS.plans:
        config = experiment.plain(experiment.load_config(path))
        found = planned(config["algorithm"], experiment.build_problem(config))
        print(f"{path}\n\n{split(found)}\n")
        if flags.FLAGS.store:
            _, batches, full = found.values()
            gain = 100 * (1 - full.excess / batches.excess)
            store("adel_fl", {f"deadlines, {Path(path).stem}": [gain]})
    for root in flags.FLAGS.runs:
        print(at_equal_time(Path(root), flags.FLAGS.total_s))
    if flags.FLAGS.figures:
        write_atomic(Path(flags.FLAGS.figures) / "adel_deadlines.png", png(deadlines()))
    if flags.FLAGS.bias:
        print(bias())


if __name__ == "__main__":
    flags.DEFINE_list("runs", [], "Directories of comparisons, as fedjax-het compare made.")
    flags.DEFINE_float("total_s", 0.0, "The time that all methods had.")
    flags.DEFINE_string("figures", None, "Directory for deadlines.png.")
    flags.DEFINE_bool("bias", False, "Count how far the merge rules are off.")
    flags.DEFINE_bool("store", False, "Whether to store what --plans finds as claims.")
    flags.DEFINE_list("plans", [], "Configurations whose plans are compared.")
    app.run(main)
