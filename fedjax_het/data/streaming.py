"""The samples of a few clients, copied to the device from wherever the set lies.

A set that is larger than the device's memory stays on the host, or in files: NumPy reads from an
array that is memory-mapped (`numpy.load(path, mmap_mode="r")`) what is asked for.
"""

import jax
import numpy as np

from fedjax_het.data.batches import DeviceData
from fedjax_het.data.federated import FederatedData


def part_of(data: FederatedData, clients: np.ndarray, rows: int) -> DeviceData:
    """Copies the samples of some clients to the default device.

    Args:
      data: federated data set.
      clients: distinct client ids, int64[k], k >= 1.
      rows: number of rows of the result, not less than their samples; the rest is not read by
        these clients.

    Returns:
      The samples, in the order of the clients, with the numbers of samples of all clients.
    """
    ids = np.concatenate([data.client_samples(int(client)) for client in clients])
    start = np.zeros(data.num_clients, np.int32)
    start[clients] = np.cumsum(data.sizes[clients]) - data.sizes[clients]

    def read(a: np.ndarray) -> np.ndarray:
        held = np.zeros((rows, *a.shape[1:]), a.dtype)
        # Without a mode, NumPy would fill a second array first.
        np.take(a, ids, axis=0, out=held[: len(ids)], mode="clip")
        return held

    held = jax.tree.map(read, data.x), read(data.y)
    x, y, order, start, count = jax.device_put((*held, np.resize(ids, rows), start, data.count))
    return DeviceData(x, y, order, start, count, streamed=True)
