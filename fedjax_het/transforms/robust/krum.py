"""Krum and multi-Krum: the clients whose updates lie closest to those of the others."""

import jax
import jax.numpy as jnp

from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.options import checked
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.robust.stacking import MEMORY_BYTES, Rule, Stack, aligned, replacing


@checked
def krum(
    attackers: Count, *, keep: Count = 1, memory_bytes: Unlimited = MEMORY_BYTES
) -> Transformation:
    r"""Krum: the update closest to its neighbours, in place of the mean of the updates.

    The score of a client is the sum of its squared distances to the m - f - 2 closest of the m
    clients whose updates are merged. The clients of the smallest scores are kept, and the new model
    is the plain mean of their updates, per coordinate over those that train it. Weights have no
    effect. Running statistics get the mean of the same clients.

    The distance of two clients that train different parts is the mean squared difference over the
    coordinates that both train: a sum would bring those close together that share little. Clients
    without a common coordinate are infinitely far apart, and a client that has too few others at a
    finite distance is not kept.

    The rule proves nothing for m < 2 f + 3. A step with so few clients (others were dropped or not
    finite) leaves the model as it is; `krum_kept` in the step's info, the number of clients kept,
    is then 0.

    Args:
      attackers: number f of attackers among the clients of a step.
      keep: number of clients to keep; more than 1 is multi-Krum.
      memory_bytes: limit of the memory for the updates of a step: 5 bytes per parameter for each
        client of the cohort, or for twice as many under a pace that refills.

    References:
      Blanchard et al., *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*,
      2017, sections 4 and 5. The distances under masks are ours.
    """
    name = "robust.krum"
    require(
        attackers >= 0, f"attackers = {attackers} of {name}", "must be at least 0", "try a fifth"
    )
    require(keep >= 1, f"keep = {keep} of {name}", "must be at least 1 client", "use 1 for Krum")

    def check(tasks: int) -> None:
        least = 2 * attackers + 3
        require(
            tasks >= least,
            f"attackers = {attackers} of {name} among {tasks} clients of a round",
            f"needs at least 2 x {attackers} + 3 = {least} clients",
            "select more clients per round, or expect fewer attackers",
        )
        require(
            keep <= tasks - attackers,
            f"keep = {keep} of {name}",
            f"must be at most the {tasks - attackers} of {tasks} clients that do not attack",
            "keep fewer",
        )

    def choose(stack: Stack) -> tuple[jax.Array, dict[str, jax.Array]]:
        number = jnp.sum(stack.present.astype(jnp.int32))
        rank = jnp.arange(stack.present.shape[0], dtype=jnp.int32)
        nearest = jnp.sort(distances(stack), axis=1)
        close = (rank < number - attackers - 2)[None]
        score = jnp.sum(jnp.where(close, nearest, 0.0), axis=1)
        score = jnp.where(stack.present > 0, score, jnp.inf)
        place = jnp.argsort(jnp.argsort(score))
        proven = number >= 2 * attackers + 3
        kept = (place < jnp.minimum(keep, number - attackers)) & jnp.isfinite(score) & proven
        return kept, {"krum_kept": jnp.sum(kept.astype(jnp.int32))}

    rule = Rule(name, _mean, choose, check)
    return replacing(rule, memory_bytes, attackers=attackers, keep=keep)


def distances(stack: Stack) -> jax.Array:
    """Mean squared differences over common coordinates, float32[r, r].

    It is infinite from a client to itself, and where nothing is in common.
    """
    pairs = list(zip(jax.tree.leaves(stack.delta), jax.tree.leaves(stack.trains), strict=True))
    rows = stack.present.shape[0]

    def from_one(i: jax.Array) -> jax.Array:
        # Differences and not products, whose rounding would hide small distances.
        total = common = jnp.zeros((rows,), jnp.float32)
        for values, trains in pairs:
            both = aligned(trains * trains[i][None], values).astype(jnp.float32)
            squares = jnp.square(values - values[i][None]) * both
            total += jnp.sum(squares.reshape(rows, -1), axis=1)
            repeats = values[0].size / max(both[0].size, 1)
            common += jnp.sum(both.reshape(rows, -1), axis=1) * jnp.float32(repeats)
        other = (common > 0) & (jnp.arange(rows, dtype=jnp.int32) != i)
        return jnp.where(other, total / jnp.maximum(common, 1.0), jnp.inf)

    return jax.lax.map(from_one, jnp.arange(rows, dtype=jnp.int32))


def _mean(values: jax.Array, counts: jax.Array) -> jax.Array:
    """`Rule.middle` of the kept clients: their mean."""
    number = jnp.sum(counts.astype(jnp.float32), axis=0)
    return jnp.sum(jnp.where(counts, values, 0.0), axis=0) / jnp.maximum(number, 1.0)
