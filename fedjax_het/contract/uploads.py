"""Uploads: what happens to the updates on their way from the clients to the merge.

::

    local ──Chunk──> upload 1 ──> upload 2 ──> ... ──> merge.add
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from fedjax_het.common.types import PyTree
from fedjax_het.contract.plan import Timing


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
      renew: function `kept -> kept` at the start of every step; None changes nothing.
      noise: function `(kept, params, key) -> noise` in the structure and shapes of the parameters,
        float32, which is added once to the sum of the updates; None adds nothing. It needs a merge
        that is a `mean` (`Aggregator`).
      price: function `(Timing, k) -> Timing` from the prices of the tasks to those with this
        upload, for a cohort of k clients; None if it costs nothing.
      told: function `(round, k, n) -> numbers` to record with a step, from its number from 0, the
        size of its cohort and the number of clients; None for none.
      contracts: whether it makes no update longer, in the Euclidean norm.
    """

    name: str
    change: Callable[[PyTree, Any], tuple[PyTree, Any]]
    keep: Callable[[Any, int], PyTree] | None = None
    renew: Callable[[PyTree], PyTree] | None = None
    noise: Callable[[PyTree, PyTree, jax.Array], PyTree] | None = None
    price: Callable[[Timing, int], Timing] | None = None
    told: Callable[[int, int, int], Mapping[str, Any]] | None = None
    contracts: bool = True


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
