"""The setting of PR-FL's study: networks, data, and clients on the author's links; see `pr_fl`."""

import functools
from typing import Any

import numpy as np

from fedjax_het.algorithms.prfl.ranking import network as sizes_of
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.data.sources import load
from fedjax_het.fleet import presets
from fedjax_het.fleet.cost import cost_table
from fedjax_het.models import from_flax
from fedjax_het.models.base import BlockModel
from fedjax_het.models.cnn import Conv
from fedjax_het.models.mlp import Dense, mlp
from fedjax_het.problem import Problem

CLIENTS, VGG11 = 10, 9_747_136
# Seconds of a local training of the whole model.
LOCAL_S = 0.5
TRAINING: dict[str, Any] = {"batch_size": 20, "local_steps": 5}


def network(shape: tuple[int, ...], classes: int) -> BlockModel:
    """Convolutions of 16 and 32, each pooled, 128 hidden units, a linear head.

    For the digits two hidden layers of 64 instead.
    """
    if shape[0] < 14:
        return mlp(shape, classes, hidden=(64, 64))
    layers = [Conv(16, 3, pool=True), Conv(32, 3, pool=True), Dense(128, relu=True), Dense(classes)]
    return from_flax(layers, shape, classes, name="conv2")


@functools.cache
def _images(name: str) -> tuple[np.ndarray, ...]:
    """Images averaged over 2 x 2 pixels, standardised; labels; writers of FEMNIST."""
    raw = load(name)
    if name == "digits":
        return raw.x, raw.y, raw.test_x, raw.test_y, raw.y

    def small(x: np.ndarray) -> np.ndarray:
        h, w, c = x.shape[1:]
        x = x.astype(np.float32).reshape(len(x), h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
        return (x - 100.0) / 75.0

    rng = np.random.default_rng(0)
    keep = rng.permutation(len(raw.x))[:10_000] if name == "cifar10" else np.arange(len(raw.x))
    held = rng.permutation(len(raw.test_x))[:2000]
    writers = keep if raw.clients is None else np.asarray(raw.clients)
    return small(raw.x[keep]), raw.y[keep], small(raw.test_x[held]), raw.test_y[held], writers


def _owners(name: str, split: str, seed: int, y: np.ndarray, who: np.ndarray) -> np.ndarray:
    """The client of each sample; the fastest clients come first."""
    rng = np.random.default_rng([seed, 1])
    if split == "iid":
        return rng.permutation(np.arange(len(y)) % CLIENTS)
    if name == "femnist":
        writers = rng.permutation(np.unique(who))
        place = {writer: min(i // 19, CLIENTS - 1) for i, writer in enumerate(writers)}
        return np.asarray([place[writer] for writer in who])
    owner = np.zeros(len(y), np.int64)
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        cuts = np.cumsum(rng.dirichlet(np.ones(CLIENTS)))[:-1] * len(members)
        for k, part in enumerate(np.split(members, cuts.astype(int))):
            owner[part] = k
    by_size = np.argsort(np.argsort(np.bincount(owner, minlength=CLIENTS), kind="stable"))
    return by_size[owner]


def federated(name: str, split: str, seed: int) -> FederatedData:
    """The data of one seed: its own partition, a twentieth held out for recovery."""
    x, y, test_x, test_y, who = _images(name)
    owner = _owners(name, split, seed, y, who)
    classes = 62 if name == "femnist" else 10
    return from_arrays(
        x,
        y,
        test_x,
        test_y,
        clients=owner,
        num_classes=classes,
        validation_fraction=0.04,
        seed=seed,
    )


def setting(name: str, split: str, seed: int) -> Problem:
    """The problem of one seed."""
    data = federated(name, split, seed)
    return on_links(network(data.input_shape, data.num_classes), data)


def scale(model: BlockModel) -> float:
    """The factor on all rates: weights of the model over those of the author's."""
    return sizes_of(model, 1.0).weights / VGG11


def on_links(model: BlockModel, data: FederatedData) -> Problem:
    """The problem on the author's links, scaled to the model."""
    step_flops = float(cost_table(model).step_flops())
    samples = TRAINING["batch_size"] * TRAINING["local_steps"]
    fleet = presets.build(
        "prfl", CLIENTS, scale=scale(model), flops_per_s=step_flops * samples / LOCAL_S
    )
    return Problem(model, data, fleet)
