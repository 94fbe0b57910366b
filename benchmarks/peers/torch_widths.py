"""HeteroFL as a plain PyTorch loop: slices of the state, SGD on a smaller module, mean by counts.

A client of a level holds the first units of every layer. In PyTorch's layout, channels first, these
are the first positions along every axis of a tensor, also of a linear layer behind a flattened
image. A coordinate becomes the mean over the clients that hold it (Diao et al., 2021).
"""

import os
import sys

# See `torch_loop`; read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch

from benchmarks.peers.torch_loop import train_client
from benchmarks.peers.torch_net import Net, accuracy, channels_first
from benchmarks.peers.work import Gate, Work, load


def first_units(whole: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """The view of a tensor of the model that a tensor of a sub-network holds."""
    return whole[tuple(slice(0, size) for size in part.shape)]


@torch.no_grad()
def run(work: Work, gate: Gate) -> list[np.ndarray]:
    """All rounds; returns the weights."""
    torch.set_num_threads(os.cpu_count() or 1)
    torch.manual_seed(0)
    server = Net(work.network, work.leaves)
    clients = [
        Net(work.network, [np.zeros(shape, np.float32) for shape in shapes])
        for shapes in work.shapes
    ]
    state = list(server.parameters())
    x, y = channels_first(work.x), torch.from_numpy(work.y.astype(np.int64))
    test_x, test_y = channels_first(work.test_x), torch.from_numpy(work.test_y.astype(np.int64))
    gate.ready()
    for r in range(work.rounds):
        total = [torch.zeros_like(p) for p in state]
        count = [torch.zeros_like(p) for p in state]
        for member in range(work.cohort.shape[1]):
            net = clients[work.level[r, member]]
            for whole, own in zip(state, net.parameters(), strict=True):
                own.copy_(first_units(whole, own))
            rows = work.samples(r, member)
            with torch.enable_grad():
                train_client(net, x[rows], y[rows], work.batch, work.learning_rate)
            for sums, held, own in zip(total, count, net.parameters(), strict=True):
                first_units(sums, own).add_(own)
                first_units(held, own).add_(1)
        for p, sums, held in zip(state, total, count, strict=True):
            p.copy_(torch.where(held > 0, sums / held.clamp(min=1), p))
        gate.after_round(r + 1, lambda: accuracy(server, test_x, test_y))
    return server.leaves()


def main() -> None:
    """`python -m benchmarks.peers.torch_widths FOLDER NAME`."""
    work = load(sys.argv[1])
    gate = Gate(work, sys.argv[2])
    gate.finish(run(work, gate))


if __name__ == "__main__":
    main()
