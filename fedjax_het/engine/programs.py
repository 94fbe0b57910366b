"""The program of one group of clients: one route, in chunks, streamed into an accumulator.

::

    for chunk in group:                      # dynamic trip count: padding is never computed
        results = vmap(produce)(chunk)       # chunk of 1: no vmap, one client at a time
        acc = consume(acc, results)          # only sums are kept: memory does not grow

In a synchronous round `produce` trains and `consume` merges. If results wait for their merge, one
program trains and stores, and another fetches and merges (`fedjax_het.engine.results`).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk, ClientResult, Task, Variables
from fedjax_het.contract.checks import check_chunk, check_mask, check_result
from fedjax_het.contract.masks import Route
from fedjax_het.engine.placement import AXIS

# Data of the key of a client's uploads; local training splits the client's key instead.
_UPLOAD = np.uint32(2**32 - 1)


class Rows(NamedTuple):
    """The clients of a group, one row each, padded to length b.

    The valid rows come first on every device.

    Attributes:
      valid: whether a row is a client and not padding, bool[b].
      client, steps, batch, weight: columns of the plan, int32[b]; the weight is float32[b].
      exit: block after which the loss is taken, int32[b].
      width: level of the planned route, int32[b].
      row: rows of `Plan.rows`, a pytree with leading axis b.
      staleness: server steps since the model from which the client starts was made, int32[b].
      place: number of the task among those of its merge, int32[b].
      version: index of the client's start among stacked starts, int32[b]; None if there is one.
      slot: slot of the result, int32[b]; None if results do not wait.
    """

    valid: Any
    client: Any
    steps: Any
    batch: Any
    weight: Any
    exit: Any
    width: Any
    row: Any
    staleness: Any
    place: Any
    version: Any = None
    slot: Any = None


class Round(NamedTuple):
    """The values that all clients of a round share.

    Attributes:
      key: typed PRNG key of the round.
      learning_rate_scale: factor on the local updates, float32.
      shared: value of `Plan.shared`.
    """

    key: Any
    learning_rate_scale: Any
    shared: Any


class Outputs(NamedTuple):
    """The values that are reported of every client, leading axis b.

    Attributes:
      loss: mean training loss, float32.
      square_loss: mean squared loss of the mini-batches of the first epoch, float32.
      samples: number of training samples processed, int32.
      finite: whether the update is finite, bool.
      info: values of `ClientResult.info`.
    """

    loss: Any
    square_loss: Any
    samples: Any
    finite: Any
    info: Any = None


def outputs_of(result: ClientResult, finite: jax.Array) -> Outputs:
    """The values that are reported of stacked results; `finite` is bool[c]."""
    square = jnp.square(result.loss) if result.square_loss is None else result.square_loss
    return Outputs(result.loss, square, result.samples, finite, result.info)


# `(route, start, data, rows, loop_steps, common, kept) -> (ClientResult, mask)` of one client.
Produce = Callable[..., tuple[ClientResult, PyTree]]
# `(acc, start, rows, result, mask, common) -> (acc, Outputs)` of a chunk.
Consume = Callable[..., tuple[PyTree, Outputs]]


class Work(NamedTuple):
    """The functions with which a program processes the clients of a group.

    Attributes:
      produce: function that makes the result of one client.
      consume: function that takes the results of a chunk in.
      recall: function `(acc, data, client) -> kept` for what `produce` reads of a memory.
    """

    produce: Produce
    consume: Consume
    recall: Callable[[PyTree, PyTree, jax.Array], PyTree] = lambda acc, data, client: None


def training(algorithm: Algorithm) -> Work:
    """The work that trains clients and merges their results."""
    work = Work(functools.partial(train_one, algorithm), functools.partial(merge_chunk, algorithm))
    memory, held = algorithm.merge.memory, algorithm.merge.memory_in
    if memory is None:
        return work
    return work._replace(recall=lambda acc, data, client: memory.read(held(acc), client))


def origin(start: Variables, common: Round, rows: Rows) -> tuple[Variables, Round]:
    """The model and the round of each row; not stacked if all rows have the same."""
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
    kept: PyTree = None,
) -> tuple[ClientResult, PyTree]:
    """One client's mask and local training; the fields of `rows` have no client axis here."""
    start, common = origin(start, common, rows)
    mask = client_mask(algorithm, rows, common)
    check_mask(algorithm.name, mask, start.params)
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
        kept=kept,
        width=rows.width,
    )
    result = algorithm.local(route, start, data, task)
    check_result(algorithm.name, route, result, start)
    return result, mask


def _upload_key(key: jax.Array, client: jax.Array) -> jax.Array:
    """The key of a client's uploads, from the key of its round."""
    return jax.random.fold_in(jax.random.fold_in(key, client), _UPLOAD)


def client_mask(algorithm: Algorithm, rows: Rows, common: Round) -> PyTree:
    """One client's mask, or None."""
    return None if algorithm.mask is None else algorithm.mask(rows.row, common.shared)


def clean_chunk(
    start: Variables,
    rows: Rows,
    result: ClientResult,
    mask: PyTree,
    common: Round,
    *,
    checked: bool,
) -> tuple[Chunk, jax.Array]:
    """The chunk for the merge; a client whose update is not finite is left out entirely.

    Args:
      start: model from which the clients start, or several stacked models.
      rows: rows of the chunk.
      result: stacked results of its clients.
      mask: stacked masks of its clients, or None.
      common: values that the clients share, stacked like `start`.
      checked: whether the updates are known to be finite.

    Returns:
      The chunk, and whether each update is finite, bool[c].
    """
    own, common = origin(start, common, rows)
    shared = common.shared
    keys = jax.vmap(_upload_key, in_axes=(None if rows.version is None else 0, 0))
    if rows.version is None:
        clients = rows.client.shape
        own, shared = jax.tree.map(
            lambda a: jnp.broadcast_to(a[None], clients + a.shape), (start, shared)
        )
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
        shared=shared,
        staleness=rows.staleness,
        aux=jax.tree.map(clean, result.aux),
        steps=rows.steps,
        place=rows.place,
        key=keys(common.key, rows.client),
    )
    return chunk, finite


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
    """Adds stacked results to the accumulator of the algorithm's merge; see `clean_chunk`.

    Returns:
      The accumulator, and the chunk's `Outputs` with leading axis c.
    """
    chunk, finite = clean_chunk(start, rows, result, mask, common, checked=checked)
    check_chunk(algorithm.name, chunk)
    return algorithm.merge.add(acc, chunk), outputs_of(result, finite)


def group_loop(
    work: Work, route: Route, chunk: int, *, info: bool = True
) -> Callable[..., tuple[PyTree, Outputs]]:
    """The function `(acc, start, data, rows, common) -> (acc, outputs)` of a group on one device.

    Args:
      work: functions that process its clients.
      route: route of the group, compiled in.
      chunk: number of clients side by side; the number of rows is a multiple of it.
      info: whether the outputs hold `ClientResult.info`.
    """

    # Traced once, though its shapes are asked for before it is looped over.
    @functools.partial(jax.jit, inline=True)
    def produce_chunk(
        acc: PyTree, start: Variables, data: PyTree, part: Rows, common: Round
    ) -> tuple[ClientResult, PyTree]:
        loop_steps = jnp.max(jnp.where(part.valid, part.steps, 0))

        def one(rows: Rows) -> tuple[ClientResult, PyTree]:
            kept = work.recall(acc, data, rows.client)
            return work.produce(route, start, data, rows, loop_steps, common, kept)

        if chunk > 1:
            return jax.vmap(one)(part)
        # Without vmap, convolutions and matrix products keep their unbatched form, which is faster.
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
            result, mask = produce_chunk(acc, start, data, part, common)
            acc, out = work.consume(acc, start, part, result, mask, common)
            out = out if info else out._replace(info=None)
            outputs = jax.tree.map(
                lambda every, new: jax.lax.dynamic_update_slice_in_dim(every, new, i * chunk, 0),
                outputs,
                out,
            )
            return acc, outputs

        def report_of(part: Rows) -> Outputs:
            out = outputs_of(produce_chunk(acc, start, data, part, common)[0], part.valid)
            return out if info else out._replace(info=None)

        report = jax.eval_shape(report_of, part_of(0))
        size = rows.valid.shape[0]
        outputs = jax.tree.map(lambda s: jnp.zeros((size, *s.shape[1:]), s.dtype), report)
        count = (jnp.sum(rows.valid.astype(jnp.int32)) + (chunk - 1)) // chunk
        return jax.lax.fori_loop(0, count, step, (acc, outputs))

    return run


def group_program(
    work: Work, route: Route, chunk: int, mesh: jax.sharding.Mesh | None
) -> Callable[..., tuple[PyTree, Outputs]]:
    """The function `(acc, start, data, rows, common) -> (acc, outputs)` of a group, to be jitted.

    Args:
      work: functions that process its clients.
      route: route of the group, compiled in.
      chunk: number of clients side by side; the number of rows per device is a multiple of it.
      mesh: mesh over whose `clients` axis the rows are sharded; None runs on one device.
    """
    run = group_loop(work, route, chunk)
    if mesh is None:
        return run

    def shard(
        acc: PyTree, start: Variables, data: PyTree, rows: Rows, common: Round
    ) -> tuple[PyTree, Outputs]:
        own, outputs = run(jax.tree.map(jnp.zeros_like, acc), start, data, rows, common)
        acc = jax.tree.map(jnp.add, acc, jax.lax.psum(own, AXIS))
        # Every device gets all outputs, because a process cannot read the devices of another.
        return acc, jax.lax.all_gather(outputs, AXIS, tiled=True)

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    return jax.shard_map(
        shard,
        mesh=mesh,
        in_specs=(whole, whole, whole, split, whole),
        out_specs=whole,
        check_vma=False,
    )
