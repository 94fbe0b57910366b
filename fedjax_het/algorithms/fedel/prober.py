"""Runs the probe of a whole cohort on the device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms.fedel import importance
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.problem import Problem
from fedjax_het.runtime.chunking import choose_chunk


class Prober:
    """Probes a cohort on the device; compiled at first use, once per size of the cohort.

    Args:
      problem: model and data.
      options: batch size and optimiser of the clients.
      index: `TensorTimes.index`.
      path: see `importance.local_probe`.
      step: share of the client's own step that the probe takes.
    """

    def __init__(
        self,
        problem: Problem,
        options: TrainingOptions,
        index: tuple[PyTree, ...],
        path: importance.Probe,
        step: float,
    ):
        self._problem = problem
        room = min(options.batch_size, int(np.max(problem.data.sizes)))
        one = importance.local_probe(
            problem.model,
            problem.data.pipeline,
            optax.chain(options.optimizer(), optax.scale(step)),
            index,
            max_batch=room,
            path=path,
        )
        cost = problem.cost
        step_flops = float(cost.step_flops()) * room
        param_bytes = int(np.sum(cost.param_bytes + cost.exit_param_bytes))
        chunk = choose_chunk(jax.default_backend(), step_flops, param_bytes)

        def every(variables: Variables, data: Any, rows: Any, key: jax.Array) -> jax.Array:
            def of(row: Any) -> jax.Array:
                client, batch, exit = row
                own = jax.random.fold_in(key, client)
                return one(variables, data, client, batch, exit, own)

            # Without vmap, convolutions and matrix products keep their unbatched, faster form.
            return jax.lax.map(of, rows, batch_size=chunk if chunk > 1 else None)

        self._run = jax.jit(every)
        self._data: Any = None

    def __call__(
        self,
        variables: Variables,
        clients: np.ndarray,
        batch: np.ndarray,
        exit: np.ndarray,
        key: jax.Array,
    ) -> jax.Array:
        """Normalised local importance, float32[k, K]."""
        if self._data is None:
            self._data = self._problem.data.device()
        rows = tuple(jnp.asarray(a.astype(np.int32)) for a in (clients, batch, exit))
        return self._run(variables, self._data, rows, key)
