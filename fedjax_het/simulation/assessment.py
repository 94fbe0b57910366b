"""How a run is judged: its evaluations, the target metric, patience, and the best model."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.selection import Selector
from fedjax_het.objectives.metric import Metric
from fedjax_het.problem import Problem
from fedjax_het.simulation.evaluation import Evaluator, metrics_of
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.spread import classes_of


class Assessment:
    """The evaluations of a run, the newest value of its target metric, and the best model.

    Args:
      algorithm: method that is run.
      problem: problem, whose objective has the metrics.
      options: options of the run.

    Attributes:
      metric: metric that targets refer to.
      value: its newest value, or None.
      best_value: best value of the monitored column so far, or None.
      waited: number of evaluations since then.
      best: model of the best evaluation; None without patience.

    Raises:
      InputError: for a metric or a target that the problem does not have.
    """

    def __init__(self, algorithm: Algorithm, problem: Problem, options: RunOptions):
        require_judgeable(algorithm, problem, options)
        self.metric = target_metric(problem, options)
        self._algorithm, self._problem = algorithm, problem
        self._options = options
        self._monitor, self._monitored = _monitor(problem, options, self.metric)
        self._next_s = 0.0
        self.value: float | None = None
        self.best_value: float | None = None
        self.waited = 0
        self.best: Variables | None = None

    def is_due(self, step: int, now_s: float) -> bool:
        """Whether an evaluation follows a step of this number, which ends at this virtual time."""
        if self._options.eval_every_s is None:
            return step % self._options.eval_every == 0
        return now_s >= self._next_s

    def comes_due(self, step: int, now_s: float) -> bool:
        """`is_due`; if it is, the next evaluation is due an interval later."""
        due, every_s = self.is_due(step, now_s), self._options.eval_every_s
        if every_s is not None and due:
            self._next_s = float((np.floor(now_s / every_s) + 1) * every_s)
        return due

    def evaluate(
        self,
        evaluator: Evaluator,
        state: PyTree,
        variables: Variables,
        trained: Callable[[np.ndarray], Iterator[Variables]] | None,
        *,
        last: bool,
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Evaluates the method's model.

        Args:
          evaluator: evaluator of the problem.
          state: state of the algorithm.
          variables: global model.
          trained: function from ids of clients to their models after local training, or None.
          last: whether the run ends here, unless it does not matter.

        Returns:
          The metrics of the evaluation, see `Evaluator.__call__` and `Evaluator.submodels`, and the
          rows of the clients, if they are asked for.
        """
        models = self._judged(state, variables)
        measured = evaluator.mean(models, self.metric.name)
        self._see(measured, variables)
        submodels = self._algorithm.submodels
        if submodels is not None:
            kinds = submodels.models(state, variables), submodels.of_client
            measured |= evaluator.submodels(*kinds, variables, self.metric.name)
        wanted = self._options.client_eval
        if wanted == "always" or (wanted == "last" and (last or self.over is not None)):
            groups = np.asarray(self._problem.fleet.groups).tolist()
            return measured, [
                {**row, "device_group": groups[row["client"]] if row["train_samples"] else None}
                for row in evaluator.clients(models, trained)
            ]
        return measured, []

    def scores(self, evaluator: Evaluator, state: PyTree, variables: Variables) -> np.ndarray:
        """`score` on the test samples of every client, float64[n]; see `Evaluator.scores`."""
        return evaluator.scores(self._judged(state, variables), self.metric.name)

    def _judged(self, state: PyTree, variables: Variables) -> list[Variables]:
        judged = self._algorithm.evaluated
        return [variables] if judged is None else judged(state, variables)

    def _see(self, measured: Mapping[str, Any], variables: Variables) -> None:
        self.value = measured[self.metric.name]
        if self._options.patience is None:
            return
        new, best = measured[self._monitor], self.best_value
        sign = 1 if self._monitored.higher_is_better else -1
        if new is not None and (best is None or sign * new > sign * best):
            self.best_value, self.waited, self.best = new, 0, variables
        else:
            self.waited += 1

    @property
    def targets(self) -> list[float]:
        """The targets of the run, the easiest first."""
        options = self._options
        given = {*options.targets, *([] if options.target is None else [options.target])}
        return sorted(given, reverse=not self.metric.higher_is_better)

    @property
    def score(self) -> float | None:
        """The newest value, negative if lower is better; see `Situation.score`."""
        if self.value is None:
            return None
        return self.value if self.metric.higher_is_better else -self.value

    @property
    def over(self) -> str | None:
        """Why the run may end, `"target"` if it is reached or `"patience"`; None if it may not."""
        options = self._options
        if options.target is not None and reaches(self.metric, self.value, options.target):
            return "target"
        exhausted = options.patience is not None and self.waited >= options.patience
        return "patience" if exhausted else None

    def saved(self) -> dict[str, Any]:
        """The numbers of a checkpoint, as JSON."""
        return {
            "next_s": self._next_s,
            "value": self.value,
            "best_value": self.best_value,
            "waited": self.waited,
            "kept": self.best is not None,
        }

    def restore(self, saved: Mapping[str, Any], best: Variables | None) -> None:
        """Restores the result of `saved`, and the best model."""
        self._next_s = saved["next_s"]
        self.value, self.best_value = saved["value"], saved["best_value"]
        self.waited, self.best = saved["waited"], best


def require_judgeable(algorithm: Algorithm, problem: Problem, options: RunOptions) -> None:
    """Raises `InputError` for a metric, a target or rows that a run cannot have."""
    require(
        not options.personal or algorithm.evaluated is None,
        f"personal = True with {algorithm.name}",
        "evaluates models of the clients anyway, which do not start from a global one",
        "leave it out",
    )
    require(
        not options.personal or (algorithm.widths is None and algorithm.submodels is None),
        f"personal = True with {algorithm.name}",
        "evaluates the complete network, of which its clients hold a part",
        "leave it out; local_<metric> is that of the clients' own networks",
    )
    data = problem.data
    kinds = None if algorithm.submodels is None else algorithm.submodels.of_client
    require(
        kinds is None or len(kinds) == data.num_clients,
        f"of_client of length {len(kinds or ())} in the sub-models of {algorithm.name}",
        f"must name the kind of each of the {data.num_clients} clients",
        "leave it out if clients have no fixed kind",
    )
    require(
        options.client_eval == "never" or data.test_client is not None or classes_of(data),
        f"client_eval = {options.client_eval!r} with test samples of no client",
        "needs their owners, or one class per sample from which the clients' values are estimated",
        "give test_clients to from_arrays, or leave client_eval out",
    )
    metric = target_metric(problem, options)
    _monitor(problem, options, metric)
    scored = isinstance(algorithm.select, Selector) and algorithm.select.scored
    estimated = classes_of(data) and metric.kind == "mean"
    require(
        not scored or data.test_client is not None or estimated,
        f"select of {algorithm.name} with test samples of no client",
        f"needs the {metric.name} of every client, from its own test samples, or estimated from "
        "one class per sample",
        "give test_clients to from_arrays, or select in another way, e.g. by oort",
    )


def reaches(metric: Metric, value: float | None, target: float) -> bool:
    """Whether a value of the metric is as good as the target."""
    if value is None or math.isnan(value):
        return False
    return value >= target if metric.higher_is_better else value <= target


def target_metric(problem: Problem, options: RunOptions) -> Metric:
    """The metric that the run's targets refer to.

    Raises:
      InputError: if the objective does not have it, or a target is not a value of it.
    """
    known = metrics_of(problem)
    name = options.target_metric or next(iter(known))
    require_known(name, known, "target_metric")
    metric = known[name]
    for value in (*options.targets, *([] if options.target is None else [options.target])):
        require(
            not metric.share or 0 < value <= 1,
            f"target {name} {value}",
            "must lie in (0, 1]",
            "write 97 % as 0.97",
        )
    return metric


def _monitor(problem: Problem, options: RunOptions, target: Metric) -> tuple[str, Metric]:
    """The column that patience looks at, and its metric."""
    known, validated = metrics_of(problem), problem.data.val_y is not None
    columns = {name: name for name in known}
    if validated:
        columns |= {f"val_{name}": name for name in known}
    chosen = options.monitor or (f"val_{target.name}" if validated else target.name)
    require_known(chosen, columns, "monitor")
    return chosen, known[columns[chosen]]
