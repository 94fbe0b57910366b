"""A batch of rounds as one program: the host plans all rounds before the device runs them.

::

    for round in batch:                          # dynamic trip count: padding is never computed
        acc = merge.init(state, model)
        for route in routes:                     # those of all rounds; some groups are empty
            acc = group(acc, model, rows[round, route])
        state, model = update(state, model, merge.finalize(acc, model))

It is for methods whose plans depend on nothing that is learned and that have no `observe`
(`Algorithm.plans_ahead`). The number of rounds is data: batches of one round and of many rounds run
the same compiled loop.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.narrowing import mask_shapes
from fedjax_het.engine.placement import AXIS
from fedjax_het.engine.programs import group_loop
from fedjax_het.engine.rows import Outputs, Round, Rows
from fedjax_het.engine.state import Leaves, StateSplit
from fedjax_het.engine.steps import Now, server_step
from fedjax_het.engine.work import training
from fedjax_het.models.autotune import Tuner, choosing


class RoundBatch(NamedTuple):
    """Rounds planned ahead, stacked along a leading axis R; the first `count` are run.

    Attributes:
      count: number of rounds to run, int32.
      step: numbers of the server steps, int32[R].
      learning_rate_scale: factors on the local updates, float32[R].
      shared: values of `Plan.shared`, stacked.
      rows: rows of every group, fields [R, b].
    """

    count: Any
    step: Any
    learning_rate_scale: Any
    shared: PyTree
    rows: Sequence[Rows]


class RoundOutputs(NamedTuple):
    """The values that are reported of the rounds, leading axis R.

    Attributes:
      clients: `Outputs` of every group, fields [R, b], without `info`.
      info: values that the merges reported.
    """

    clients: tuple[Outputs, ...]
    info: PyTree


def rounds_program(
    algorithm: Algorithm,
    groups: Sequence[tuple[Route, int]],
    split: StateSplit,
    mesh: jax.sharding.Mesh | None,
    tuner: Tuner | None = None,
) -> Callable[..., tuple[Leaves, Variables, RoundOutputs]]:
    """The function `(leaves, variables, data, key, RoundBatch) -> (leaves, variables, outputs)`.

    Args:
      algorithm: method to run.
      groups: route and chunk of every group.
      split: split of the state, which separates the JAX leaves that the rounds change.
      mesh: mesh over whose `clients` axis the rows are sharded; None runs on one device.
      tuner: tuner that chooses the lowerings of convolutions; None leaves them to the table.
    """
    work = training(algorithm)
    trainers = [group_loop(work, route, chunk, info=False) for route, chunk in groups]

    def train(
        acc: PyTree, start: Variables, data: PyTree, rows: Sequence[Rows], common: Round
    ) -> tuple[PyTree, tuple[Outputs, ...]]:
        outputs = []
        for (_, chunk), trainer, group in zip(groups, trainers, rows, strict=True):
            with choosing(tuner, chunk):
                acc, out = trainer(acc, start, data, group, common)
            outputs.append(out)
        return acc, tuple(outputs)

    # Traced once, though its shapes are asked for before it is looped over.
    @functools.partial(jax.jit, inline=True)
    def one_round(
        leaves: Leaves,
        variables: Variables,
        data: PyTree,
        key: jax.Array,
        batch: RoundBatch,
        r: Any,
    ) -> tuple[Leaves, Variables, RoundOutputs]:
        step, scale, shared, rows = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, r, keepdims=False), batch[1:]
        )
        common = Round(jax.random.fold_in(key, step), scale, shared)
        row = jax.tree.map(lambda a: a[0], rows[0].row)
        shapes = mask_shapes(algorithm, row, shared)
        acc = algorithm.merge.init(split.traced(leaves), variables, shapes)
        if mesh is None:
            acc, outputs = train(acc, variables, data, rows, common)
        else:
            zero = jax.tree.map(jnp.zeros_like, acc)
            own, outputs = train(zero, variables, data, rows, common)
            acc = jax.tree.map(jnp.add, acc, jax.lax.psum(own, AXIS))
        now = Now(step, key)
        leaves, variables, info = server_step(algorithm, split, acc, leaves, variables, shared, now)
        return leaves, variables, RoundOutputs(outputs, info)

    def run(
        leaves: Leaves, variables: Variables, data: PyTree, key: jax.Array, batch: RoundBatch
    ) -> tuple[Leaves, Variables, RoundOutputs]:
        def body(r: jax.Array, carry: PyTree) -> PyTree:
            leaves, variables, every = carry
            leaves, variables, outputs = one_round(leaves, variables, data, key, batch, r)
            every = jax.tree.map(
                lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, r, 0), every, outputs
            )
            return leaves, variables, every

        arguments = (leaves, variables, data, key, batch, jnp.int32(0))
        *after, outputs = jax.eval_shape(one_round, *arguments)
        _require_same(algorithm.name, (leaves, variables), tuple(after))
        rounds = batch.step.shape[0]
        every = jax.tree.map(lambda s: jnp.zeros((rounds, *s.shape), s.dtype), outputs)
        carry = (leaves, variables, every)
        leaves, variables, every = jax.lax.fori_loop(0, batch.count, body, carry)
        if mesh is not None:
            # Every device gets all outputs, because a process cannot read the devices of another.
            clients = jax.lax.all_gather(every.clients, AXIS, axis=1, tiled=True)
            every = every._replace(clients=clients)
        return leaves, variables, every

    if mesh is None:
        return run
    whole, shared_out = PartitionSpec(), PartitionSpec(None, AXIS)
    batch: Any = RoundBatch(whole, whole, whole, whole, ())
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(whole, whole, whole, whole, batch._replace(rows=shared_out)),
        out_specs=whole,
        check_vma=False,
    )


def _require_same(name: str, before: PyTree, after: PyTree) -> None:
    """Raises `InputError` unless a step keeps the structure, shapes and dtypes of its arguments."""

    def types(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: f"{jnp.result_type(a).name}{list(jnp.shape(a))}", tree)

    found, wanted = types(after), types(before)
    require(
        found == wanted,
        lambda: f"update of {name}: returns {found}",
        f"must return state and model like those it was given, {wanted}",
        "keep their structure, shapes and dtypes",
    )
