"""The same clients in PyTorch: a loop over clients with plain SGD, on all cores.

It gets the same batches that the cohort's program draws; `benchmarks.micro.training` prints the
difference of its averaged model from ours. This module needs the extra "peers".
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

# Before PyTorch, which reads its settings when it is loaded.
from benchmarks.peers.torch_loop import train_client  # isort: skip

import torch

from benchmarks.peers.nets import layers
from benchmarks.peers.torch_net import Net, channels_first
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables


def all_cores() -> None:
    """Lets PyTorch use every core."""
    torch.set_num_threads(os.cpu_count() or 1)


def gemm(size: int) -> Callable[[], Any]:
    """A float32 product of two square matrices."""
    a = torch.ones(size, size)
    return lambda: a @ a


def twin(name: str, start: Variables) -> Net:
    """A model of ours in PyTorch, with its weights.

    Args:
      name: of the model; see `nets.layers`.
      start: the weights.
    """
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(start.params["blocks"])]
    return Net(layers(name, leaves[-1].shape[-1]), leaves)


def params_of(net: Net, start: Variables) -> PyTree:
    """The weights of such a network in the structure of our model."""
    return jax.tree.unflatten(jax.tree.structure(start.params), net.leaves())


def torch_loop(
    name: str, start: Variables, x: jax.Array, y: jax.Array, learning_rate: float
) -> Callable[[], PyTree]:
    """Per client: load the model, one SGD step a mini-batch, add to the average.

    Args:
      name: of the model; see `nets.layers`.
      start: the model every client starts from.
      x: float32[clients, steps, batch, ...], as `jax_peers.client_batches` returns them.
      y: int32[clients, steps, batch].
      learning_rate: of plain SGD.

    Returns:
      A function that trains the clients and returns the averaged parameters in our layout.
    """
    all_cores()
    net = twin(name, start)
    clients, _, batch = y.shape
    inputs = [channels_first(np.asarray(part).reshape(-1, *x.shape[3:])) for part in x]
    labels = torch.from_numpy(np.asarray(y).astype(np.int64).reshape(clients, -1))
    initial = {k: v.clone() for k, v in net.state_dict().items()}

    def run() -> PyTree:
        total = {k: torch.zeros_like(v) for k, v in initial.items()}
        for client_x, client_y in zip(inputs, labels, strict=True):
            net.load_state_dict(initial)
            train_client(net, client_x, client_y, batch, learning_rate)
            for k, v in net.state_dict().items():
                total[k] += v / clients
        net.load_state_dict(total)
        return params_of(net, start)

    return run
