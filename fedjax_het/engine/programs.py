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

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.engine.placement import AXIS
from fedjax_het.engine.rows import Outputs, Round, Rows, outputs_of
from fedjax_het.engine.work import Work


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
            acc, out = work.consume(acc, route, start, part, result, mask, common)
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
