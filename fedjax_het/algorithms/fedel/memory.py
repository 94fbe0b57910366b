"""How far back a window may reach on a device of little memory."""

import numpy as np

from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.problem import Problem


def memory_reach(problem: Problem, training: TrainingOptions, visited: np.ndarray) -> np.ndarray:
    """The shallowest block from which each client can hold a window, per exit.

    Earlier blocks of a window then run forward only, which stores nothing. The probe, two passes
    over the whole network, is not counted: it can be taken block by block.

    Args:
      problem: model prices and the devices' memory.
      training: batch size and momentum.
      visited: bool[n, L], blocks at which each client's windows ever end.

    Returns:
      int64[n, L]; of no meaning where no window ends.

    Raises:
      InputError: a device that cannot hold even the last block of one of its windows.
    """
    cost, n, blocks = problem.cost, problem.num_clients, problem.model.num_blocks
    reach = np.zeros((n, blocks), np.int64)
    batch = np.minimum(training.batch_size, problem.data.sizes)
    memory = np.broadcast_to(np.asarray(problem.fleet.memory_bytes, np.float64), (n,))
    # Fleets have few kinds of devices; the table is made once for each.
    kinds, kind = np.unique(np.stack([memory, batch], axis=1), axis=0, return_inverse=True)
    first, exit = np.arange(blocks)[:, None], np.flatnonzero(visited.any(axis=0))[None, :]
    for k, (limit, samples) in enumerate(kinds):
        need = cost.memory_bytes(
            np.minimum(first, exit),
            np.broadcast_to(exit, (blocks, exit.size)),
            np.int64(samples),
            1 if training.momentum else 0,
        )
        # The need falls with `first`, so those that fit are a suffix of the blocks before the exit.
        fits = (need <= limit) & (first <= exit)
        members = np.flatnonzero(kind == k)
        short = np.flatnonzero(visited[members][:, exit[0]].any(axis=0) & ~fits.any(axis=0))[:1]
        require(
            short.size == 0,
            f"clients {members[:5].tolist()} (of {members.size}) with {limit:.4g} bytes of memory",
            f"cannot hold block {exit[0, short]} alone, which needs {need[exit[0, short], short]} "
            "bytes",
            "use smaller batches or larger devices",
        )
        reach[members[:, None], exit] = np.argmax(fits, axis=0)
    return reach
