"""The result of a sweep: its trials, the best of each method, and the tuned configuration."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from fedjax_het.common.errors import InputError
from fedjax_het.config import methods
from fedjax_het.report.metric import MetricInfo
from fedjax_het.report.units import quantity
from fedjax_het.sweeps.space import applied


@dataclass(frozen=True)
class Trial:
    """A trial that is over.

    Attributes:
      number: number of the trial among those of its method, from 0.
      options: tuned options by path.
      value: mean virtual time to the target in seconds (infinite if a run did not reach it), or
        mean of the metric at the end if there is no target; None if the trial was stopped, or if
        its metric is not finite.
      stopped: whether it was stopped because it could not become the best.
      runs: what was measured of each seed that ran to its end, e.g. `{"seed": 1000, "virtual_s":
        12.5, "final": 0.93}`.
    """

    number: int
    options: dict[str, Any]
    value: float | None
    stopped: bool
    runs: list[dict[str, Any]]


@dataclass(frozen=True)
class Sweep:
    """The result of a sweep.

    Attributes:
      trials: trials of each method by label, in the order of their numbers.
      target: value of the metric to which the times refer; None if the metric at the end counts.
      metric: target metric of the runs.
      settings: the configuration of the sweep.
    """

    trials: dict[str, list[Trial]]
    target: float | None
    metric: MetricInfo
    settings: dict[str, Any]

    @property
    def best(self) -> dict[str, Trial | None]:
        """The best trial of each method, of equal ones the first; None if there is none."""
        chosen: dict[str, Trial | None] = {}
        for label, trials in self.trials.items():
            ranked = [trial for trial in trials if self._rank(trial) is not None]
            chosen[label] = min(ranked, key=self._rank, default=None)  # type: ignore[arg-type]
        return chosen

    @property
    def tuned(self) -> dict[str, Any]:
        """The configuration with the best options of every method, for a comparison.

        Raises:
          InputError: if no trial of a method can be called the best.
        """
        chosen = {}
        for label, method in methods(self.settings).items():
            trial = self.best[label]
            if trial is None:
                raise InputError(
                    f"sweep of {label}: none of {len(self.trials[label])} trials "
                    f"{self._failure}; lower sweep.target, allow longer runs or change the space"
                )
            chosen[label] = applied(method, trial.options)
        compared = {**self.settings.get("compare", {}), "methods": chosen}
        parts = {name: part for name, part in self.settings.items() if name != "sweep"}
        return {**parts, "compare": compared}

    def table(self) -> str:
        """The trials as text, the best of each method first."""
        names = list(dict.fromkeys(p for ts in self.trials.values() for t in ts for p in t.options))
        goal = self.metric.label
        if self.target is not None:
            goal = f"virtual time to {self.metric.target(self.target)}"
        rows = [["method", "trial", *names, goal]]
        for label, trials in self.trials.items():
            ranked = sorted(trials, key=lambda t: self._rank(t) or (math.inf, t.number))
            for trial in ranked:
                values = [_text(trial.options.get(name, "")) for name in names]
                rows.append([label, str(trial.number), *values, self._outcome(trial)])
        widths = [max(map(len, column)) for column in zip(*rows)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
            for row in rows
        )

    def data(self) -> dict[str, Any]:
        """The content of `sweep.json`: target, metric, and `methods` with best and trials."""
        chosen = self.best
        return {
            "target": self.target,
            "metric": asdict(self.metric),
            "methods": {
                label: {
                    "best": None if chosen[label] is None else chosen[label].number,  # type: ignore[union-attr]
                    "trials": [asdict(trial) for trial in trials],
                }
                for label, trials in self.trials.items()
            },
        }

    @property
    def _failure(self) -> str:
        if self.target is None:
            return f"has a finite {self.metric.label}"
        return f"reaches {self.metric.target(self.target)} with every seed"

    def _rank(self, trial: Trial) -> tuple[float, int] | None:
        return rank(trial.value, trial.number, self.target is None and self.metric.higher_is_better)

    def _outcome(self, trial: Trial) -> str:
        if trial.stopped:
            return "stopped"
        if self.target is None:
            return self.metric.text(trial.value)
        if trial.value is not None and math.isfinite(trial.value):
            return quantity(trial.value, "s")
        finals = [run["final"] for run in trial.runs if run["final"] is not None]
        ended = f", {self.metric.text(finals[-1])} at the end" if finals else ""
        return f"not reached{ended}"


def rank(value: float | None, number: int, higher_is_better: bool) -> tuple[float, int] | None:
    """The key of a trial, smaller for a better one; None for a trial that cannot be the best."""
    if value is None or not math.isfinite(value):
        return None
    return (-value if higher_is_better else value), number


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
