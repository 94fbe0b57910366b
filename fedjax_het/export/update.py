"""What travels of a model and of an update: the tensors of a route, the coordinates of a mask."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import ClientResult, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.export.message import Message, UnusableError, array_like, leaf_parts, leaves_like
from fedjax_het.models.saving import leaf_paths

_Leaf = tuple[str, Any, Any]


def needed(route: Route, tree: PyTree) -> PyTree:
    """A tree of the parameters' outer structure with None at the leaves that a route never reads.

    A client reads the blocks up to its exit, frozen ones included, and the heads that give losses.
    """
    blocks, last = tree["blocks"], len(tree["blocks"]) - 1
    deepest = last if route.exit is None else route.exit
    return {
        "blocks": tuple(
            block if b <= deepest else jax.tree.map(lambda _: None, block)
            for b, block in enumerate(blocks)
        ),
        "exits": masks.split(tree, route)[0]["exits"],
    }


def model_parts(route: Route, start: Variables) -> dict[str, np.ndarray]:
    """The arrays of a model that a client of a route downloads."""
    held = Variables(*(needed(route, tree) for tree in start))
    return leaf_parts("start", held)


def model_of(route: Route, message: Message, like: Variables) -> Variables:
    """The downloaded model, None at the leaves that the route never reads."""
    held = Variables(*(needed(route, tree) for tree in like))
    return leaves_like("start", message, held)


def result_message(result: ClientResult, mask: PyTree, *, stats: bool) -> Message:
    """The upload of a client: of its update only the coordinates that it trains.

    Args:
      result: result of the local update, NumPy.
      mask: mask of the client, NumPy, or None if everything trains that the route trains.
      stats: whether the running statistics of the trained blocks are sent.
    """
    arrays = {}
    for name, delta, keep in _trained(result.delta, mask):
        sent = delta.reshape(-1) if keep is None else delta[keep]
        if sent.size:
            arrays[f"delta.{name}"] = sent
    for name, value, _ in _trained_stats(result.stats, mask) if stats else ():
        arrays[f"stats.{name}"] = value
    arrays |= leaf_parts("aux", result.aux) | leaf_parts("info", result.info)
    words: dict[str, float | int] = {"loss": float(result.loss), "samples": int(result.samples)}
    if result.square_loss is not None:
        words["square_loss"] = float(result.square_loss)
    return Message(arrays, words)


def result_of(
    message: Message, like: ClientResult, mask: PyTree, start: Variables, *, stats: bool
) -> ClientResult:
    """The result in an upload, NumPy, with zeros at the leaves that its route does not train.

    One program then merges the results of all routes.

    Args:
      message: upload of a client.
      like: shapes of the result.
      mask: mask of the client, NumPy, or None.
      start: tensors with which the client started, whose statistics stand for those not sent.
      stats: whether running statistics are sent.

    Raises:
      UnusableError: if the message has other arrays.
    """
    deltas = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in _named(start.params).items()}
    for name, leaf, keep in _trained(like.delta, mask):
        keep = np.ones(leaf.shape, bool) if keep is None else keep
        if keep.any():
            count = int(keep.sum())
            deltas[name][keep] = array_like(message, f"delta.{name}", (count,), leaf.dtype)
    held = {}
    for name, leaf, _ in _trained_stats(like.stats, mask) if stats else ():
        held[name] = array_like(message, f"stats.{name}", leaf.shape, leaf.dtype)
    try:
        loss: Any = np.float32(message.words["loss"])
        square: Any = None
        if like.square_loss is not None:
            square = np.float32(message.words["square_loss"])
        samples: Any = np.int32(message.words["samples"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableError(f"numbers of the result: {type(error).__name__}: {error}") from None
    return ClientResult(
        delta=_with(start.params, deltas),
        stats=_with(start.stats, {**_named(start.stats), **held}),
        loss=loss,
        samples=samples,
        aux=leaves_like("aux", message, like.aux),
        info=leaves_like("info", message, like.info),
        square_loss=square,
    )


def nothing_of(like: ClientResult, start: Variables) -> ClientResult:
    """The result of a client that did not answer: its loss is no number, so no merge takes it."""
    like = like._replace(delta=start.params)
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    return empty._replace(stats=start.stats, loss=np.float32(np.nan))


def _trained(delta: PyTree, mask: PyTree) -> Iterator[_Leaf]:
    """Name, leaf and mask at its shape of every leaf that a client may send."""
    keeps = {} if mask is None else _named(mask)
    for name, leaf in _named(delta).items():
        keep = keeps.get(name)
        if keep is not None:
            keep = np.asarray(keep)
            keep = keep.reshape((1,) * (len(leaf.shape) - keep.ndim) + keep.shape)
            keep = np.broadcast_to(keep, leaf.shape)
        yield name, leaf, keep


def _trained_stats(stats: PyTree, mask: PyTree) -> Iterator[_Leaf]:
    """The running statistics of the blocks of which a client trains a coordinate."""
    for name, leaf in _named(stats).items():
        part, block, *_ = name.split(".")
        if mask is None or any(np.any(keep) for keep in jax.tree.leaves(mask[part][int(block)])):
            yield name, leaf, None


def _named(tree: PyTree) -> dict[str, Any]:
    return {".".join(path): leaf for path, leaf in leaf_paths(tree).items()}


def _with(like: PyTree, leaves: dict[str, Any]) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in _named(like)])
