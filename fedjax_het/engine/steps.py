"""The server's step as a program: after a merge, or together with training of a single client."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.checks import check_merged
from fedjax_het.contract.masks import Route
from fedjax_het.engine.rows import Outputs, Round, Rows
from fedjax_het.engine.state import Leaves, StateSplit
from fedjax_het.engine.work import merge_chunk, train_one

# Data of the server's key in a round, which is no client's id.
_SERVER = np.uint32(2**32 - 1)


class Step(NamedTuple):
    """The server after a step; arrays may not be computed yet.

    Attributes:
      state: state of the algorithm.
      variables: model of the server.
      info: values that the merge reports.
      outputs: values that the merged clients report, in their order; None if there are none.
    """

    state: PyTree
    variables: Variables
    info: Mapping[str, Any]
    outputs: Outputs | None


class Now(NamedTuple):
    """The moment of a server's step.

    Attributes:
      step: number of the step, from 0, int32.
      key: typed PRNG key of all rounds; a round has the key `fold_in(key, step)`.
    """

    step: Any
    key: Any

    @property
    def server_key(self) -> jax.Array:
        """The key of the server in this step."""
        return jax.random.fold_in(jax.random.fold_in(self.key, self.step), _SERVER)


def server_step(
    algorithm: Algorithm,
    split: StateSplit,
    acc: PyTree,
    leaves: Leaves,
    variables: Variables,
    shared: PyTree,
    now: Now,
) -> tuple[Leaves, Variables, Mapping[str, Any]]:
    """Finishes a merge and computes the server's step; traced.

    Args:
      algorithm: method to run.
      split: split of its state.
      acc: accumulator of its merge.
      leaves: JAX leaves of its state.
      variables: model of the server.
      shared: value of `Plan.shared` of the newest plan.
      now: moment of the step.

    Returns:
      The leaves, the model, and the values that the merge reports.
    """
    merged = algorithm.merge.finalize(acc, variables, shared)
    check_merged(algorithm.name, merged, variables)
    merged = merged._replace(round=now.step, key=now.server_key)
    state, variables = algorithm.update(split.traced(leaves), variables, merged)
    return split.stepped(state), variables, merged.info


def close_program(
    algorithm: Algorithm, split: StateSplit
) -> Callable[..., tuple[list[Any], Variables, Mapping[str, Any]]]:
    """A server step after a merge as one function, to be jitted.

    Args:
      algorithm: method to run.
      split: split of its state.

    Returns:
      Function `(acc, leaves, variables, shared, now) -> (changed, variables, info)`; `changed` has
      None for every leaf that the step does not change, which need not be copied.
    """

    def run(
        acc: PyTree, leaves: Leaves, variables: Variables, shared: PyTree, now: Now
    ) -> tuple[list[Any], Variables, Mapping[str, Any]]:
        new, variables, info = server_step(algorithm, split, acc, leaves, variables, shared, now)
        changed = [None if a is b else a for a, b in zip(new, leaves, strict=True)]
        return changed, variables, info

    return run


def lone_program(
    algorithm: Algorithm, route: Route, mask_shapes: PyTree, split: StateSplit
) -> Callable[..., tuple[Leaves, Variables, Mapping[str, Any], Outputs]]:
    """A server step with a single client as one function, to be jitted; it runs on one device.

    XLA can compute the new model from the update in one pass over the parameters, because no
    accumulator is cleared, filled and read in memory.

    Args:
      algorithm: method to run.
      route: route of the client, compiled in.
      mask_shapes: shapes of one client's mask, for `merge.init`.
      split: split of the state.

    Returns:
      Function from `(leaves, variables, shared, start, data, rows, common, now)` to `(leaves,
      variables, info, outputs)`.
    """

    def run(
        leaves: Leaves,
        variables: Variables,
        shared: PyTree,
        start: Variables,
        data: PyTree,
        rows: Rows,
        common: Round,
        now: Now,
    ) -> tuple[Leaves, Variables, Mapping[str, Any], Outputs]:
        acc = algorithm.merge.init(split.traced(leaves), variables, mask_shapes)
        row = jax.tree.map(lambda a: a[0], rows)
        result, mask = train_one(algorithm, route, start, data, row, row.steps, common)
        result, mask = jax.tree.map(lambda a: a[None], (result, mask))
        acc, outputs = merge_chunk(algorithm, acc, route, start, rows, result, mask, common)
        return *server_step(algorithm, split, acc, leaves, variables, shared, now), outputs

    return run
