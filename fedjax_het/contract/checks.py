"""Checks of the contract's types while a program is traced; each message names the method.

Shapes, dtypes and tree structures are known at trace time, so the checks cost nothing when the
program runs.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import chex
import jax
import jax.numpy as jnp

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Algorithm, Chunk, ClientResult, Merged, Variables
from fedjax_het.contract.masks import Route, split


@contextmanager
def _naming(method: str, what: str, remedy: str) -> Iterator[None]:
    """Turns a failed assertion into an `InputError` that names the method."""
    try:
        yield
    except AssertionError as error:
        raise InputError(f"{what} of {method}: {error}; {remedy}") from None


def check_mask(method: str, mask: PyTree, params: PyTree) -> None:
    """Raises `InputError` unless a mask is boolean and broadcasts against the parameters."""
    if mask is None:
        return
    with _naming(method, "mask", "return a pytree of bools with the structure of the parameters"):
        chex.assert_trees_all_equal_structs(mask, params)
        chex.assert_type(jax.tree.leaves(mask), bool)

        def fits(keep: jax.Array, leaf: jax.Array) -> None:
            trailing = leaf.shape[max(leaf.ndim - keep.ndim, 0) :]
            broadcasts = len(trailing) == keep.ndim and all(
                size in (1, full) for size, full in zip(keep.shape, trailing, strict=True)
            )
            assert broadcasts, f"a leaf of {keep.shape} does not broadcast against {leaf.shape}"

        jax.tree.map(fits, mask, params)


def check_memory(algorithm: Algorithm) -> None:
    """Raises `InputError` for a memory of the clients under a pace that leaves tasks waiting."""
    require(
        algorithm.merge.memory is None or not algorithm.pace.may_wait,
        f"pace of {algorithm.name}",
        "leaves tasks waiting, whose clients would train with the memory of another step",
        "use a barrier or a deadline",
    )


def check_result(method: str, route: Route, result: ClientResult, start: Variables) -> None:
    """Raises `InputError` unless a local update has the leaves and shapes that its route trains."""
    with _naming(method, "local update", "return parameters after minus before, None where frozen"):
        trained = split(start.params, route)[0]
        chex.assert_trees_all_equal_shapes_and_dtypes(result.delta, trained)
        chex.assert_trees_all_equal_shapes_and_dtypes(result.stats, start.stats)
        losses = [result.loss, *([] if result.square_loss is None else [result.square_loss])]
        chex.assert_shape([*losses, result.samples], ())
        chex.assert_type(losses, jnp.float32)
        chex.assert_type(result.samples, jnp.int32)


def check_chunk(method: str, chunk: Chunk) -> None:
    """Raises `InputError` unless every array in a chunk has the leading axis of its clients."""
    with _naming(method, "chunk", "give every row, mask and auxiliary output a fixed shape"):
        chex.assert_tree_shape_prefix(chunk, chunk.weight.shape)


def check_merged(method: str, merged: Merged, before: Variables) -> None:
    """Raises `InputError` unless a merge returns a `Merged` with a model like the one before."""
    with _naming(method, "merge", "keep the structure, shapes and dtypes of the model"):
        assert isinstance(merged, Merged), f"finalize returned a {type(merged).__name__}"
        chex.assert_trees_all_equal_shapes_and_dtypes(merged.variables, before)
