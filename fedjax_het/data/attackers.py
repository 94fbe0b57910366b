"""Clients that attack: who they are, and data with wrong labels."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fedjax_het.common.arrays import given_array, within
from fedjax_het.common.errors import require
from fedjax_het.data.federated import FederatedData


def flip_labels(
    data: FederatedData,
    *,
    clients: Sequence[int] | None = None,
    share: float | None = None,
    seed: int = 0,
) -> FederatedData:
    """The data in which attackers have wrong labels: class l becomes C - 1 - l of C classes.

    Positions without a label stay without one. Test and validation labels stay true.

    Args:
      data: data with true labels.
      clients: ids of the attackers; None to draw them.
      share: share of the clients that attack; None if ids are given.
      seed: seed of this draw. Equal shares and seeds give the same attackers in
        `transforms.attack`.

    Raises:
      InputError: for labels that are numbers, and for attackers that are not there.

    References:
      Fang et al., *Local Model Poisoning Attacks to Byzantine-Robust Federated Learning*, 2020.
    """
    require(
        data.num_classes > 0,
        f"flip_labels of {data.name!r} with labels of {data.y.dtype}",
        "must have classes",
        "attack the updates instead (attack.sign_flip)",
    )
    require_chosen("flip_labels", clients, share, seed)
    attackers = chosen("flip_labels", data.num_clients, clients, share, seed)
    wrong = data.order[np.repeat(attackers, data.count)]
    y = data.y.copy()
    y[wrong] = np.where(y[wrong] >= 0, data.num_classes - 1 - y[wrong], y[wrong])
    return replace(data, y=y)


def require_chosen(
    what: str, clients: Sequence[int] | None, share: float | None, seed: int
) -> None:
    """Raises `InputError` unless attackers are given by valid ids, or else by a valid share."""
    require(
        (clients is None) != (share is None),
        f"clients = {clients}, share = {share} of {what}",
        "must be one of the two",
        "name the attackers, or say share = 0.2",
    )
    given = () if clients is None else clients
    ids = given_array(given, f"clients of {what}", "give a list of ids")
    require(
        ids.ndim == 1 and (not ids.size or (ids.dtype.kind in "iu" and within(ids, 0, 2**31 - 1))),
        f"clients = {clients} of {what}",
        "must be ids from 0",
        "leave the others out",
    )
    require(
        share is None or 0 <= share <= 1,
        f"share = {share} of {what}",
        "must lie in [0, 1]",
        "use 0.2 for every fifth client",
    )
    require(seed >= 0, f"seed = {seed} of {what}", "must be at least 0", "any such number will do")


def chosen(
    what: str, num_clients: int, clients: Sequence[int] | None, share: float | None, seed: int
) -> np.ndarray:
    """Whether each client attacks, bool[n]; a share is rounded to a whole number of clients.

    Args:
      what: name of the attack in errors.
      num_clients: number n of clients.
      clients: ids of the attackers, or None.
      share: share of the clients that attack, or None.
      seed: seed of the draw.

    Raises:
      InputError: for an id that is not below n.
    """
    attacks = np.zeros(num_clients, bool)
    if clients is None:
        assert share is not None
        count = int(np.floor(share * num_clients + 0.5))
        clients = np.random.default_rng(seed).permutation(num_clients)[:count].tolist()
    require(
        max(clients, default=0) < num_clients,
        f"client {max(clients, default=0)} of {what}",
        f"must be one of the {num_clients} clients, from 0",
        "leave it out",
    )
    attacks[np.asarray(clients, np.int64)] = True
    return attacks
