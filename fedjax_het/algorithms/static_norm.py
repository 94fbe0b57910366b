"""Statistics of batch norms that no client keeps: taken from all training samples at once."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import prepare
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler

# Samples of a batch, whose moments are those of one step, and batches of a call of the program.
_BATCH, _BATCHES = 128, 16
# A statistic far above any moment, from which the weight of the old one is read off.
_FAR = 2.0**20


def has_static_norm(problem: Problem, static_norm: bool | None) -> bool:
    """Whether clients neither use nor send running statistics.

    Args:
      problem: problem of the model.
      static_norm: choice of the user; None for True if the model has statistics that train.

    Raises:
      InputError: if the model has none, or they are frozen.
    """
    model = problem.model
    possible = bool(jax.tree.leaves(model.shapes.stats)) and model.stats_policy == "mean"
    require(
        possible or not static_norm,
        f"static_norm = {static_norm} with model {model.name!r}",
        "has no running statistics that are updated in training",
        "leave it out, or build the model with norm='batch'",
    )
    return possible if static_norm is None else static_norm


class StaticNorm:
    """The statistics of models from one pass over the training samples of all clients.

    A statistic becomes the mean over mini-batches of their moments, weighted by samples, with the
    model in train mode (cumulative mean). It is solved for from the change that a step makes of the
    statistic, for norms that take `(1 - m) old + m moment`; a statistic that a step leaves as it is
    keeps its value. The batches are the same in every call, in an order without regard to clients.

    This reads the samples of all clients on the server's side of the simulation, as the authors of
    HeteroFL do. It happens outside of the virtual clock: it takes no time, energy or traffic.

    Args:
      problem: problem, with the samples.

    References:
      Diao et al., *HeteroFL*, ICLR 2021, "static batch normalization".
    """

    def __init__(self, problem: Problem):
        self._problem = problem
        data = problem.data
        count = len(data.order)
        self._size = min(_BATCH, count)
        order = np.random.default_rng(0).permutation(count)
        span = self._size * min(_BATCHES, -(-count // self._size))
        place = np.arange(-(-count // span) * span)
        self._samples = data.order[order[place % count]].reshape(-1, span // self._size, self._size)
        self._weight = (place < count).astype(np.float32).reshape(self._samples.shape)
        self._programs: dict[BlockModel, Any] = {}
        self._newest: tuple[Variables, PyTree] | None = None

    def __call__(self, model: BlockModel, variables: Variables) -> Variables:
        """The variables with new statistics; compiled once for each model.

        Those of the newest global model are known, and are not computed again.

        Args:
          model: model, of any width.
          variables: its variables.
        """
        if model is not self._problem.model:
            return variables._replace(stats=self._found(model, variables))
        if self._newest is None or not _same(self._newest[0], variables):
            self._newest = variables, self._found(model, variables)
        return variables._replace(stats=self._newest[1])

    def _found(self, model: BlockModel, variables: Variables) -> PyTree:
        # A run may leave its model on several devices; here it is on the default one.
        variables = jax.device_get(variables)
        # Sums of moments, the weight of the old statistics, and the number of samples.
        found = jax.tree.map(np.zeros_like, (variables.stats, variables.stats, np.float32(0)))
        for call, weight in enumerate(self._weight):
            x = jax.tree.map(lambda a, i=self._samples[call]: a[i], self._problem.data.x)
            arguments = variables, found, x, weight, np.int32(call)
            if model not in self._programs:
                self._programs[model] = Compiler().compile(self._program(model), *arguments)
            found = self._programs[model](*arguments)
        total, old, count = found

        def moment(before: Any, total: Any, old: Any) -> Any:
            new = 1.0 - np.asarray(old)
            updated = new > 1e-6
            return jnp.asarray(np.where(updated, total / count / np.where(updated, new, 1), before))

        return jax.tree.map(moment, variables.stats, *jax.device_get((total, old)))

    def _program(self, model: BlockModel) -> Any:
        """The function `(variables, found, x, weight, call) -> found` of some batches."""

        def stepped(variables: Variables, value: float, x: PyTree, weight: Any, key: Any) -> PyTree:
            stats = jax.tree.map(lambda a: jnp.full_like(a, value), variables.stats)
            own = variables._replace(stats=stats)
            return model.apply(own, x, train=True, key=key, weight=weight)[1]

        def run(variables: Variables, found: PyTree, x: PyTree, weight: Any, call: Any) -> PyTree:
            key = jax.random.fold_in(jax.random.key(0), call)

            def one(found: PyTree, batch: tuple[PyTree, Any, Any]) -> tuple[PyTree, None]:
                x, weight, t = batch
                x = prepare(x, self._problem.data.pipeline)
                own = jax.random.fold_in(key, t)
                # Both differ in the statistics only, so that the compiler runs the network once.
                near, far = (stepped(variables, s, x, weight, own) for s in (0.0, _FAR))
                total, old, samples = found
                count = jnp.sum(weight)
                total = jax.tree.map(lambda a, b: a + b * count, total, near)
                now = jax.tree.map(lambda a, b: (a - b) / _FAR, far, near)
                old = jax.tree.map(lambda a, b: jnp.where(count > 0, a, b), now, old)
                return (total, old, samples + count), None

            batches = x, weight, jnp.arange(len(weight), dtype=jnp.int32)
            return jax.lax.scan(one, found, batches)[0]

        return run


def _same(one: PyTree, other: PyTree) -> bool:
    """Whether two pytrees of one structure have the same arrays, as objects."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(a is b for a, b in pairs)
