"""The model of each client after its local training, for the evaluation of personal models."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.engine.engine import Engine
from fedjax_het.engine.results import no_results
from fedjax_het.engine.rows import Round
from fedjax_het.engine.sampling import Sampler
from fedjax_het.problem import Problem

# Clients whose models are in memory at once, and the purpose in the key of their draws.
_AT_ONCE, _PURPOSE = 8, 5


class LocalTraining:
    """Trains clients from a global model as the method would, without effect on the run.

    Args:
      algorithm: method of the run.
      problem: problem of the run.
      engine: engine of the method.
      seed: seed of the run.
    """

    def __init__(self, algorithm: Algorithm, problem: Problem, engine: Engine, seed: int):
        self._engine = engine
        self._key = jax.random.fold_in(jax.random.key(seed), _PURPOSE)
        self._sampler = Sampler(algorithm, problem, seed, self._key)

    def models(
        self, state: PyTree, variables: Variables, step: int, now_s: float, clients: np.ndarray
    ) -> Iterator[Variables]:
        """The models of clients after one local training, in their order.

        Args:
          state: state of the algorithm.
          variables: global model.
          step: number of server steps so far, for plans and draws.
          now_s: virtual time in seconds.
          clients: ids of the clients, int64[k].
        """
        for begin in range(0, len(clients), _AT_ONCE):
            chosen = clients[begin : begin + _AT_ONCE]
            plan, _ = self._sampler.plan(state, variables, step, chosen, now_s)
            key = jax.random.fold_in(self._key, step)
            scale = jnp.float32(plan.learning_rate_scale)
            common = Round(key, scale, jax.tree.map(jnp.asarray, plan.shared))
            shapes = self._engine.result_shapes(plan, variables, common)
            results, _ = self._engine.run(
                "store",
                no_results(_AT_ONCE, variables, shapes.aux),
                plan,
                variables,
                common,
                slot=np.arange(len(chosen)),
                merge=self._engine.begin(state, variables, plan),
                capacity=_AT_ONCE,
            )
            results = self._engine.resources.place.local(results)
            # A plan may list the clients in another order.
            for slot in np.argsort(plan.clients, kind="stable")[np.argsort(np.argsort(chosen))]:
                yield jax.tree.map(
                    lambda w, d, slot=int(slot): w + d[slot],
                    variables,
                    Variables(results.delta, results.stats_delta),
                )
