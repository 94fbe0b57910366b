"""The work as an FLGo task: its data, batches, losses and accuracies."""

from typing import Any

import numpy as np
import torch
from flgo.benchmark.base import BasicTaskCalculator, BasicTaskPipe

from benchmarks.peers.torch_net import accuracy, channels_first
from benchmarks.peers.work import load


class Visits:
    """A client's training data: the batches of its visits, in turn.

    Args:
      x, y: the samples of all clients.
      visits: rows of `x` for each round in which the client is sampled.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, visits: list[np.ndarray]):
        self._x, self._y, self._visits, self._next = x, y, visits, 0

    def __len__(self) -> int:
        # FLGo wants a size of those who are never sampled, too.
        return len(self._visits[0]) if self._visits else 1

    def batches(self, batch: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Those of the next visit."""
        rows = self._visits[self._next]
        self._next += 1
        return list(zip(self._x[rows].split(batch), self._y[rows].split(batch), strict=True))


class TaskPipe(BasicTaskPipe):
    """Deals the samples to FLGo's objects."""

    def load_data(self, running_time_option: dict[str, Any]) -> dict[str, Any]:
        """Data by name of the object."""
        del running_time_option
        work = load(self.feddata["folder"])
        x, y = channels_first(work.x), torch.from_numpy(work.y.astype(np.int64))
        visits: dict[int, list[np.ndarray]] = {}
        for r, cohort in enumerate(work.cohort):
            for member, client in enumerate(cohort):
                visits.setdefault(int(client), []).append(work.samples(r, member))
        test = (channels_first(work.test_x), torch.from_numpy(work.test_y.astype(np.int64)))
        return {
            "server": {"test": test, "val": None},
            **{
                name: {"train": Visits(x, y, visits.get(client, []))}
                for client, name in enumerate(self.feddata["client_names"])
            },
        }


class TaskCalculator(BasicTaskCalculator):
    """Batches, loss and accuracy of a classifier."""

    def get_dataloader(self, dataset: Visits, batch_size: int = 64, **options: Any) -> Any:
        """The batches of one local training."""
        del options
        return dataset.batches(batch_size)

    def compute_loss(self, model: Any, data: Any) -> dict[str, torch.Tensor]:
        """Mean cross-entropy."""
        x, y = data
        return {"loss": torch.nn.functional.cross_entropy(model(x), y)}

    def test(self, model: Any, data: Any, **options: Any) -> dict[str, float]:
        """Accuracy."""
        del options
        return {"accuracy": accuracy(model, *data)}
