"""The program that trains one group of clients: one route, in chunks, streamed into the merge.

::

    for chunk in group:                      # dynamic trip count: padding is never computed
        results = vmap(local)(chunk)         # chunk of 1: no vmap, one client at a time
        acc = merge.add(acc, results)        # only sums leave the loop: memory stays flat
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk, ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.placement import AXIS


class Rows(NamedTuple):
    """The clients of a group, one row each, padded to length b.

    The valid rows come first on every device.
    """

    valid: Any  # bool[b]
    client: Any  # int32[b]
    steps: Any  # int32[b]
    batch: Any  # int32[b]
    weight: Any  # float32[b]
    exit: Any  # int32[b]
    row: Any  # pytree, leading axis b
    staleness: Any  # int32[b], server steps since the model it starts from was made
    version: Any = None  # int32[b], which of several stacked starts; None where there is one


class Round(NamedTuple):
    """What all clients of a round share."""

    key: Any  # typed PRNG key of the round
    learning_rate_scale: Any  # float32
    shared: Any  # `Plan.shared`


class Outputs(NamedTuple):
    """What is reported per client, leading axis b."""

    loss: Any  # float32
    samples: Any  # int32
    finite: Any  # bool
    aux: Any  # `ClientResult.aux`; None under a pace that leaves tasks waiting: see `Report.aux`


def origin(start: Variables, common: Round, rows: Rows) -> tuple[Variables, Round]:
    """The model and the round that each row belongs to; the same for all where there is one."""
    if rows.version is None:
        return start, common
    return jax.tree.map(lambda a: a[rows.version], (start, common))


def train_one(
    algorithm: Algorithm,
    route: Route,
    start: Variables,
    data: PyTree,
    rows: Rows,
    loop_steps: jax.Array,
    common: Round,
) -> tuple[ClientResult, PyTree]:
    """One client's mask and local training; the fields of `rows` have no client axis here."""
    start, common = origin(start, common, rows)
    mask = None if algorithm.mask is None else algorithm.mask(rows.row, common.shared)
    task = Task(
        client=rows.client,
        key=jax.random.fold_in(common.key, rows.client),
        steps=rows.steps,
        loop_steps=loop_steps,
        batch=rows.batch,
        learning_rate_scale=common.learning_rate_scale,
        exit=rows.exit,
        mask=mask,
        row=rows.row,
        shared=common.shared,
    )
    return algorithm.local(route, start, data, task), mask


def merge_chunk(
    algorithm: Algorithm,
    acc: PyTree,
    start: Variables,
    rows: Rows,
    result: ClientResult,
    mask: PyTree,
    common: Round,
    *,
    checked: bool = False,
) -> tuple[PyTree, Outputs]:
    """Merges stacked results; a client whose update is not finite is left out whole.

    Args:
      algorithm: the method.
      acc: its accumulator.
      start: the model, or several, stacked.
      rows: of the chunk.
      result: of its clients.
      mask: of its clients, or None.
      common: what they share, or stacked as `start`.
      checked: the updates are known to be finite.

    Returns:
      The accumulator, and the chunk's `Outputs` with leading axis c.
    """
    own, common = origin(start, common, rows)
    if rows.version is None:
        clients = rows.client.shape
        shared = common.shared if algorithm.pace.waits else None
        own, shared = jax.tree.map(
            lambda a: jnp.broadcast_to(a[None], clients + a.shape), (start, shared)
        )
        common = common._replace(shared=shared if algorithm.pace.waits else common.shared)
    stats_delta = jax.tree.map(jnp.subtract, result.stats, own.stats)
    finite = jnp.ones_like(rows.valid)
    if not checked:
        leaves = [*jax.tree.leaves(result.delta), *jax.tree.leaves(stats_delta), result.loss]
        finite = jnp.stack(
            [jnp.all(jnp.isfinite(x.reshape(x.shape[0], -1)), axis=1) for x in leaves]
        ).all(axis=0)
    keep = rows.valid & finite

    def clean(x: jax.Array) -> jax.Array:
        flags = jnp.broadcast_to(keep.reshape((-1,) + (1,) * (x.ndim - 1)), x.shape)
        return jnp.where(flags, x, jnp.zeros_like(x))

    chunk = Chunk(
        client=rows.client,
        weight=jnp.where(keep, rows.weight, 0.0),
        delta=jax.tree.map(clean, result.delta),
        stats_delta=jax.tree.map(clean, stats_delta),
        mask=mask,
        start=own,
        row=rows.row,
        shared=common.shared,
        aux=jax.tree.map(clean, result.aux),
        staleness=rows.staleness,
    )
    aux = None if algorithm.pace.waits else result.aux
    out = Outputs(result.loss, result.samples, finite, aux)
    return algorithm.merge.add(acc, chunk), out


def group_loop(
    algorithm: Algorithm,
    route: Route,
    chunk: int,
    *,
    aux: bool = True,
    checked: bool = False,
) -> Callable[..., tuple[PyTree, Outputs]]:
    """The function `(acc, start, data, rows, common) -> (acc, outputs)` of a group on one device.

    Args:
      algorithm: the method.
      route: the group's route, compiled in.
      chunk: clients trained side by side; the rows' length is a multiple of it.
      aux: whether the outputs hold `ClientResult.aux`, if the pace leaves it on the host.
      checked: see `merge_chunk`.
    """

    def train_chunk(
        start: Variables, data: PyTree, part: Rows, common: Round
    ) -> tuple[ClientResult, PyTree]:
        loop_steps = jnp.max(jnp.where(part.valid, part.steps, 0))

        def one(rows: Rows) -> tuple[ClientResult, PyTree]:
            return train_one(algorithm, route, start, data, rows, loop_steps, common)

        if chunk > 1:
            return jax.vmap(one)(part)
        # Without vmap, convolutions and matrix products keep their unbatched, faster form.
        result = one(jax.tree.map(lambda a: a[0], part))
        return jax.tree.map(lambda a: a[None], result)

    def run(
        acc: PyTree, start: Variables, data: PyTree, rows: Rows, common: Round
    ) -> tuple[PyTree, Outputs]:
        def part_of(i: jax.Array | int) -> Rows:
            return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i * chunk, chunk), rows)

        def step(i: jax.Array, carry: tuple[PyTree, Outputs]) -> tuple[PyTree, Outputs]:
            acc, outputs = carry
            part = part_of(i)
            result, mask = train_chunk(start, data, part, common)
            acc, out = merge_chunk(
                algorithm, acc, start, part, result, mask, common, checked=checked
            )
            out = out if aux else out._replace(aux=None)
            outputs = jax.tree.map(
                lambda every, new: jax.lax.dynamic_update_slice_in_dim(every, new, i * chunk, 0),
                outputs,
                out,
            )
            return acc, outputs

        result = jax.eval_shape(lambda part: train_chunk(start, data, part, common)[0], part_of(0))
        finite = jax.ShapeDtypeStruct((chunk,), bool)
        seen = result.aux if aux and not algorithm.pace.waits else None
        report = Outputs(result.loss, result.samples, finite, seen)
        size = rows.valid.shape[0]
        outputs = jax.tree.map(lambda s: jnp.zeros((size, *s.shape[1:]), s.dtype), report)
        count = (jnp.sum(rows.valid.astype(jnp.int32)) + (chunk - 1)) // chunk
        return jax.lax.fori_loop(0, count, step, (acc, outputs))

    return run


def lone_program(
    algorithm: Algorithm, route: Route, mask_shapes: PyTree
) -> Callable[..., tuple[Variables, dict[str, Any], Outputs]]:
    """A merge of a single client as one function, to be jitted; it runs on one device.

    What lies between training and the new model is one pass over the parameters: no accumulator is
    cleared, filled and read back.

    Args:
      algorithm: the method.
      route: the client's, compiled in.
      mask_shapes: for `merge.init`.

    Returns:
      `(state, variables, shared, start, data, rows, common) -> (merged, info, outputs)`.
    """

    def run(
        state: PyTree,
        variables: Variables,
        shared: PyTree,
        start: Variables,
        data: PyTree,
        rows: Rows,
        common: Round,
    ) -> tuple[Variables, dict[str, Any], Outputs]:
        acc = algorithm.merge.init(state, variables, mask_shapes)
        row = jax.tree.map(lambda a: a[0], rows)
        result, mask = train_one(algorithm, route, start, data, row, row.steps, common)
        result, mask = jax.tree.map(lambda a: a[None], (result, mask))
        acc, outputs = merge_chunk(algorithm, acc, start, rows, result, mask, common)
        return *algorithm.merge.finalize(acc, variables, shared), outputs

    return run


def group_program(
    algorithm: Algorithm,
    route: Route,
    chunk: int,
    mesh: jax.sharding.Mesh | None,
    *,
    checked: bool = False,
) -> Callable[..., tuple[PyTree, Outputs]]:
    """The function `(acc, start, data, rows, common) -> (acc, outputs)` of a group, to be jitted.

    Args:
      algorithm: the method.
      route: the group's route, compiled in.
      chunk: clients trained side by side; the rows' length is a multiple of it (per device).
      mesh: shards the rows over its `clients` axis; None runs on one device.
      checked: see `merge_chunk`.
    """
    run = group_loop(algorithm, route, chunk, checked=checked)
    if mesh is None:
        return run

    def shard(
        acc: PyTree, start: Variables, data: PyTree, rows: Rows, common: Round
    ) -> tuple[PyTree, Outputs]:
        own, outputs = run(jax.tree.map(jnp.zeros_like, acc), start, data, rows, common)
        acc = jax.tree.map(jnp.add, acc, jax.lax.psum(own, AXIS))
        # Everybody is given all outputs: another process's devices cannot be read from here.
        return acc, jax.lax.all_gather(outputs, AXIS, tiled=True)

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(whole, whole, whole, split, whole),
        out_specs=whole,
        check_vma=False,
    )
