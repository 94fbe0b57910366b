"""Step sizes for a comparison: every method of a configuration over a grid, on separate seeds.

    python -m benchmarks.reproduce.search --config=configs/adel_mnist_cnn2.py --out=runs/search \
        --grid='{"learning_rate": [0.1, 0.3], "decay_rounds": [1.0, 25.0]}'

A fair comparison runs each method at its own best step size, which must be chosen on other seeds
than the reported ones. Each cell is written when it is measured, so that an interrupted search can
continue. The table is ordered by method, then by the mean of the target metric, best first.
"""

import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

from benchmarks import harness
from fedjax_het import algorithms, experiment
from fedjax_het.config import methods, named, section
from fedjax_het.report.metric import MetricInfo
from fedjax_het.simulation.simulate import simulate
from fedjax_het.sweeps import sweep

_CONFIG = config_flags.DEFINE_config_file("config", None, "A configuration to compare.")
_OUT = flags.DEFINE_string("out", None, "Directory for the cells.", required=True)
_GRID = flags.DEFINE_string("grid", None, "JSON: option of the method -> values.", required=True)
_SEEDS = flags.DEFINE_list("seeds", ["100", "101"], "Seeds that are not reported elsewhere.")
_METHODS = flags.DEFINE_list("methods", [], "Labels; all if empty.")


def cell(settings: dict[str, Any], label: str, options: dict[str, Any]) -> dict[str, Any]:
    """Final value of the target metric of one method with these options, one a seed.

    Args:
      settings: a plain configuration with a `compare` section.
      label: one of its methods.
      options: what to change in the method.
    """
    method = {**methods(settings)[label], **options}
    name, chosen = named({"algorithm": method}, "algorithm", derived=("problem",))
    problem = experiment.build_problem(settings)
    run = {**section(settings, "run"), "eval_every": 10**9, "eval_every_s": None}
    seeds = [int(seed) for seed in _SEEDS.value]
    results = simulate(algorithms.build(name, problem, **chosen), problem, seeds=seeds, **run)
    return {
        "label": label,
        **options,
        "seeds": seeds,
        "metric": dataclasses.asdict(results[0].record.metric),
        "values": [result.record.final for result in results],
    }


def table(cells: list[dict[str, Any]], names: list[str]) -> str:
    """The cells as text, the best of each method first."""
    metric = MetricInfo(**cells[0]["metric"])
    sign = -1 if metric.higher_is_better else 1

    def mean(one: dict[str, Any]) -> float | None:
        """None if a run diverged."""
        return None if None in one["values"] else float(np.mean(one["values"]))

    def rank(one: dict[str, Any]) -> tuple[str, float]:
        value = mean(one)
        return one["label"], math.inf if value is None else sign * value

    rows = [
        [
            c["label"],
            *(f"{c[name]:g}" for name in names),
            metric.text(mean(c)),
            ", ".join(metric.text(value) for value in c["values"]),
        ]
        for c in sorted(cells, key=rank)
    ]
    return harness.table(["method", *names, metric.label, "per seed"], rows)


def main(argv: list[str]) -> None:
    """Fills in the cells that are missing and prints the table."""
    del argv
    settings = experiment.plain(_CONFIG.value)
    grid = json.loads(_GRID.value)
    cells = {
        "_".join([label, *(f"{value:g}" for value in values)]): functools.partial(
            cell, settings, label, dict(zip(grid, values, strict=True))
        )
        for label in _METHODS.value or methods(settings)
        for values in itertools.product(*grid.values())
    }
    print(table(list(sweep(cells, _OUT.value).values()), list(grid)))


if __name__ == "__main__":
    app.run(main)
