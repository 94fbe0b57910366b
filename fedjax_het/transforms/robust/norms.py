"""A limit of the norm of every update, before the method's own merge."""

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Chunk
from fedjax_het.contract.uploads import Upload
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.sending import uploading


@checked
def norm_bound(*, limit: float) -> Transformation:
    r"""Updates no longer than a limit: $\Delta_i / \max(1, \lVert \Delta_i \rVert / M)$.

    The norm is over all parameters that the client trains. The merge of the method stays as it is
    and keeps no updates. Running statistics are not changed.

    Args:
      limit: largest Euclidean norm M of an update.

    References:
      Sun et al., *Can You Really Backdoor Federated Learning?*, 2019, section 4.
    """
    require(
        limit > 0,
        f"limit = {limit} of robust.norm_bound",
        "must be positive",
        "use the median norm of honest updates",
    )

    def change(kept: PyTree, chunk: Chunk) -> tuple[PyTree, Chunk]:
        def bounded(delta: PyTree) -> PyTree:
            squares = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(delta))
            norm = jnp.sqrt(squares)
            factor = jnp.where(norm > limit, limit / jnp.maximum(norm, limit), 1.0)
            return jax.tree.map(lambda leaf: leaf * factor, delta)

        return kept, chunk._replace(delta=jax.vmap(bounded)(chunk.delta))

    return uploading(Upload("robust.norm_bound", change, bounds=True), "norm_bound", limit=limit)
