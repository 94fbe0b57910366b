"""A block of rounds as one program: the host plans ahead, the device comes back at the end.

::

    for round in block:                          # dynamic trip count: padding is never computed
        acc = merge.init(state, model)
        for route in routes:                     # those of all rounds; a round leaves some empty
            acc = group(acc, model, rows[round, route])
        state, model = step(state, model, merge.finalize(acc, model))

It is for methods whose plans look at nothing learned (`Schedule`, `ServerStep`). The number of
rounds is data: a block of one and a block of many run the same compiled loop.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, ServerStep, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.placement import AXIS
from fedjax_het.engine.programs import Outputs, Round, Rows, group_loop
from fedjax_het.models.autotune import Tuner, choosing


class Block(NamedTuple):
    """The rounds of a block, stacked; leading axis R, of which the first `count` are run.

    Attributes:
      count: int32.
      step: int32[R], server steps.
      learning_rate_scale: float32[R].
      shared: `Plan.shared`, stacked.
      rows: of every group, fields [R, b].
    """

    count: Any
    step: Any
    learning_rate_scale: Any
    shared: PyTree
    rows: Sequence[Rows]


class BlockOutputs(NamedTuple):
    """What is reported of the rounds, leading axis R.

    Attributes:
      clients: `Outputs` of every group, fields [R, b], without `aux`.
      info: what `merge.finalize` reported.
    """

    clients: tuple[Outputs, ...]
    info: PyTree


def block_program(
    algorithm: Algorithm,
    groups: Sequence[tuple[Route, int]],
    mesh: jax.sharding.Mesh | None,
    tuner: Tuner | None = None,
) -> Callable[..., tuple[PyTree, Variables, BlockOutputs]]:
    """The function `(state, variables, data, key, Block) -> (state, variables, outputs)`.

    Args:
      algorithm: the method; its `update` is a `ServerStep`.
      groups: route and chunk of every group.
      mesh: shards the rows over its `clients` axis; None runs on one device.
      tuner: chooses the lowerings of convolutions; None leaves them to the table.
    """
    trainers = [group_loop(algorithm, route, chunk, aux=False) for route, chunk in groups]
    update = algorithm.update
    assert isinstance(update, ServerStep)

    def train(
        acc: PyTree, start: Variables, data: PyTree, rows: Sequence[Rows], common: Round
    ) -> tuple[PyTree, tuple[Outputs, ...]]:
        outputs = []
        for (_, chunk), trainer, group in zip(groups, trainers, rows, strict=True):
            with choosing(tuner, chunk):
                acc, out = trainer(acc, start, data, group, common)
            outputs.append(out)
        return acc, tuple(outputs)

    def one_round(
        state: PyTree, variables: Variables, data: PyTree, key: jax.Array, block: Block, r: Any
    ) -> tuple[PyTree, Variables, BlockOutputs]:
        step, scale, shared, rows = jax.tree.map(
            lambda a: jax.lax.dynamic_index_in_dim(a, r, keepdims=False), block[1:]
        )
        common = Round(jax.random.fold_in(key, step), scale, shared)
        acc = algorithm.merge.init(state, variables, _mask_shapes(algorithm, rows[0], shared))
        if mesh is None:
            acc, outputs = train(acc, variables, data, rows, common)
        else:
            zero = jax.tree.map(jnp.zeros_like, acc)
            own, outputs = train(zero, variables, data, rows, common)
            acc = jax.tree.map(jnp.add, acc, jax.lax.psum(own, AXIS))
        merged, info = algorithm.merge.finalize(acc, variables, shared)
        state, variables = update.step(state, variables, merged)
        return state, variables, BlockOutputs(outputs, info)

    def run(
        state: PyTree, variables: Variables, data: PyTree, key: jax.Array, block: Block
    ) -> tuple[PyTree, Variables, BlockOutputs]:
        def body(r: jax.Array, carry: PyTree) -> PyTree:
            state, variables, every = carry
            state, variables, outputs = one_round(state, variables, data, key, block, r)
            every = jax.tree.map(
                lambda a, new: jax.lax.dynamic_update_index_in_dim(a, new, r, 0), every, outputs
            )
            return state, variables, every

        arguments = (state, variables, data, key, block, jnp.int32(0))
        *after, outputs = jax.eval_shape(one_round, *arguments)
        _require_same(algorithm.name, (state, variables), tuple(after))
        rounds = block.step.shape[0]
        every = jax.tree.map(lambda s: jnp.zeros((rounds, *s.shape), s.dtype), outputs)
        state, variables, every = jax.lax.fori_loop(0, block.count, body, (state, variables, every))
        if mesh is not None:
            # Everybody is given all outputs: another process's devices cannot be read from here.
            clients = jax.lax.all_gather(every.clients, AXIS, axis=1, tiled=True)
            every = every._replace(clients=clients)
        return state, variables, every

    if mesh is None:
        return run
    whole, split = PartitionSpec(), PartitionSpec(None, AXIS)
    block: Any = Block(whole, whole, whole, whole, ())
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(whole, whole, whole, whole, block._replace(rows=split)),
        out_specs=whole,
        check_vma=False,
    )


def _mask_shapes(algorithm: Algorithm, rows: Rows, shared: PyTree) -> PyTree:
    """One client's mask as `ShapeDtypeStruct`s, or None."""
    if algorithm.mask is None:
        return None
    return jax.eval_shape(algorithm.mask, jax.tree.map(lambda a: a[0], rows.row), shared)


def _require_same(name: str, before: PyTree, after: PyTree) -> None:
    """Raises `InputError` unless a step leaves state and model in the shapes it found them."""

    def types(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda a: f"{jnp.result_type(a).name}{list(jnp.shape(a))}", tree)

    found, wanted = types(after), types(before)
    require(
        found == wanted,
        lambda: f"ServerStep of {name}: returns {found}",
        f"must return state and model like those it was given, {wanted}",
        "keep their structure, shapes and dtypes",
    )
