"""Uploads: what happens to the updates on their way from the clients to the merge.

::

    local ──Chunk──> upload 1 ──> upload 2 ──> ... ──> merge.add
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fedjax_het.common.types import PyTree
from fedjax_het.contract.plan import Timing


class Draw(NamedTuple):
    """How the cohorts of a run are drawn.

    Attributes:
      size: number k of clients in a cohort.
      clients: number n of all clients.
      uniform: whether at every step every set of k of the n clients is equally likely.
      learns: whether what clients tell besides their updates (losses, importances ...) has an
        influence on later tasks or on the model.
    """

    size: int
    clients: int
    uniform: bool
    learns: bool


class Upload(NamedTuple):
    """One change of the updates of all clients (an attack, a compression, a limit of the norm).

    Attributes:
      name: name in errors.
      change: function `(kept, Chunk) -> (kept, Chunk)`, traced. It treats every client of the chunk
        by itself, by its `delta`, `mask`, `client` and `key`, which is this upload's own. Clients
        of weight 0 stay zero, and so do coordinates outside the mask.
      keep: function `(variables, n) -> kept` for the first of the values that it keeps between the
        steps: a pytree of JAX arrays, e.g. with a row for each of the n clients. The merge then has
        buffers, see `Aggregator`. None keeps nothing, and `kept` is ().
      renew: function `(kept, key) -> kept` at the start of every step, with a typed key of this
        step; None changes nothing.
      noise: function `(kept, params, key) -> noise` in the structure and shapes of the parameters,
        float32, which is added once to the sum of the updates; None adds nothing. It needs a merge
        that is a `mean` (`Aggregator`).
      price: function `(Timing, k) -> Timing` from the prices of the tasks to those with this
        upload, for a cohort of k clients; None if it costs nothing.
      told: function `(round, Draw) -> numbers` to record with a step, from its number from 0;
        None for none.
      check: function `(Algorithm, Problem) -> None` that raises `InputError` if it cannot serve
        this method on this problem; called before anything is compiled. None for no check.
      contracts: whether it makes no update longer, in the Euclidean norm.
      bounds: whether it limits the norm of every update, so that what follows it must contract.
      fills: whether it gives a value to every coordinate that a client trains, so that what an
        earlier upload left out has to be sent after all.
      hides: whether the server sees no update by itself, but only their sum. Nothing follows it,
        and it needs a merge that is a `mean`.
    """

    name: str
    change: Callable[[PyTree, Any], tuple[PyTree, Any]]
    keep: Callable[[Any, int], PyTree] | None = None
    renew: Callable[[PyTree, jax.Array], PyTree] | None = None
    noise: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None
    price: Callable[[Timing, int], Timing] | None = None
    told: Callable[[int, Draw], Mapping[str, Any]] | None = None
    check: Callable[[Any, Any], None] | None = None
    contracts: bool = True
    bounds: bool = False
    fills: bool = False
    hides: bool = False


def leaf_keys(key: jax.Array, tree: PyTree) -> PyTree:
    """A key for every leaf, which depends on its place only.

    A route leaves None in place of parameters that it does not train, and every route must draw the
    same numbers.

    Args:
      key: typed PRNG key.
      tree: pytree in the structure of the parameters, some of whose leaves may be None.

    Returns:
      Typed PRNG keys in the structure of `tree`, None where it has None.
    """
    leaves, structure = jax.tree.flatten(tree, is_leaf=lambda leaf: leaf is None)
    keys = [None if x is None else jax.random.fold_in(key, i) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, keys)
