"""Robust merges, and attackers."""

import numpy as np
from malformed.case import Call, Case, method, problem

import fedjax_het as fh
from fedjax_het import data


def composed(name: str, **options: object) -> Call:
    """Makes FedAvg with a transformation."""
    return method("fedavg", compose=[{"name": name, **options}])


def flipped(**options: object) -> Call:
    """Flips labels of the problem's clients."""
    return lambda here: data.flip_labels(problem().data, **options)


def flipped_numbers(here: object) -> None:
    x = np.zeros((4, 2), np.float32)
    data.flip_labels(data.from_arrays(x, x, x, x, clients=np.arange(4)), share=0.5)


def too_large(here: object) -> None:
    step = {"name": "robust.median", "memory_bytes": 100}
    fh.simulate(method("fedavg", compose=[step])(here), problem(), rounds=1)


CASES: list[Case] = [
    (composed("robust.trimmed_mean", share=0.5), "share = 0.5 | lie in [0, 0.5) | robust.median"),
    (composed("robust.trimmed_mean", share=-0.1), "share = -0.1 | lie in [0, 0.5) | use 0.2"),
    (composed("robust.trimmed_mean"), "'share' is missing | a number | add share"),
    (
        composed("robust.krum", attackers=1),
        "attackers = 1 of robust.krum among 4 clients | 2 x 1 + 3 = 5 | fewer attackers",
    ),
    (composed("robust.krum", attackers=-1), "attackers = -1 | at least 0 | a fifth"),
    (composed("robust.krum", attackers=0, keep=0), "keep = 0 | at least 1 client | use 1"),
    (composed("robust.krum", attackers=0, keep=5), "keep = 5 | at most the 4 of 4 | fewer"),
    (composed("robust.norm_bound", limit=0), "limit = 0 | must be positive | median norm"),
    (composed("robust.median", memory_bytes=0), "memory_bytes = 0 | must be positive | leave it"),
    (
        too_large,
        "bytes for the updates of 4 tasks | memory_bytes = 100 | norm_bound",
    ),
    (
        method("fednova", compose=["robust.median"]),
        "robust.median of fednova | weighs them | fedavg, fedpmt",
    ),
    (composed("attack.sign_flip"), "clients = None, share = None | one of the two | share = 0.2"),
    (
        composed("attack.sign_flip", share=0.2, clients=[1]),
        "clients = [1], share = 0.2 | one of the two | name the attackers",
    ),
    (composed("attack.sign_flip", share=1.2), "share = 1.2 | [0, 1] | every fifth"),
    (composed("attack.sign_flip", clients=[-1]), "clients = [-1] | from 0 | leave the others"),
    (composed("attack.sign_flip", share=0.2, seed=-1), "seed = -1 | at least 0 | any such"),
    (composed("attack.noise", deviation=0, share=0.2), "deviation = 0 | positive | honest"),
    (
        composed("attack.scaled", factor=float("nan"), share=0.2),
        "'factor' = nan | must be a finite number | correct factor",
    ),
    (flipped(), "flip_labels | one of the two | name the attackers"),
    (flipped(clients=[4]), "client 4 of flip_labels | the 4 clients | leave it out"),
    (flipped_numbers, "labels of float32 | must have classes | attack.sign_flip"),
]
