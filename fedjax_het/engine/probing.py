"""Losses of the current model on the data of clients, for selections that ask for them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import Batch, DeviceData, prepare
from fedjax_het.engine.resources import Resources
from fedjax_het.problem import Problem
from fedjax_het.runtime.chunking import power_of_two

# Most samples of a client in one pass.
_PASS = 256


class LossProbe:
    """Mean losses of a model on the training samples of clients; compiled at the first use.

    Args:
      resources: data, placement and compiler.
      calibrate: function that completes the model, see `Algorithm.calibrate`, or None.
    """

    def __init__(
        self, resources: Resources, calibrate: Callable[[Variables], Variables] | None = None
    ):
        self._resources, self._calibrate = resources, calibrate
        self._programs: dict[int, Callable[..., jax.Array]] = {}

    def __call__(self, variables: Variables, clients: np.ndarray) -> np.ndarray:
        """The loss of each client, float64[k], the mean over its samples without augmentation.

        Args:
          variables: model to evaluate.
          clients: ids, int64[k].
        """
        shared, size = self._resources, power_of_two(len(clients), up=True)
        if self._calibrate is not None:
            variables = self._calibrate(variables)
        padded = np.resize(clients, size).astype(np.int32)
        whole = shared.place.whole((variables, padded, np.int32(len(clients))))
        arguments = (whole[0], shared.data_of(clients, size), *whole[1:])
        if size not in self._programs:
            self._programs[size] = shared.compile(_losses(shared.problem), arguments)
        found = jax.device_get(self._programs[size](*arguments))
        return found[: len(clients)].astype(np.float64)


def _losses(problem: Problem) -> Callable[..., jax.Array]:
    """The function `(variables, data, clients, count) -> losses` of the first `count` clients."""
    objective, width = problem.objective, min(int(np.max(problem.data.sizes)), _PASS)

    def one(variables: Variables, data: DeviceData, client: jax.Array) -> jax.Array:
        count = data.count[client]

        def add(t: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            position = t * width + jnp.arange(width, dtype=jnp.int32)
            row, sample = data.rows(data.start[client] + position % count)
            x = prepare(jax.tree.map(lambda a: a[row], data.x), problem.data.pipeline)
            real = (position < count).astype(jnp.float32)
            batch = Batch(x, data.y[row], real, sample)
            outputs, _ = problem.model.apply(variables, batch.x)
            weight = objective.total(batch)
            return sums[0] + objective.mean(outputs, batch) * weight, sums[1] + weight

        zero = jnp.zeros((), jnp.float32)
        total, weight = jax.lax.fori_loop(0, (count + (width - 1)) // width, add, (zero, zero))
        return total / jnp.where(weight > 0, weight, 1.0)

    def run(variables: Any, data: DeviceData, clients: jax.Array, count: jax.Array) -> jax.Array:
        def put(i: jax.Array, found: jax.Array) -> jax.Array:
            return found.at[i].set(one(variables, data, clients[i]))

        return jax.lax.fori_loop(0, count, put, jnp.zeros(clients.shape, jnp.float32))

    return run
