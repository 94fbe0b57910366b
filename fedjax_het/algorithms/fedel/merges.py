"""The plain mean, which FedEL's aggregation is measured against."""

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import Sums, masked_mean
from fedjax_het.contract.algorithm import Aggregator, Chunk, Variables


def plain_mean() -> Aggregator:
    """The mean over everyone: frozen copies dilute a tensor's update by the share that trained it.

    What FedEL's aggregation is measured against (acceptance test A12).
    """
    mean = masked_mean()

    def init(state: PyTree, variables: Variables, mask_shapes: PyTree) -> tuple[Sums, jax.Array]:
        return mean.init(state, variables, mask_shapes), jnp.zeros((), jnp.float32)

    def add(acc: tuple[Sums, jax.Array], chunk: Chunk) -> tuple[Sums, jax.Array]:
        return mean.add(acc[0], chunk), acc[1] + jnp.sum(chunk.weight)

    def finalize(
        acc: tuple[Sums, jax.Array], variables: Variables, shared: PyTree
    ) -> tuple[Variables, dict[str, Any]]:
        sums, everyone = acc
        den = jax.tree.map(lambda d: jnp.broadcast_to(everyone, d.shape), sums.den)
        return mean.finalize(sums._replace(den=den), variables, shared)

    return Aggregator(init, add, finalize)
