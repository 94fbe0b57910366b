"""A merge that keeps the updates of a step apart, for rules that compare clients."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Chunk, Merged, Variables
from fedjax_het.transforms.compose import Transformation

# Memory that the updates of a step may take.
MEMORY_BYTES = 4e9


class Stack(NamedTuple):
    """Accumulator with a row for each of at most r tasks of a step; a row without a task is zero.

    Attributes:
      delta: updates, float32[r, ...] in the structure of the parameters.
      trains: 1 where the client trains a coordinate, else 0, int8[r, ...] with the shapes of the
        mask's leaves (`[r]` per tensor without a mask).
      stats_delta: changes of the running statistics, float32[r, ...].
      live: 1 where the client trains a block, else 0, int8[r, L].
      present: 1 for the rows of clients, int8[r]; dropped and non-finite ones have none.
    """

    delta: PyTree
    trains: PyTree
    stats_delta: PyTree
    live: jax.Array
    present: jax.Array


class Rule(NamedTuple):
    """A rule that replaces the mean.

    Attributes:
      name: name in errors, e.g. "robust.median".
      middle: function `(values, counts) -> value` of each coordinate: float32[r, ...] and a
        bool[r, ...] that broadcasts against it to float32[...]; any value where none counts.
      choose: function `Stack -> (bool[r], info)` of the clients that count, and numbers to record.
        None counts everyone.
      check: function `tasks -> None` that raises `InputError` if the rule needs more tasks.
    """

    name: str
    middle: Callable[[jax.Array, jax.Array], jax.Array]
    choose: Callable[[Stack], tuple[jax.Array, dict[str, jax.Array]]] | None = None
    check: Callable[[int], None] | None = None


def replacing(rule: Rule, memory_bytes: float, **options: Any) -> Transformation:
    """The transformation that merges by a rule in place of the mean of the updates.

    Args:
      rule: rule.
      memory_bytes: limit of the memory for the updates of a step.
      **options: its resolved options in JSON types, which become part of `Algorithm.options`.

    Raises:
      InputError: from the transformation, for a method whose merge is no mean.
    """
    require(
        memory_bytes > 0,
        f"memory_bytes = {memory_bytes} of {rule.name}",
        "must be positive",
        "leave it out for 4e9",
    )

    def transformation(algorithm: Algorithm) -> Algorithm:
        _require_mean(rule.name, algorithm)
        _require_whole_stats(rule.name, algorithm)
        if rule.check is not None:
            rule.check(algorithm.most_merged)
        said = {**(algorithm.options or {}), "robust": {"name": rule.name, **options}}
        merge = stacked(rule, algorithm.most_merged, memory_bytes)
        return algorithm._replace(merge=merge, options=said)

    return transformation


def _require_mean(name: str, algorithm: Algorithm) -> None:
    """Raises `InputError` with the reason if a rule cannot replace the merge of a method."""
    merge = algorithm.merge
    if algorithm.sends != "updates":
        reason = f"but its clients send {algorithm.sends}"
    elif merge.buffers is not None:
        reason = "but its merge keeps the latest uploads between the steps"
    elif merge.sized is not None:
        reason = "and it merges by a robust rule already"
    else:
        reason = "but its own merge weighs them (by staleness, by local steps, against a bias)"
    require(
        merge.mean,
        f"{name} of {algorithm.name}",
        f"takes the place of the mean of the updates, {reason}",
        "use it once, with a method that merges by the mean (fedavg, fedpmt)",
    )
    for upload in algorithm.uploads:
        require(
            not upload.hides,
            f"{name} of {algorithm.name} with {upload.name}",
            f"compares single updates, of which {upload.name} shows the server only the sum",
            "leave one of them out",
        )
        require(
            upload.noise is None,
            f"{name} of {algorithm.name} with {upload.name}",
            "has no sum of the updates to which its noise could be added",
            "leave one of them out",
        )


def _require_whole_stats(name: str, algorithm: Algorithm) -> None:
    """Raises `InputError` if clients hold different running statistics."""
    widths = algorithm.widths
    require(
        widths is None or not jax.tree.leaves(widths.layout.axes.stats),
        f"{name} of {algorithm.name} with running statistics",
        "compares statistics of all clients, of which a sub-network holds a part",
        "use a model with group norm",
    )


def stacked(rule: Rule, tasks: int, memory_bytes: float) -> Aggregator:
    """The merge `new = old + middle(updates)` of every coordinate, over the clients that train it.

    Weights have no effect: every client that is there counts once. Running statistics are merged by
    the same rule, over the clients that train their block. A coordinate that none of the clients
    trains stays as it is, bit for bit.

    Args:
      rule: rule.
      tasks: largest number r of tasks of a step.
      memory_bytes: limit of the memory, which is r (4 + 1) bytes per parameter and 4 r bytes per
        running statistic; training on several devices takes this twice on each, and merging takes
        once more that of the largest tensor.

    Returns:
      An `Aggregator` whose `finalize` reports `merged_weight`, the number of clients merged per
      block (float32[L]), and the numbers of the rule.
    """

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> Stack:
        del state

        def empty(leaf: Any) -> jax.Array:
            return jnp.zeros((tasks, *leaf.shape), jnp.float32)

        def flags(leaf: Any) -> jax.Array:
            return jnp.zeros((tasks, *(() if mask_shapes is None else leaf.shape)), jnp.int8)

        params, stats = variables
        return Stack(
            delta=jax.tree.map(empty, params),
            trains=jax.tree.map(flags, params if mask_shapes is None else mask_shapes),
            stats_delta=jax.tree.map(empty, stats),
            live=jnp.zeros((tasks, len(params["blocks"])), jnp.int8),
            present=jnp.zeros((tasks,), jnp.int8),
        )

    def add(acc: Stack, chunk: Chunk) -> Stack:
        there = chunk.weight > 0
        row = jnp.where(there, chunk.place, tasks)  # beyond the end for padding, which is dropped

        def put(every: jax.Array, new: jax.Array | None) -> jax.Array:
            if new is None:  # the route does not train this leaf
                return every
            return every.at[row].set(new.astype(every.dtype), mode="drop")

        if chunk.mask is None:
            mask = jax.tree.map(lambda _: there, acc.trains)
            live = jnp.ones((there.shape[0], acc.live.shape[1]), bool)
        else:
            mask, live = chunk.mask, jax.vmap(masks.live_blocks)(chunk.mask)
        return Stack(
            delta=jax.tree.map(put, acc.delta, chunk.delta),
            trains=jax.tree.map(
                lambda every, m, d: put(every, None if d is None else m),
                acc.trains,
                mask,
                chunk.delta,
            ),
            stats_delta=jax.tree.map(put, acc.stats_delta, chunk.stats_delta),
            live=put(acc.live, live),
            present=put(acc.present, there),
        )

    def finalize(acc: Stack, variables: Variables, shared: PyTree) -> Merged:
        del shared
        counts, info = (acc.present > 0, {}) if rule.choose is None else rule.choose(acc)

        def moved(old: jax.Array, values: jax.Array, trains: jax.Array) -> jax.Array:
            counted = (aligned(trains, values) > 0) & aligned(counts, values)
            step = rule.middle(values, counted).astype(old.dtype)
            return jnp.where(jnp.any(counted, axis=0), old + step, old)

        params = jax.tree.map(moved, variables.params, acc.delta, acc.trains)
        stats = {
            part: tuple(
                jax.tree.map(partial(moved, trains=acc.live[:, b]), old, values)
                for b, (old, values) in enumerate(
                    zip(variables.stats[part], acc.stats_delta[part], strict=True)
                )
            )
            for part in variables.stats
        }
        live = acc.live.astype(jnp.float32) * counts[:, None].astype(jnp.float32)
        return Merged(Variables(params, stats), {"merged_weight": jnp.sum(live, axis=0), **info})

    def sized(tasks: int, shapes: Variables) -> Aggregator:
        if rule.check is not None:
            rule.check(tasks)
        _require_memory(rule.name, tasks, shapes, memory_bytes)
        return stacked(rule, tasks, memory_bytes)._replace(sized=None)

    return Aggregator(init, add, finalize, sized=sized)


def aligned(flags: jax.Array, values: jax.Array) -> jax.Array:
    """Flags [r, ...] of a mask's shape with the rank of the values [r, ...], from the right."""
    missing = values.ndim - flags.ndim
    return flags.reshape(flags.shape[:1] + (1,) * missing + flags.shape[1:])


def _require_memory(name: str, tasks: int, shapes: Variables, memory_bytes: float) -> None:
    params, stats = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in shapes)
    needed = tasks * (5 * params + 4 * stats)
    require(
        needed <= memory_bytes,
        f"{name} with {needed:.4g} bytes for the updates of {tasks} tasks of {params} parameters",
        f"must need at most memory_bytes = {memory_bytes:.4g}",
        "select fewer clients per round, raise memory_bytes, or use robust.norm_bound, which keeps "
        "no updates",
    )
