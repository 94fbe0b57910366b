"""The work on one client or one chunk: its mask, its training, and the merge of its result."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk, ClientResult, Task, Variables
from fedjax_het.contract.checks import check_chunk, check_mask, check_result
from fedjax_het.contract.masks import Route
from fedjax_het.contract.placing import Placed
from fedjax_het.engine.narrowing import Network, held, network
from fedjax_het.engine.rows import Outputs, Round, Rows, origin, outputs_of

# Data of the key of a client's uploads; local training splits the client's key instead.
_UPLOAD = np.uint32(2**32 - 1)
# Updates with larger values are left out like infinite ones: their weighted sum over a cohort would
# be infinite in float32.
_LARGEST = 1e30


# `(route, start, data, rows, loop_steps, common, kept) -> (ClientResult, mask)` of one client.
Produce = Callable[..., tuple[ClientResult, PyTree]]
# `(acc, route, start, rows, result, mask, common) -> (acc, Outputs)` of a chunk.
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


def training(algorithm: Algorithm, *, narrow: bool = True) -> Work:
    """The work that trains clients and merges their results.

    Args:
      algorithm: method.
      narrow: whether updates of sub-networks are merged at their sizes if the merge can.
    """
    narrow = narrow and algorithm.widths is not None and algorithm.merge.add_narrow is not None
    work = Work(
        functools.partial(train_one, algorithm, narrow=narrow),
        functools.partial(merge_narrow if narrow else merge_chunk, algorithm),
    )
    memory, held = algorithm.merge.memory, algorithm.merge.memory_in
    if memory is None:
        return work
    return work._replace(recall=lambda acc, data, client: memory.read(held(acc), client))


def train_one(
    algorithm: Algorithm,
    route: Route,
    start: Variables,
    data: PyTree,
    rows: Rows,
    loop_steps: jax.Array,
    common: Round,
    kept: PyTree = None,
    *,
    narrow: bool = False,
) -> tuple[ClientResult, PyTree]:
    """One client's mask and local training; the fields of `rows` have no client axis here.

    With `narrow`, the result and the mask of a sub-network keep its shapes.
    """
    whole, common = origin(start, common, rows)
    own, mask = sub_network(algorithm, route, whole.params, rows, common)
    start = whole if own is None else own.tensors(whole)
    result = train_alone(algorithm, route, start, mask, data, rows, loop_steps, common, kept)
    if own is None or narrow:
        return result, mask
    return own.completed(result, whole, start), client_mask(algorithm, rows, common)


def sub_network(
    algorithm: Algorithm, route: Route, params: PyTree, rows: Rows, common: Round
) -> tuple[Network | None, PyTree]:
    """The sub-network by width of one client, or None, and its mask in the shapes of the route.

    Args:
      algorithm: method.
      route: route that is compiled in.
      params: parameters of the model, or their shapes.
      rows: row of the client.
      common: values of its round.
    """
    mask = None if algorithm.mask is None else algorithm.mask(rows.row, common.shared)
    check_mask(algorithm.name, mask, params)
    if algorithm.widths is None:
        return None, mask
    own = network(algorithm.widths, route, rows.width, rows.row, common.shared)
    return own, own.mask(mask)


def train_alone(
    algorithm: Algorithm,
    route: Route,
    start: Variables,
    mask: PyTree,
    data: PyTree,
    rows: Rows,
    loop_steps: jax.Array,
    common: Round,
    kept: PyTree = None,
) -> ClientResult:
    """The local training of one client: the part of its work that a device does.

    Args:
      algorithm: method.
      route: route that is compiled in.
      start: tensors with which the client starts, in the shapes of the route.
      mask: its mask, see `sub_network`.
      data: samples.
      rows: row of the client.
      loop_steps: bound of its loop, see `Task`.
      common: values of its round.
      kept: what it reads of the buffers of the merge.
    """
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
    return result


def _upload_key(key: jax.Array, client: jax.Array) -> jax.Array:
    """The key of a client's uploads, from the key of its round."""
    return jax.random.fold_in(jax.random.fold_in(key, client), _UPLOAD)


def client_mask(algorithm: Algorithm, rows: Rows, common: Round) -> PyTree:
    """The coordinates of the model that one client trains, or None for all."""
    if algorithm.widths is not None:
        return held(algorithm, rows.width, rows.row, common.shared).params
    return None if algorithm.mask is None else algorithm.mask(rows.row, common.shared)


def clean_chunk(
    start: Variables,
    rows: Rows,
    result: ClientResult,
    mask: PyTree,
    common: Round,
    *,
    checked: bool,
    stats: PyTree = None,
    stats_mask: PyTree = None,
) -> tuple[Chunk, jax.Array]:
    """The chunk for the merge; a client whose update is not finite, or huge, is left out entirely.

    Args:
      start: model from which the clients start, or several stacked models.
      rows: rows of the chunk.
      result: stacked results of its clients.
      mask: stacked masks of its clients, or None.
      common: values that the clients share, stacked like `start`.
      checked: whether the updates are known to be finite.
      stats: stacked statistics with which the clients start; None for those of `start`.
      stats_mask: statistics that the clients hold, see `Chunk`.

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
    before = own.stats if stats is None else stats
    stats_delta = jax.tree.map(jnp.subtract, result.stats, before)
    finite = jnp.ones_like(rows.valid)
    if not checked:
        leaves = [*jax.tree.leaves(result.delta), *jax.tree.leaves(stats_delta), result.loss]
        finite = _all([jnp.all(_moderate(x), axis=1) for x in leaves])
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
        stats_mask=stats_mask,
    )
    return chunk, finite


def _moderate(x: jax.Array) -> jax.Array:
    """Whether each value of `[c, ...]` is a number of moderate size, bool[c, n]."""
    largest = min(_LARGEST, float(jnp.finfo(x.dtype).max))
    return jnp.abs(x.reshape(x.shape[0], -1)) <= jnp.asarray(largest, x.dtype)


def _all(flags: Sequence[jax.Array]) -> jax.Array:
    """Conjunction of arrays of flags, of their shape."""
    # A loop, which the compiler keeps as one value. Without it, the code that cleans each tensor
    # would contain the conjunction over all of them, and grow with the square of their number.
    stacked = jnp.stack(flags)
    return jax.lax.fori_loop(1, len(flags), lambda i, every: every & stacked[i], stacked[0])


def merge_chunk(
    algorithm: Algorithm,
    acc: PyTree,
    route: Route,
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
    stats_mask = None
    if algorithm.widths is not None and jax.tree.leaves(result.stats):

        def of(rows: Rows) -> PyTree:
            own = origin(start, common, rows)[1]
            return held(algorithm, rows.width, rows.row, own.shared).stats

        stats_mask = jax.vmap(of)(rows)
    chunk, finite = clean_chunk(
        start, rows, result, mask, common, checked=checked, stats_mask=stats_mask
    )
    check_chunk(algorithm.name, chunk)
    return algorithm.merge.add(acc, chunk), outputs_of(result, finite)


def merge_narrow(
    algorithm: Algorithm,
    acc: PyTree,
    route: Route,
    start: Variables,
    rows: Rows,
    result: ClientResult,
    mask: PyTree,
    common: Round,
) -> tuple[PyTree, Outputs]:
    """`merge_chunk` of results at the sizes of the route's sub-networks."""
    method, add = algorithm.widths, algorithm.merge.add_narrow
    assert method is not None
    assert add is not None

    def of(rows: Rows) -> tuple[Any, PyTree, PyTree]:
        whole, own = origin(start, common, rows)
        net = network(method, route, rows.width, rows.row, own.shared)
        return net.orders, net.tensors(whole).stats, net.live and net.live.stats

    orders, stats, stats_mask = jax.vmap(of)(rows)
    chunk, finite = clean_chunk(
        start, rows, result, mask, common, checked=False, stats=stats, stats_mask=stats_mask
    )
    check_chunk(algorithm.name, chunk)
    acc = add(acc, chunk, Placed(method.layout, method.counts[route.width], orders))
    return acc, outputs_of(result, finite)
