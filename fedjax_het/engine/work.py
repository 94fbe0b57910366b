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
from fedjax_het.engine.narrowing import held, network

# Data of the key of a client's uploads; local training splits the client's key instead.
_UPLOAD = np.uint32(2**32 - 1)
# Updates with larger values are left out like infinite ones: their weighted sum over a cohort would
# be infinite in float32.
_LARGEST = 1e30


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
    *,
    narrow: bool = False,
) -> tuple[ClientResult, PyTree]:
    """One client's mask and local training; the fields of `rows` have no client axis here.

    With `narrow`, the result and the mask of a sub-network keep its shapes.
    """
    whole, common = origin(start, common, rows)
    mask = None if algorithm.mask is None else algorithm.mask(rows.row, common.shared)
    check_mask(algorithm.name, mask, whole.params)
    start, own = whole, None
    if algorithm.widths is not None:
        own = network(algorithm.widths, route, rows.width, rows.row, common.shared)
        start, mask = own.tensors(whole), own.mask(mask)
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
    if own is None or narrow:
        return result, mask
    return own.completed(result, whole, start), client_mask(algorithm, rows, common)


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
