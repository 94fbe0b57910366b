"""Attackers: clients whose local training returns something else than it should.

An attacker replaces the update of its parameters. Its loss, its running statistics and what it
reports besides (importances ...) stay true. An attack therefore works with every method, pace and
execution, and comes before all that happens to updates on their way. In split training the update
includes the part that the server trains on the client's behalf: there an attack is worse than a
client alone could mount. FedGKT, whose clients send no parameters, refuses attacks.

Wrong labels are an attack on the data: `fedjax_het.data.flip_labels`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.common.errors import require
from fedjax_het.common.options import checked
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.algorithm import LOGITS, Algorithm, ClientResult, Task, Variables
from fedjax_het.contract.masks import Route
from fedjax_het.contract.uploads import leaf_keys
from fedjax_het.data.attackers import chosen, require_chosen
from fedjax_het.data.batches import DeviceData
from fedjax_het.transforms.compose import Transformation

__all__ = ["ATTACKS", "noise", "scaled", "sign_flip"]

# Data of the key of an attack; local training splits the key of its task instead.
_ATTACK = np.uint32(2**32 - 2)


@checked
def sign_flip(
    *, clients: Sequence[int] | None = None, share: float | None = None, seed: int = 0
) -> Transformation:
    """Attackers that send the negative of their update.

    Args:
      clients: ids of the attackers; None to draw them.
      share: share of the clients that attack, drawn once for the whole run; None if ids are given.
      seed: seed of this draw. Equal shares and seeds give the same attackers in every attack, and
        in `data.flip_labels`.
    """
    return _attack("sign_flip", lambda delta, task: _times(-1.0, delta), clients, share, seed)


@checked
def scaled(
    *,
    factor: float,
    clients: Sequence[int] | None = None,
    share: float | None = None,
    seed: int = 0,
) -> Transformation:
    """Attackers that send a multiple of their update; a negative one flips its sign as well.

    Args:
      factor: factor on the update.
      clients: ids of the attackers; None to draw them.
      share: share of the clients that attack; None if ids are given.
      seed: seed of the draw; see `sign_flip`.
    """
    require(
        bool(np.isfinite(factor)),
        f"factor = {factor} of attack.scaled",
        "must be finite",
        "use 10, or -1 to flip the sign",
    )

    def change(delta: PyTree, task: Task) -> PyTree:
        del task
        return _times(factor, delta)

    return _attack("scaled", change, clients, share, seed, factor=factor)


@checked
def noise(
    *,
    deviation: float,
    clients: Sequence[int] | None = None,
    share: float | None = None,
    seed: int = 0,
) -> Transformation:
    """Attackers that send Gaussian noise in place of their update.

    Args:
      deviation: standard deviation of each coordinate that the client trains.
      clients: ids of the attackers; None to draw them.
      share: share of the clients that attack; None if ids are given.
      seed: seed of the draw of the attackers; see `sign_flip`. The noise depends on the seed of the
        run.

    References:
      Blanchard et al., *Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent*,
      2017, section 6, with the deviation 200.
    """
    require(
        deviation > 0 and bool(np.isfinite(deviation)),
        f"deviation = {deviation} of attack.noise",
        "must be positive and finite",
        "use some times the size of an honest coordinate",
    )

    def change(delta: PyTree, task: Task) -> PyTree:
        keys = leaf_keys(jax.random.fold_in(task.key, _ATTACK), delta)
        drawn = jax.tree.map(
            lambda leaf, key: deviation * jax.random.normal(key, leaf.shape, leaf.dtype),
            delta,
            keys,
        )
        return masks.apply(task.mask, drawn)

    return _attack("noise", change, clients, share, seed, deviation=deviation)


# Factories of transformations by name.
ATTACKS: dict[str, Callable[..., Transformation]] = {
    "noise": noise,
    "scaled": scaled,
    "sign_flip": sign_flip,
}


def _times(factor: float, delta: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: factor * leaf, delta)


def _attack(
    name: str,
    change: Callable[[PyTree, Task], PyTree],
    clients: Sequence[int] | None,
    share: float | None,
    seed: int,
    **options: Any,
) -> Transformation:
    """The transformation in which attackers send `change(delta, task)`.

    Several attacks may follow each other; they are recorded in `Algorithm.options` in their order.
    """
    require_chosen(f"attack.{name}", clients, share, seed)
    ids = None if clients is None else sorted({int(client) for client in clients})
    told = {"name": name, **options, "clients": ids, "share": share, "seed": seed}

    def transformation(algorithm: Algorithm) -> Algorithm:
        require(
            algorithm.sends != LOGITS,
            f"attack.{name} of {algorithm.name}",
            f"changes parameters, but its clients send {algorithm.sends}",
            "flip labels instead (data.flip_labels)",
        )
        honest = algorithm.local

        def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
            result = honest(route, start, data, task)
            members = chosen(f"attack.{name}", data.count.shape[0], ids, share, seed)
            attacks = jnp.asarray(members)[task.client]
            delta = jax.tree.map(
                lambda bad, good: jnp.where(attacks, bad, good),
                change(result.delta, task),
                result.delta,
            )
            return result._replace(delta=delta)

        known = algorithm.options or {}
        said = {**known, "attack": [*known.get("attack", ()), told]}
        return algorithm._replace(local=local, options=said)

    return transformation
