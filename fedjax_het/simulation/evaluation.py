"""Evaluation of a global model on the whole test set, and the spread over clients."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import in_batches, prepare
from fedjax_het.objectives.classification import correct, sample_losses
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler


class Evaluator:
    """Accuracy and loss of a model on the test set; compiled once.

    Args:
      problem: model and data.

    Attributes:
      compiler: compiler, which counts the seconds spent compiling.
    """

    def __init__(self, problem: Problem):
        self._problem = problem
        self.compiler = Compiler()
        data = problem.data
        self._x, self._y = in_batches(data.test_x, data.test_y)
        self._count = len(data.test_y)
        self._program: Any = None

    def _measure(self, variables: Variables, x: jax.Array, y: jax.Array) -> tuple[Any, Any]:
        def one(batch: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            inputs = prepare(batch[0], self._problem.data.pipeline)
            logits, _ = self._problem.model.apply(variables, inputs)
            return correct(logits, batch[1]), sample_losses(logits, batch[1])

        right, loss = jax.lax.map(one, (x, y))
        return right.reshape(-1), loss.reshape(-1)

    def __call__(self, variables: Variables) -> dict[str, Any]:
        """Evaluates a model.

        Returns:
          A dictionary of `accuracy` and `loss` over the test set, and `client_accuracy_mean` and
          `client_accuracy_worst_decile` over the clients' accuracies. The accuracy of a client is
          that on its own test samples if the data assign them; otherwise it is the test accuracy
          per class, weighted with the client's label shares. Both are None for sequences without
          owners. For sequences there is also `perplexity`, exp(loss) per symbol.
        """
        arguments = (variables, self._x, self._y)
        if self._program is None:
            self._program = self.compiler.compile(self._measure, *arguments)
        right, loss = (a[: self._count] for a in jax.device_get(self._program(*arguments)))
        own = self._client_accuracy(right.astype(np.float64))
        spread: dict[str, float | None] = {
            "client_accuracy_mean": None,
            "client_accuracy_worst_decile": None,
        }
        if own is not None:
            worst = np.sort(own)[: max(1, len(own) // 10)]
            spread = {
                "client_accuracy_mean": float(np.mean(own)),
                "client_accuracy_worst_decile": float(np.mean(worst)),
            }
        mean_loss = float(np.mean(loss, dtype=np.float64))
        accuracy = float(np.mean(right, dtype=np.float64))
        measured = {"accuracy": accuracy, "loss": mean_loss, **spread}
        if self._problem.data.test_y.ndim > 1:
            measured["perplexity"] = float(np.exp(mean_loss))
        return measured

    def mean(self, models: Sequence[Variables]) -> dict[str, Any]:
        """The mean of the results of `__call__` over several models."""
        rows = [self(variables) for variables in models]
        return {
            name: None if value is None else float(np.mean([row[name] for row in rows]))
            for name, value in rows[0].items()
        }

    def _client_accuracy(self, right: np.ndarray) -> np.ndarray | None:
        data = self._problem.data
        if data.test_client is not None:
            total = np.bincount(data.test_client, minlength=data.num_clients)
            hits = np.bincount(data.test_client, weights=right, minlength=data.num_clients)
            return hits[total > 0] / total[total > 0]
        if data.test_y.ndim > 1:
            return None
        total = np.bincount(data.test_y, minlength=data.num_classes)
        hits = np.bincount(data.test_y, weights=right, minlength=data.num_classes)
        per_class = hits / np.maximum(total, 1)
        shares = data.label_counts() * (total > 0)
        return (shares @ per_class) / np.maximum(shares.sum(axis=1), 1)
