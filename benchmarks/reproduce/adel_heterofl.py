"""ADEL-FL, SALF, drop-stragglers, wait-for-all and HeteroFL in one model of time: MNIST, MLP.

    python -m benchmarks.reproduce.adel_heterofl --setting=wide --arms=HeteroFL --out=runs/adel_het
    python -m benchmarks.reproduce.adel_heterofl --setting=tight --out=runs/adel_het

"wide" is configs/adel_mnist_mlp.py, whose other rows are in docs/results/adel_fl.md. "tight" has
half the time and a step size that falls sooner, and no batch may be smaller than SALF's: so many
devices miss the input layer (p of .3 to .45) that both the correction of the merge and the planning
of deadlines have something to do; "tight_skewed" is the same with label skew. Before it trains, the
program prints the bound for equal deadlines and SALF's batches, for equal deadlines and planned
batches, and for the plan.

HeteroFL runs on the same devices: a client of rate r takes one step on as many samples as the
others of its method, the time of which is the drawn (Erlang) time of the whole network times the
share of its FLOPs; the server waits for everyone. "Authors' code" is the HeteroFL in the code of
ADEL-FL: random clients (drawn with replacement, as many as there are) have half of the units, the
others all of them, and the server takes the mean over all clients of networks with zeros in place
of the units that they lack. There a round lasts as long as SALF's, whatever the devices do; the
accuracy after as many rounds as SALF has is the column "at SALF's rounds".

Every arm has a grid of as many step sizes on seeds of its own (larger ones with zero-filling), and
the best by mean accuracy at the end of the time; for the authors' code, on its own clock. Every
cell is written when it has run; a cell with a file is not repeated.
"""

import functools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import app, flags

from benchmarks.cells import curve, edge, run_cells
from benchmarks.reproduce.adel_heterofl_report import at_time, figure, table
from benchmarks.reproduce.adel_plans import Planned, plans, split
from fedjax_het import algorithms, experiment
from fedjax_het.common.types import PyTree
from fedjax_het.common.writing import write_atomic
from fedjax_het.contract.aggregation import Sums, Term, align, masked_mean
from fedjax_het.contract.algorithm import Algorithm, Merged, Variables
from fedjax_het.problem import Problem
from fedjax_het.report.style import png
from fedjax_het.simulation.simulate import simulate
from fedjax_het.transforms import server

ROUNDS, TUNING_SEEDS = 150, (100, 101, 102)
# Factor on the step sizes of arms with zero-filled merges, which shrink their updates.
ZERO_FILL = 8
CONFIG = str(Path(__file__).parents[2] / "configs" / "adel_mnist_mlp.py")


class Setting(NamedTuple):
    """A setting of the study.

    Attributes:
      total_s: virtual seconds for all rounds.
      batch_size: samples of a device of mean power at scale 1.
      scale: least and largest batch scale of the planner.
      decay_rounds: time constant of the step size.
      batches: batch sizes over which HeteroFL is searched; that of the authors' code has the first.
      alpha: concentration of the label skew; None for IID.
    """

    total_s: float
    batch_size: int
    scale: tuple[float, float]
    decay_rounds: float
    batches: tuple[int, ...]
    alpha: float | None = None


SETTINGS = {
    "wide": Setting(400.0, 275, (0.5, 1.2), 50.0, (275, 69)),
    "tight": Setting(200.0, 137, (1.0, 2.4), 10.0, (137,)),
    "tight_skewed": Setting(200.0, 137, (1.0, 2.4), 10.0, (137,), alpha=0.1),
}
# Label -> method and options; layered methods also get the plan's time and the size of a layer.
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "ADEL-FL": ("adel", {}),
    "ADEL-FL, zero-fill": ("adel", {"aggregator": "zero_fill"}),
    "SALF": ("salf", {}),
    "SALF, zero-fill": ("salf", {"aggregator": "zero_fill"}),
    "SALF, mean": ("salf", {"aggregator": "mean"}),
    "SALF, ipw": ("salf", {"aggregator": "ipw"}),
    "SALF, ADEL-FL's batches": ("salf", {}),
    "ADEL-FL, momentum": ("adel", {}),
    "Drop": ("adel_drop", {}),
    "Drop, zero-fill": ("adel_drop", {"zero_fill": True}),
    "Wait": ("adel_wait", {}),
    "HeteroFL": ("heterofl", {}),
    "HeteroFL, authors' code": ("heterofl", {"rates": (1.0, 0.5), "scaler": False}),
}
# The merge of the ADEL-FL code, and its random half of the devices.
PADDED = "HeteroFL, authors' code"
# SALF with the batches of the planner and equal deadlines.
PLANNED = "SALF, ADEL-FL's batches"
# A momentum that lasts from round to round, on the server: that of the authors lasts at the users.
MOMENTUM = {"ADEL-FL, momentum": 0.9}


@functools.cache
def problem(alpha: float | None = None) -> Problem:
    """MNIST on 20 devices, of the configuration, perhaps with label skew."""
    config = experiment.plain(experiment.load_config(CONFIG))
    if alpha is not None:
        skew = {"name": "dirichlet", "alpha": alpha, "min_size": 20}
        config = {**config, "data": {**config["data"], "partition": skew}}
    return experiment.build_problem(config)


def zero_padded(algorithm: Algorithm) -> Algorithm:
    """The method with the mean over all clients of networks with zeros where they lack units.

    It is the mean over those who hold a coordinate times their share of all clients. It is not a
    merge of updates: a coordinate that few clients hold shrinks in every round.
    """
    inner = masked_mean(terms={"everyone": Term(masked=False)})

    def finalize(acc: Sums, variables: Variables, shared: PyTree) -> Merged:
        merged = inner.finalize(acc, variables, shared)
        params = jax.tree.map(
            lambda value, held: value * align(held, value) / acc.terms["everyone"],
            merged.variables.params,
            acc.terms["weight"],
        )
        return merged._replace(variables=merged.variables._replace(params=params))

    return algorithm._replace(merge=inner._replace(finalize=finalize, mean=False))


def build(label: str, setting: Setting, learning_rate: float, batch_size: int) -> Algorithm:
    """The method of an arm."""
    method, options = ARMS[label]
    where = problem(setting.alpha)
    common = {"learning_rate": learning_rate, "decay_rounds": setting.decay_rounds, **options}
    if method == "heterofl":
        n = where.num_clients
        if label == PADDED:
            slow = np.random.default_rng(0).integers(0, n, n)
            common["levels"] = np.isin(np.arange(n), slow).astype(int).tolist()
        common |= {"batch_size": batch_size, "local_steps": 1, "schedule": "inverse"}
        found = algorithms.build(method, where, **common)
        return zero_padded(found) if label == PADDED else found
    common |= {"batch_size": setting.batch_size, "granularity": "tensor"}
    if method == "adel":
        common["batch_scale"] = setting.scale
    if method != "adel_wait":
        common |= {"rounds": ROUNDS, "total_s": setting.total_s}
    if label == PLANNED:
        common["batch_scale"] = list(planned(setting, learning_rate).values())[1].scale
    found = algorithms.build(method, where, **common)
    if label in MOMENTUM:
        momentum = {"name": "momentum", "momentum": MOMENTUM[label]}
        found = server.optimizer(momentum, learning_rate=1.0)(found)
    return found


def run(
    label: str, name: str, seeds: Sequence[int], learning_rate: float, batch_size: int
) -> dict[str, Any]:
    """The runs of an arm with some seeds, which share their programs."""
    setting, method = SETTINGS[name], ARMS[label][0]
    algorithm = build(label, setting, learning_rate, batch_size)
    began = time.perf_counter()
    results = simulate(
        algorithm,
        problem(setting.alpha),
        rounds=ROUNDS,
        # HeteroFL goes on, to be read after as many rounds as SALF has, too.
        max_virtual_s=None if method == "heterofl" else setting.total_s,
        seeds=seeds,
        eval_every_s=setting.total_s / 20,
        execution="masked",
    )
    return {
        "label": label,
        "setting": name,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "seeds": list(seeds),
        "curves": [curve(result.record) for result in results],
        "dropped": [r.record.summary["dropped"] / r.record.summary["tasks"] for r in results],
        "merging": [_merging(result.record.metrics) for result in results],
        "wall_s": time.perf_counter() - began,
    }


def _merging(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of rounds in which all missed the input layer, and mean weight of its updates."""
    info = rows[-1]["info"] or {}
    names = ("miss_observed", "update_weight")
    return {name: float(info[name][0]) for name in names if name in info}


def best(tuned: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[float, int]]:
    """Step size and batch size of each arm with the highest accuracy at the end of the time."""
    found: dict[str, tuple[float, float, int]] = {}
    for one in tuned.values():
        total_s = np.inf if one["label"] == PADDED else SETTINGS[one["setting"]].total_s
        score = float(np.mean([at_time(each, total_s)[0] for each in one["curves"]]))
        tried = (score, one["learning_rate"], one["batch_size"])
        found[one["label"]] = max(found.get(one["label"], (-1.0, 0.0, 0)), tried)
    return {label: (rate, batch) for label, (_, rate, batch) in found.items()}


@functools.cache
def planned(setting: Setting, learning_rate: float) -> dict[str, Planned]:
    """The three plans of a setting, see `adel_plans`."""
    options = {
        "learning_rate": learning_rate,
        "batch_size": setting.batch_size,
        "decay_rounds": setting.decay_rounds,
        "granularity": "tensor",
    }
    return plans(
        problem(setting.alpha),
        options,
        rounds=ROUNDS,
        total_s=setting.total_s,
        batch_scale=setting.scale,
    )


def study(
    name: str,
    out: str,
    *,
    seeds: Sequence[int],
    rates: Sequence[float],
    labels: Sequence[str] = tuple(ARMS),
) -> list[dict[str, Any]]:
    """Tunes every arm, then runs it with all seeds; one entry an arm.

    Args:
      name: setting.
      out: directory of the cells.
      seeds: seeds of the reported runs.
      rates: step sizes to choose from, `ZERO_FILL` times as large for zero-filled merges.
      labels: arms to run.
    """

    def announce(cell: str, one: dict[str, Any]) -> None:
        last = [100 * at_time(each, SETTINGS[name].total_s)[0] for each in one["curves"]]
        print(f"{cell}: {np.round(last, 1)} %, {one['wall_s']:.0f} s", flush=True)

    tried = {
        f"{name} tuning {label} {rate:g} {batch}": functools.partial(
            run, label, name, TUNING_SEEDS, rate, batch
        )
        for label in labels
        for batch in _batches(label, SETTINGS[name])
        for rate in (ZERO_FILL * rate if "zero-fill" in label else rate for rate in rates)
    }
    chosen = best(run_cells(tried, out, announce))
    for label, (rate, _) in chosen.items():
        factor = ZERO_FILL if "zero-fill" in label else 1.0
        edge(label, rate / factor, rates)
    found = run_cells(
        {
            f"{name} {label} {rate:g} {batch} {len(seeds)} seeds": functools.partial(
                run, label, name, seeds, rate, batch
            )
            for label, (rate, batch) in chosen.items()
        },
        out,
        announce,
    )
    return list(found.values())


def _batches(label: str, setting: Setting) -> tuple[int, ...]:
    """Batch sizes to try; 0 where the method sets them."""
    if ARMS[label][0] != "heterofl":
        return (0,)
    return setting.batches[:1] if label == PADDED else setting.batches


def main(_: Sequence[str]) -> None:
    """Prints the bounds, runs the study and prints its table."""
    chosen = flags.FLAGS
    print(split(planned(SETTINGS[chosen.setting], chosen.bound_rate)), flush=True)
    runs = study(
        chosen.setting,
        chosen.out,
        seeds=[int(seed) for seed in chosen.seeds],
        rates=[float(rate) for rate in chosen.rates],
        labels=[label for label in ARMS if not chosen.arms or label.startswith(chosen.arms)],
    )
    total_s = SETTINGS[chosen.setting].total_s
    print(table(runs, total_s, ROUNDS))
    if chosen.figure:
        write_atomic(Path(chosen.figure), png(figure(runs, total_s)))


if __name__ == "__main__":
    flags.DEFINE_enum("setting", "tight", list(SETTINGS), "Setting.")
    flags.DEFINE_string("out", "runs/adel_heterofl", "Directory of the cells.")
    flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds that are reported.")
    flags.DEFINE_list("rates", ["0.05", "0.1", "0.2", "0.4"], "Step sizes to choose from.")
    flags.DEFINE_float("bound_rate", 0.1, "Step size for which the bounds are computed.")
    flags.DEFINE_string("arms", "", "Beginning of the labels of the arms to run; all if empty.")
    flags.DEFINE_string("figure", None, "Where to draw accuracies against virtual time.")
    app.run(main)
