"""Habits of DTFL's code, and trials of its server's half, as changes of the methods of a study."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.contract.algorithm import Algorithm, ClientResult, Report, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.local import optimizers
from fedjax_het.models.base import BlockModel
from fedjax_het.transforms.nesting import Nested, nested


def last_client(algorithm: Algorithm) -> Algorithm:
    """The method, evaluated as in DTFL's code: by the last client's model before the merge.

    The model is that of the last task of the newest plan, its client half and its server half; that
    of the start before the first round. The training is that of the method.

    Args:
      algorithm: method whose clients train the whole network. Every client's model comes to the
        host, so the network should be small.
    """

    def init(variables: Variables, key: jax.Array) -> Nested:
        return Nested(algorithm.init(variables, key), jax.tree.map(np.asarray, variables))

    def local(route: Route, start: Variables, data: Any, task: Task) -> ClientResult:
        result = algorithm.local(route, start, data, task)
        params = jax.tree.map(
            lambda step, old: old if step is None else old + step,
            result.delta,
            start.params,
            is_leaf=lambda leaf: leaf is None,
        )
        trained = Variables(params, result.stats)
        return result._replace(info={"inner": result.info, "trained": trained})

    def observe(
        state: Nested, variables: Variables, report: Report
    ) -> tuple[Nested, Variables, dict[str, Any]]:
        seen = report.client_info
        info: dict[str, Any] = {}
        merged = np.flatnonzero(report.merged)
        if merged.size:
            last = jax.tree.map(lambda every: np.array(every[merged[-1]]), seen["trained"])
            state = state._replace(own=last)
        if algorithm.observe is not None:
            report = report._replace(client_info=seen["inner"])
            inner, variables, info = algorithm.observe(state.inner, variables, report)
            state = state._replace(inner=inner)
        return state, variables, info

    def evaluated(state: Nested, variables: Variables) -> list[Variables]:
        del variables
        return [jax.tree.map(jnp.asarray, state.own)]

    return nested(algorithm)._replace(init=init, local=local, observe=observe, evaluated=evaluated)


def eager_server(options: Mapping[str, Any], *, cut: int, factor: float) -> dict[str, Any]:
    """Training options with a larger step for the blocks behind a cut, the server's half.

    Args:
      options: training options with an optimiser by name.
      cut: last block of the client half.
      factor: step size of the server's half over that of the client half.
    """
    kept = dict(options)
    inner = optimizers.make(
        kept.pop("client_optimizer"),
        kept.pop("learning_rate"),
        weight_decay=kept.pop("weight_decay", 0.0),
    )

    def scaled(path: tuple[Any, ...], step: jax.Array) -> jax.Array:
        place: list[Any] = [getattr(key, "key", getattr(key, "idx", None)) for key in path[:2]]
        return factor * step if place[:1] == ["blocks"] and place[1] > cut else step

    def update(grads: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        steps, state = inner.update(grads, state, params)
        return jax.tree_util.tree_map_with_path(scaled, steps), state

    return {**kept, "client_optimizer": optax.GradientTransformation(inner.init, update)}


def alike(model: BlockModel, seed: int) -> Variables:
    """Drawn variables in which the last block is a copy of the deepest auxiliary head.

    Args:
      model: model with exit heads, whose last block is a head of the same shapes.
      seed: seed of the draw.
    """
    variables = jax.jit(model.init)(jax.random.key(seed))
    params = variables.params
    blocks = (*params["blocks"][:-1], params["exits"][-1])
    return variables._replace(params={**params, "blocks": blocks})
