"""Evaluation of a model: the metrics of the objective on held-out samples, and over clients."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.contract.submodels import GLOBAL
from fedjax_het.data.batches import Batch, in_batches, prepare
from fedjax_het.models.base import BlockModel
from fedjax_het.objectives.metric import Metric
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler
from fedjax_het.simulation.spread import Spread


def metrics_of(problem: Problem) -> dict[str, Metric]:
    """The metrics of a problem's objective by name; the last is the loss."""
    objective = problem.objective

    def loss(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
        return objective.losses(outputs, batch), objective.weight(batch)

    found = {metric.name: metric for metric in objective.metrics}
    return {**found, "loss": Metric("loss", loss, higher_is_better=False)}


class Evaluator:
    """Metrics of a model on the test and the validation set; compiled once for each model.

    Args:
      problem: model, data and objective.

    Attributes:
      compiler: compiler, which counts the seconds spent compiling.
      metrics: metrics by name, the loss included.
    """

    def __init__(self, problem: Problem):
        self._problem = problem
        self.compiler = Compiler()
        self.metrics = metrics_of(problem)
        data = problem.data
        # Prefix of the columns, and samples in batches.
        self._sets = {"": in_batches(data.test_x, data.test_y)}
        if data.val_y is not None:
            self._sets["val_"] = in_batches(data.val_x, data.val_y)
        self._programs: dict[tuple[str, BlockModel], Any] = {}
        self._spread = Spread(data)
        self._numbered: tuple[Sequence[str], dict[str, int], np.ndarray] | None = None

    def _measure(self, model: BlockModel, variables: Variables, samples: Batch) -> PyTree:
        """The measurements of all metrics, leaves [m, b, ...]; traced."""

        def one(batch: Batch) -> PyTree:
            batch = batch._replace(x=prepare(batch.x, self._problem.data.pipeline))
            outputs, _ = model.apply(variables, batch.x)
            return {name: metric.measure(outputs, batch) for name, metric in self.metrics.items()}

        return jax.lax.map(one, samples)

    def measured(
        self, variables: Variables, prefix: str = "", model: BlockModel | None = None
    ) -> dict[str, PyTree]:
        """The measurements of every sample by metric, NumPy arrays with a leading axis.

        Args:
          variables: model to evaluate.
          prefix: set of samples, "" for the test set and "val_" for the validation set.
          model: model that `variables` belong to; None for that of the problem.
        """
        samples, model = self._sets[prefix], model or self._problem.model
        if (prefix, model) not in self._programs:
            measure = functools.partial(self._measure, model)
            self._programs[prefix, model] = self.compiler.compile(measure, variables, samples)
        found = jax.device_get(self._programs[prefix, model](variables, samples))
        data = self._problem.data
        count = len(data.val_y if prefix else data.test_y)  # type: ignore[arg-type]
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:count], found)

    def __call__(self, variables: Variables, target: str | None = None) -> dict[str, Any]:
        """Evaluates a model.

        Args:
          variables: model to evaluate.
          target: name of the metric whose spread over clients is computed; None for the first.

        Returns:
          The metrics of the test set by name; `val_<metric>` of the validation set, if there is
          one; and `client_<metric>_mean` and `client_<metric>_worst_decile` of the target metric
          over the clients (see `Spread`), None if they cannot be known.
        """
        target = target or next(iter(self.metrics))
        row: dict[str, Any] = {}
        for prefix in self._sets:
            measured = self.measured(variables, prefix)
            for name, metric in self.metrics.items():
                row[prefix + name] = metric.over(measured[name])
            if not prefix:
                own = self._spread.values(self.metrics[target], measured[target])
                row |= _spread_columns(self.metrics[target], own)
        return row

    def mean(self, models: Sequence[Variables], target: str | None = None) -> dict[str, Any]:
        """The mean of the results of `__call__` over several models."""
        rows = [self(variables, target) for variables in models]
        return {name: _mean([row[name] for row in rows]) for name in rows[0]}

    def submodels(
        self,
        models: Mapping[str, tuple[BlockModel, Variables]],
        of_client: Sequence[str] | None,
        variables: Variables,
        target: str,
    ) -> dict[str, Any]:
        """Evaluates the models of the kinds of clients, see `contract.submodels.SubModels`.

        Args:
          models: models and their variables by name.
          of_client: name of each client's kind, of length n; None for unknown kinds.
          variables: global model, which clients of the kind `GLOBAL` hold.
          target: name of the metric whose mean over clients is computed.

        Returns:
          `<metric>[<name>]` of the test set, `val_<metric>[<name>]` of the validation set, if there
          is one, and, if the kinds are known, `local_<target>`: the mean over the clients of the
          target of their kind on their own test samples (see `Spread`), None if it cannot be known.

        Raises:
          InputError: for a kind of a client without a model.
        """
        kinds, kind_of = self._kinds(of_client or ())
        for kind in kinds:
            require_known(kind, [*models, GLOBAL], "of_client")
        row: dict[str, Any] = {}
        own: dict[str, np.ndarray | None] = {}
        for kind, (model, part) in models.items():
            for prefix in self._sets:
                measured = self.measured(part, prefix, model)
                for name, metric in self.metrics.items():
                    row[f"{prefix}{name}[{kind}]"] = metric.over(measured[name])
                if not prefix and kind in kinds:
                    own[kind] = self._spread.values(self.metrics[target], measured[target])
        if of_client is None:
            return row
        if GLOBAL in kinds:
            own[GLOBAL] = self._spread.values(
                self.metrics[target], self.measured(variables)[target]
            )
        ids = self._spread.ids
        kind_of = kind_of[ids[ids < len(kind_of)]]
        values = np.full(len(kind_of), np.nan)
        for number, kind in enumerate(kinds):
            if (found := own[kind]) is not None:
                rows = np.flatnonzero(kind_of == number)
                values[rows] = found[rows]
        known = values[~np.isnan(values)]
        return {**row, f"local_{target}": float(np.mean(known)) if len(known) else None}

    def _kinds(self, of_client: Sequence[str]) -> tuple[dict[str, int], np.ndarray]:
        """The kinds of the clients by name, numbered, and the number of each client's, int64[n]."""
        # They do not change in a run, and reading a million names takes a while.
        if self._numbered is None or self._numbered[0] is not of_client:
            numbers = {kind: i for i, kind in enumerate(dict.fromkeys(of_client))}
            own = np.fromiter((numbers[kind] for kind in of_client), np.int64, len(of_client))
            self._numbered = of_client, numbers, own
        return self._numbered[1:]

    def scores(self, models: Sequence[Variables], target: str) -> np.ndarray:
        """The metric of every client that trains, negative if lower is better, float64[n].

        Args:
          models: models to evaluate, over which the mean is taken.
          target: name of the metric.

        Returns:
          Scores; NaN for clients whose metric cannot be known, see `Spread`.
        """
        metric = self.metrics[target]
        found = [self._spread.values(metric, self.measured(each)[target]) for each in models]
        scores = np.full(self._problem.num_clients, np.nan)
        values = _over_models(found)
        if values is not None:
            train = self._spread.ids < len(scores)
            sign = 1.0 if metric.higher_is_better else -1.0
            scores[self._spread.ids[train]] = sign * values[train]
        return scores

    def clients(
        self,
        models: Sequence[Variables],
        trained: Callable[[np.ndarray], Iterator[Variables]] | None = None,
    ) -> list[dict[str, Any]]:
        """One row of metrics per client that can be evaluated, the mean over several models.

        Args:
          models: models to evaluate.
          trained: function from ids of clients that train to their own models, in this order, whose
            metrics are added as `personal_<metric>`; None adds none.

        Returns:
          Rows of `clients_eval.jsonl` without step and time: `client`, `samples` (of the test set),
          `train_samples`, `own` (whether the samples are the client's own, see `Spread`), and the
          metrics that are numbers.
        """
        several = [self.measured(variables) for variables in models]
        columns: dict[str, list[Any]] = {}
        for name, metric in self.metrics.items():
            values = _over_models(
                [self._spread.values(metric, measured[name]) for measured in several]
            )
            if values is not None:
                columns[name] = [None if np.isnan(v) else v for v in values.tolist()]
        if not columns:
            return []
        every = {**self._spread.columns(), **columns}
        rows = [dict(zip(every, values, strict=True)) for values in zip(*every.values())]
        if trained is not None:
            training = [row for row in rows if row["train_samples"]]
            ids = np.asarray([row["client"] for row in training])
            for row, variables in zip(training, trained(ids), strict=True):
                row |= self._personal(variables, row["client"], list(columns))
        return rows

    def _personal(self, variables: Variables, client: int, names: list[str]) -> dict[str, Any]:
        """The metrics of a client's own model."""
        places = self._spread.samples(client)
        if places is None:
            measured = self.measured(variables)
            found = {n: self._spread.values(self.metrics[n], measured[n], client) for n in names}
            return {
                f"personal_{name}": None if np.isnan(value[0]) else float(value[0])
                for name, value in found.items()
                if value is not None
            }
        # Padded to one size, so that all clients share a program.
        most = self._spread.most
        padded = np.resize(places, most)
        key = ("own", self._problem.model)
        if key not in self._programs:
            arguments = (variables, self._sets[""], padded)
            self._programs[key] = self.compiler.compile(self._measure_some, *arguments)
        found = jax.device_get(self._programs[key](variables, self._sets[""], padded))
        own = jax.tree.map(lambda a: a[: len(places)], found)
        return {f"personal_{name}": self.metrics[name].over(own[name]) for name in names}

    def _measure_some(self, variables: Variables, samples: Batch, places: jax.Array) -> PyTree:
        """The measurements of the samples at these places, [m]; traced."""
        size = min(samples.weight.shape[1], len(places))
        count = -(-len(places) // size) * size
        chosen = jnp.resize(places, (count // size, size))

        def gathered(a: jax.Array) -> jax.Array:
            return a.reshape(-1, *a.shape[2:])[chosen]

        found = self._measure(self._problem.model, variables, jax.tree.map(gathered, samples))
        return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[: len(places)], found)


def _mean(values: list[Any]) -> Any:
    """The mean of numbers or of lists; None if one is not known."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], list):
        return [_mean([value[i] for value in values]) for i in range(len(values[0]))]
    return float(np.mean(values))


def _over_models(found: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Mean of the clients' values over several models, float64[k]; None if one is not known."""
    known = [values for values in found if values is not None]
    if len(known) < len(found):
        return None
    return known[0] if len(known) == 1 else np.mean(np.stack(known, axis=1), axis=1)


def _spread_columns(metric: Metric, own: np.ndarray | None) -> Mapping[str, float | None]:
    """Mean over the clients and over the worst tenth of them."""
    known = np.zeros(0) if own is None else np.sort(own[~np.isnan(own)])
    if metric.higher_is_better:
        worst = known[: max(1, len(known) // 10)]
    else:
        worst = known[::-1][: max(1, len(known) // 10)]
    column = functools.partial("client_{}_{}".format, metric.name)
    return {
        column("mean"): float(np.mean(known)) if len(known) else None,
        column("worst_decile"): float(np.mean(worst)) if len(known) else None,
    }
