"""Partitions, the user's own arrays, and models."""

from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from malformed.case import Call, Case, problem

from fedjax_het import Problem, fleet, models
from fedjax_het.data import FederatedData, from_arrays, partitioner
from fedjax_het.data.partition import natural

# ---- partitions ----------------------------------------------------------------------------------

LABELS = np.repeat(np.arange(10, dtype=np.int32), 3)


def dealt(name: str, num_clients: Any, labels: np.ndarray = LABELS, **options: Any) -> Call:
    return lambda here: partitioner(name, num_clients, **options)(labels, np.random.default_rng(0))


PARTITIONS: list[Case] = [
    (dealt("iid", 0), "num_clients = 0 | whole number >= 1 | customary"),
    (dealt("iid", "ten"), "'num_clients' = 'ten' | must be a whole number | correct num_clients"),
    (dealt("iid", 31), "31 clients | of the 30 samples | at most 30 clients"),
    (dealt("dirichlet", 3, alpha=0), "alpha = 0 | finite positive | 0.1 is strong"),
    (
        dealt("dirichlet", 4, alpha=1.0),
        "4 clients with at least 10 | need 40 of the 30 | at most 3 clients",
    ),
    (dealt("shards", 20), "20 clients with at least 2 | need 40 | at most 15"),
    (
        dealt("label_limited", 5, labels_per_client=11),
        "labels_per_client = 11 | the 10 labels | lacks",
    ),
    (
        dealt("label_limited", 40, labels_per_client=1),
        "has 3 samples for 4 clients | at least 1 | fewer clients",
    ),
    (dealt("quantity_skew", 3, sigma=99), "sigma = 99 | must lie in 0..10 | strong quantity skew"),
    (
        dealt("shards", 2, np.zeros((4, 2), np.int32)),
        "labels int32[4, 2] | one class per sample | contiguous",
    ),
    (
        lambda here: natural([0, 1])(LABELS, np.random.default_rng(0)),
        "2 ids for 30 samples | one id per sample | from_arrays",
    ),
]

# ---- the user's own arrays -----------------------------------------------------------------------

X, Y = np.zeros((6, 4), np.float32), np.array([0, 1, 2, 0, 1, 2], np.int32)


def arrays(**changes: Any) -> Call:
    given = {"x": X, "y": Y, "test_x": X[:2], "test_y": Y[:2], "clients": [0, 0, 0, 1, 1, 1]}
    return lambda here: from_arrays(**{**given, **changes})


def spoilt(value: float) -> np.ndarray:
    x = X.copy()
    x[3] = value
    return x


ARRAYS: list[Case] = [
    (arrays(x=np.array([None] * 6)), "x is object | must be a NumPy array of uint8 | astype"),
    (arrays(x=[[1.0], [1.0, 2.0]]), "x of type list | must be one array | equal"),
    (arrays(x=np.zeros(6, np.float32)), "x is float32[6] | [samples, ...] | first axis"),
    (arrays(x=X[:0]), "x is float32[0, 4] | not empty | first axis"),
    (arrays(x=spoilt(np.nan)), "first ids [3] | finite numbers | repair"),
    (
        arrays(x=spoilt(0.0).astype(np.float64) + 1e300 * (np.arange(6) == 3)[:, None]),
        "x: 1 samples are not finite | finite numbers | drop",
    ),
    (arrays(x=np.full((6, 4), -1)), "token -1 | >= 0 | vocabulary"),
    (arrays(y=Y.astype(np.float32)), "y of float32, test_y of int32 | both be classes | astype"),
    (arrays(y=Y[:5]), "y has 5 rows for 6 | one per input | same split"),
    (
        arrays(y=np.array([0, 1, 2, 0, 1, -1]), num_classes=3),
        "labels -1..2 | must lie in 0..2 | ignored positions by -1",
    ),
    (arrays(num_classes=2), "labels 0..2 | 0..1 for num_classes = 2 | raise num_classes"),
    (arrays(num_classes="ten"), "num_classes = 'ten' | whole number | count the labels"),
    (
        arrays(test_x=np.zeros((2, 3), np.float32)),
        "float32[N, 3] with labels int32[N] | training samples, float32[N, 4] | alike",
    ),
    (arrays(clients=[0, 1]), "shape [2] | one owner per training sample, 6 | partitioner"),
    (arrays(clients=None), "clients of type NoneType | must say who holds | partitioner"),
    (arrays(clients=[[0, 1], []]), "first ids [1] | at least 1 | fewer clients"),
    (arrays(clients=[[0, 6], [1]]), "0..6 | must lie in 0..5 | training arrays"),
    (
        arrays(clients=[[0, 1], [1, 2]]),
        "sample 1 is held by clients [0, 1] | must not overlap | one client",
    ),
    (
        arrays(test_clients=["zoe", "adam"]),
        "test_clients is <U4[2] | ids like those of clients (int64) | same ids",
    ),
    (
        arrays(clients=[[0], [1]], test_clients=[0, 1]),
        "test_clients given | the owner of each | leave test_clients out",
    ),
    (arrays(normalise=0.5), "normalise = 0.5 | (mean, std) | one number"),
    (arrays(normalise=(0.0, 0.0)), "std = (0.0,) | must be positive | constant channels"),
    (arrays(normalise=((1, 2), 1)), "mean = (1.0, 2.0) | must be 1 or 4 | per channel"),
    (arrays(augment="crop"), "'crop' | must be one of crop_flip | crop_flip"),
    (arrays(augment="crop_flip"), "augment = 'crop_flip' | needs images | leave augment out"),
    (arrays(validation_fraction=1.0), "validation_fraction = 1.0 | below 1 | one tenth"),
    (arrays(per_client_cap=0), "per_client_cap = 0 | whole number >= 1 | keep all"),
    (
        arrays(classes=("a", "b")),
        "classes has 2 names | all classes, num_classes = 3 | leave it out",
    ),
    (arrays(seed=-3), "seed = -3 | >= 0 | any such"),
]

# ---- models, and parts that do not fit together --------------------------------------------------


class Bare(nn.Module):
    """A module with a parameter of its own beside a submodule."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(3)(x) + self.param("w", nn.initializers.zeros, ())


def fitted(**changes: Any) -> Call:
    def call(here: Path) -> None:
        parts = {"model": problem().model, "data": problem().data, "fleet": problem().fleet}
        Problem(**{**parts, **changes})

    return call


def sequences(dtype: Any) -> FederatedData:
    """Four clients with one sequence of five labels each."""
    x, y = np.zeros((4, 5), dtype), np.zeros((4, 5), np.int32)
    return from_arrays(x, y, x, y, clients=[0, 1, 2, 3], num_classes=3)


MODELS: list[Case] = [
    (
        lambda here: models.build("mlp", (4,), 3, hidden=(0,)),
        "hidden = (0,) | must be positive | drop the empty layer",
    ),
    (
        lambda here: models.build("resnet20", (32, 32, 3), 10, norm="layer"),
        "'layer' | must be one of batch | choose",
    ),
    (
        lambda here: models.build("vgg11", (8, 8, 1), 10),
        "input_shape = (8, 8, 1) | at least 32x32 | pad or resize",
    ),
    (lambda here: models.build("resnet20", (64,), 10), "input_shape = (64,) | takes images | mlp"),
    (
        lambda here: models.build("leaf_cnn", (64,), 10),
        "(64,) | images [height, width, channels] | mlp",
    ),
    (
        lambda here: models.from_flax(lambda x: x, (4,), 3),
        "builtins.function | must be a flax module | lambda rngs",
    ),
    (
        lambda here: models.from_flax(Bare(), (4,), 3),
        "parameters ['w'] | to none of its blocks | submodule",
    ),
    (
        lambda here: models.from_flax([nn.Dense(5)], (4,), 3),
        "[3, 5] for 3 samples | [3, ..., 3] | correct num_classes",
    ),
    (lambda here: models.from_flax([], (4,), 3), "empty sequence | needs a block | flax modules"),
    (
        lambda here: models.from_flax(nn.Sequential([lambda x: x[:, 0]]), (4,)),
        "output of model 'Sequential' [3] | one array [3, ..., num_classes] | keep a last axis",
    ),
    (
        lambda here: models.from_flax(lambda rngs: rngs, (4,)),
        "Rngs of builtins.function | must be an nnx module | lambda rngs",
    ),
    (
        lambda here: models.from_flax(nn.Dense(3), {"a": (4,), "b": (2,)}),
        "input_dtype | structure of input_shape = {'a': (4,), 'b': (2,)} | every array",
    ),
    (
        lambda here: models.build("mlp", {"a": (4,)}, 3),
        "'mlp' with input_shape = {'a': (4,)} | one array | from_flax",
    ),
    (
        lambda here: models.build("char_lstm", (8, 8, 1), 5),
        "input_shape = (8, 8, 1) | windows of symbols [T] | tinyshakespeare",
    ),
    (
        lambda here: models.build("conv1d", (4, 3), 5),
        "input_shape = (4, 3) | T of at least 8 | fewer channels",
    ),
    (
        lambda here: models.build("unet", (30, 30, 3), 2),
        "input_shape = (30, 30, 3) | multiples of 4 | pad or resize",
    ),
    (
        lambda here: models.build("mlp", (4,), 3, dropout=1.0),
        "dropout = 1.0 | must lie in [0, 1) | use 0.1",
    ),
    (fitted(model=nn.Dense(10)), "model of type Dense | must be a BlockModel | from_flax"),
    (
        fitted(fleet=fleet.build("uniform", 3)),
        "data of 4 clients, fleet of 3 | equal in number | num_clients devices",
    ),
    (
        fitted(model=models.build("mlp", (64,), 10)),
        "model input (64,), data (8, 8, 1) | same shape | data.input_shape",
    ),
    (
        fitted(model=models.build("mlp", (8, 8, 1), 3)),
        "3 outputs, data of 10 | output per class | num_classes=10",
    ),
    (
        fitted(model=models.build("logistic", (5,), 3), data=sequences(np.int32)),
        "model of float32 inputs, data of int32 | tokens | input_dtype",
    ),
    (
        fitted(model=models.build("logistic", (5,), 3), data=sequences(np.float32)),
        "model output [3] for one sample, labels [5] | must be [5, 3] | model of sequences",
    ),
]

CASES = [*PARTITIONS, *ARRAYS, *MODELS]
