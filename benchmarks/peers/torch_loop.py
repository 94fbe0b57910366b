"""A plain PyTorch loop over rounds, clients and steps; `--frozen` skips unused gradients.

In partial training the plain loop computes all gradients and discards those of parameters that the
client does not train, as frameworks with masks do. With `--frozen` it does not compute them.
"""

import os
import sys
from collections.abc import Sequence

# OpenMP's threads otherwise spin while they wait; with any other work on the machine that costs
# PyTorch a factor of ten. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from torch import nn

from benchmarks.peers.torch_net import Net, accuracy, channels_first
from benchmarks.peers.work import Gate, Work, load


def train_client(
    model: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    batch: int,
    learning_rate: float,
    dropped: Sequence[nn.Parameter] = (),
) -> None:
    """One SGD step a mini-batch, in the given order.

    Args:
      model: trained in place.
      x: the client's samples, batch after batch.
      y: int64, their labels.
      batch: samples per step.
      learning_rate: of plain SGD.
      dropped: parameters whose gradients are thrown away.
    """
    wanted = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(wanted, lr=learning_rate)
    criterion = nn.CrossEntropyLoss()
    for batch_x, batch_y in zip(x.split(batch), y.split(batch), strict=True):
        optimizer.zero_grad()
        criterion(model(batch_x), batch_y).backward()
        for parameter in dropped:
            parameter.grad = None
        optimizer.step()


def run(work: Work, gate: Gate, *, frozen: bool) -> list[np.ndarray]:
    """All rounds; returns the weights."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    net = Net(work.network, work.leaves)
    parameters = [p for p in net.parameters() if p.requires_grad]
    blocks = [work.leaf_block[net.leaf_of(p)] for p in parameters]
    x, y = channels_first(work.x), torch.from_numpy(work.y.astype(np.int64))
    test_x, test_y = channels_first(work.test_x), torch.from_numpy(work.test_y.astype(np.int64))
    gate.ready()
    for r in range(work.rounds):
        start = [p.detach().clone() for p in parameters]
        total = [torch.zeros_like(p) for p in parameters]
        weight = [0.0] * len(parameters)
        for member in range(work.cohort.shape[1]):
            trained = [bool(block >= work.first[r, member]) for block in blocks]
            with torch.no_grad():
                for p, value in zip(parameters, start, strict=True):
                    p.copy_(value)
            still = [p for p, flag in zip(parameters, trained, strict=True) if not flag]
            if frozen:
                for p, flag in zip(parameters, trained, strict=True):
                    p.requires_grad_(flag)
            rows = work.samples(r, member)
            train_client(net, x[rows], y[rows], work.batch, work.learning_rate, still)
            with torch.no_grad():
                for i, flag in enumerate(trained):
                    if flag:
                        total[i].add_(parameters[i], alpha=len(rows))
                        weight[i] += len(rows)
        with torch.no_grad():
            for p, value, sums, n in zip(parameters, start, total, weight, strict=True):
                p.copy_(sums / n if n else value)
        gate.after_round(r + 1, lambda: accuracy(net, test_x, test_y))
    return net.leaves()


def main() -> None:
    """`python -m benchmarks.peers.torch_loop FOLDER NAME [--frozen]`."""
    work = load(sys.argv[1])
    gate = Gate(work, sys.argv[2])
    gate.finish(run(work, gate, frozen="--frozen" in sys.argv))


if __name__ == "__main__":
    main()
