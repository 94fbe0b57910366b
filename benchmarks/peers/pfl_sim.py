"""pfl-research: `FederatedAveraging` on a `SimulatedBackend`."""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import itertools
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

from benchmarks.peers.torch_net import Net, channels_first
from benchmarks.peers.work import Gate, Work, load


class PflNet(Net):
    """The network with the two methods that pfl asks of a module."""

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy, in training."""
        self.train()
        return torch.nn.functional.cross_entropy(self(x), y)

    @torch.no_grad()
    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
        """Accuracy, in evaluation."""
        self.eval()
        return {"accuracy": Weighted(int((self(x).argmax(1) == y).sum()), y.numel())}


class GatedEvaluation(CentralEvaluationCallback):
    """pfl's central evaluation, at the ends of the blocks."""

    def __init__(self, gate: Gate, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._gate, self._rounds = gate, 0

    def on_train_begin(self, *, model: Any) -> Any:
        """Evaluates once, as pfl does, and waits."""
        metrics = super().on_train_begin(model=model)
        self._gate.ready()
        return metrics

    def after_central_iteration(
        self, aggregate_metrics: Any, model: Any, *, central_iteration: int
    ) -> tuple[bool, Any]:
        """Counts a round."""
        del aggregate_metrics, central_iteration

        def measure() -> float:
            return self._eval(model)[1][self._format_fn("accuracy")].overall_value

        self._rounds += 1
        self._gate.after_round(self._rounds, measure)
        return False, Metrics()


def run(work: Work, gate: Gate) -> list[np.ndarray]:
    """All rounds; returns the weights."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    x, y = channels_first(work.x), torch.from_numpy(work.y.astype(np.int64))
    members = list(itertools.product(range(work.rounds), range(work.cohort.shape[1])))

    def dataset(place: int) -> Dataset:
        rows = work.samples(*members[place])
        return Dataset((x[rows], y[rows]), user_id=str(place))

    places = itertools.count()
    train = FederatedDataset(dataset, lambda: next(places))
    test = Dataset((channels_first(work.test_x), torch.from_numpy(work.test_y.astype(np.int64))))
    net = PflNet(work.network, work.leaves)
    model = PyTorchModel(net, torch.optim.SGD, torch.optim.SGD(net.parameters(), lr=1.0))
    backend = SimulatedBackend(train, train, postprocessors=[WeightByDatapoints()])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=work.rounds,
            evaluation_frequency=work.rounds,
            train_cohort_size=work.cohort.shape[1],
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=work.learning_rate, local_batch_size=work.batch
        ),
        NNEvalHyperParams(local_batch_size=500),
        callbacks=[
            GatedEvaluation(gate, test, model_eval_params=NNEvalHyperParams(local_batch_size=500))
        ],
    )
    return net.leaves()


def main() -> None:
    """`python -m benchmarks.peers.pfl_sim FOLDER NAME`."""
    work = load(sys.argv[1])
    gate = Gate(work, sys.argv[2])
    gate.finish(run(work, gate))


if __name__ == "__main__":
    main()
