"""What the Gaussian mechanisms share: clipping, noise, the numbers of a step, what they refuse."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import align
from fedjax_het.contract.algorithm import Algorithm, Chunk
from fedjax_het.contract.uploads import Draw, leaf_keys
from fedjax_het.problem import Problem
from fedjax_het.transforms.privacy.accounting import epsilon, require_accountant


def clipped(chunk: Chunk, limit: jax.Array | float) -> tuple[Chunk, jax.Array]:
    """Updates of at most this Euclidean norm over all that a client sends.

    An update so long that its square is not finite becomes zero.

    Args:
      chunk: updates.
      limit: largest norm, positive and finite.

    Returns:
      The chunk, and the norms before, float32[c].
    """
    squares = [
        jnp.sum(jnp.square(leaf), axis=tuple(range(1, leaf.ndim)))
        for leaf in jax.tree.leaves(chunk.delta)
    ]
    norms = jnp.sqrt(sum(squares[1:], squares[0]))
    scale = limit / jnp.maximum(norms, limit)
    delta = jax.tree.map(
        lambda leaf: leaf * scale.reshape((-1,) + (1,) * (leaf.ndim - 1)), chunk.delta
    )
    return chunk._replace(delta=delta), norms


def equal(chunk: Chunk) -> Chunk:
    """The chunk with the weight 1 for every client that counts."""
    return chunk._replace(weight=jnp.where(chunk.weight > 0, 1.0, 0.0))


def normal(params: PyTree, key: jax.Array, deviation: jax.Array | float) -> PyTree:
    """Gaussian noise of this standard deviation in the shapes of the parameters, float32."""
    return jax.tree.map(
        lambda leaf, key: deviation * jax.random.normal(key, leaf.shape),
        params,
        leaf_keys(key, params),
    )


def noised(chunk: Chunk, deviation: float) -> Chunk:
    """Updates to each of which its client has added noise at the coordinates that it trains."""

    def nothing(leaf: object) -> bool:
        return leaf is None

    def of(delta: PyTree, mask: PyTree, key: jax.Array, weight: jax.Array) -> PyTree:
        def add(leaf: jax.Array, noise: jax.Array, keep: jax.Array | None) -> jax.Array:
            sent = weight > 0 if keep is None else (weight > 0) & align(keep, leaf)
            return leaf + jnp.where(sent, noise, 0.0)

        kept = jax.tree.map(lambda _: None, delta, is_leaf=nothing) if mask is None else mask
        noise = normal(delta, key, deviation)
        return jax.tree.map(
            lambda leaf, z, keep: None if leaf is None else add(leaf, z, keep),
            delta,
            noise,
            kept,
            is_leaf=nothing,
        )

    delta = jax.vmap(of)(chunk.delta, chunk.mask, chunk.key, chunk.weight)
    return chunk._replace(delta=delta)


def require_noise(noise: float, delta: float | None) -> None:
    """Raises `InputError` unless these are a multiplier and a probability that can be accounted."""
    require(
        0 <= noise < float("inf"),
        f"noise = {noise}",
        "must be a finite multiple of the clipping norm, at least 0",
        "try 0.5 to 2, or 0 for none",
    )
    require(
        delta is None or 0 < delta < 1,
        f"delta = {delta}",
        "must lie in (0, 1)",
        "leave it out for n^-1.1 with n clients",
    )
    if noise:
        require_accountant()


def telling(
    noise: float, delta: float | None, *, central: bool
) -> Callable[[int, Draw], Mapping[str, float]]:
    """The function `Upload.told` of noise: epsilon after the step, and its delta.

    If the method learns from other things that clients tell, the number is called
    `epsilon_updates`.

    Args:
      noise: standard deviation of the noise over the clipping norm.
      delta: probability for which epsilon holds; None for n^-1.1.
      central: whether the noise is in the sum, which a uniform draw of the cohort amplifies.
    """

    def told(round: int, draw: Draw) -> Mapping[str, float]:
        size = draw.size if central and draw.uniform else draw.clients
        chance = draw.clients**-1.1 if delta is None else delta
        spent = epsilon(noise, round + 1, chance, size=size, clients=draw.clients)
        return {"epsilon_updates" if draw.learns else "epsilon": spent, "delta": chance}

    return told


def checking(name: str, *, central: bool) -> Callable[[Algorithm, Problem], None]:
    """The function `Upload.check` of a mechanism of this name."""

    def check(algorithm: Algorithm, problem: Problem) -> None:
        model, pace = problem.model, algorithm.pace
        require(
            model.stats_policy == "frozen" or not jax.tree.leaves(model.shapes.stats),
            f"{name} with the running statistics of model {model.name!r}",
            "protects updates only, and these averages of the samples are sent along with them",
            "build the model with norm='group', or with stats_policy='frozen'",
        )
        require(
            algorithm.merge.mean or not central,
            f"{name} of {algorithm.name}",
            "gives all clients equal weights in a mean, and this method has another rule",
            "use a method that merges by the mean (fedavg, fedpmt), or central=False",
        )
        require(
            not (central and pace.refills),
            f"{name} with the pace {pace.name} of {algorithm.name}",
            "limits what a client adds to a merge, and here one may be merged twice at once",
            "use a pace that sends clients after the merge, or central=False",
        )
        require(
            not pace.may_wait or problem.fleet.always_on,
            f"{name} with the pace {pace.name} and devices that are not always on",
            "counts the steps when it sends clients, and here a step may send none",
            "use a pace that waits for its cohort, or devices that are always on",
        )

    return check
