"""Optimisers and schedules of clients and servers."""

import optax
from malformed.case import Call, Case, method, problem
from malformed.methods import with_heads

from fedjax_het import algorithms


def client(choice: object, **options: object) -> Call:
    """Makes FedAvg with a client optimiser and no other option."""
    return lambda here: algorithms.fedavg(problem(), client_optimizer=choice, **options)


def server(choice: object, **options: object) -> Call:
    """Makes FedAvg with a server optimiser."""
    return method("fedopt", server_optimizer=choice, **options)


def only_vectors(updates: object, state: object, params: object = None) -> object:
    """An update of an optimiser that does not take every tree of parameters."""
    raise ValueError("vectors only")


OPTIMIZERS: list[Case] = [
    (client("adam"), "'learning_rate' is missing | must be given, a number | learning_rate = ..."),
    (
        client(optax.adam(0.1), learning_rate=0.1),
        "learning_rate = 0.1 | belongs to the transformation | leave it out",
    ),
    (
        client(optax.adam(0.1), weight_decay=0.1),
        "weight_decay = 0.1 | belongs to the transformation | name an optimiser",
    ),
    (
        client(optax.GradientTransformation(lambda params: (), only_vectors)),
        "client_optimizer | fails on a single matrix (vectors only) | any tree of parameters",
    ),
    (
        method("fedavg", client_optimizer={"b1": 0.9}),
        "client_optimizer = {'b1': 0.9} | must have the name of an optimiser | 'name': 'adam'",
    ),
    (
        method("fedavg", client_optimizer={"name": "adam", "beta1": 0.9}),
        "option of client_optimizer 'adam' 'beta1' | must be one of b1, b2 | choose",
    ),
    (
        method("fedavg", client_optimizer={"name": "adam", "b1": 1.0}),
        "client_optimizer 'adam', b1 = 1.0 | at least 0 and below 1 | optax's 0.9",
    ),
    (
        method("fedavg", client_optimizer={"name": "adam", "eps": "small"}),
        "eps = 'small' | must be a number of at least 0 and finite | optax's 1e-08",
    ),
    (
        method("fedavg", client_optimizer={"name": "adam", "nesterov": 1}),
        "nesterov = 1 | must be True or False | nesterov = False",
    ),
    (
        method("fedavg", client_optimizer={"name": "adamw", "weight_decay": 0.1}),
        "'weight_decay' | must be one of b1, b2 | choose",
    ),
    (
        method("fedavg", client_optimizer={"name": "sgd", "momentum": 0.5}, momentum=0.9),
        "momentum = 0.5 in client_optimizer, and momentum = 0.9 | is one value | leave one",
    ),
    (method("fedavg", client_optimizer=0.1), "'client_optimizer' = 0.1 | must be text or | 'sgd'"),
    (method("fedavg", clip_norm=0), "clip_norm = 0 | must be positive and finite | use 1.0"),
    (
        with_heads("dtfl", clip_norm=1.0),
        "clip_norm = 1.0 | may not couple coordinates | leave clip_norm out",
    ),
    (
        with_heads("dtfl", learning_rate=None, client_optimizer=optax.lamb(0.1)),
        "GradientTransformation | may not couple coordinates | such as sgd or adam",
    ),
    (
        method("adel", rounds=4, total_s=9.0, learning_rate=None, client_optimizer=optax.sgd(0.1)),
        "client_optimizer, an optax transformation | no step size | name an optimiser",
    ),
    (server("sgd"), "server_learning_rate = None | must be positive | 1.0 for sgd"),
    (
        server(optax.sgd(1.0), server_learning_rate=1.0),
        "server_learning_rate = 1.0 | belongs to the transformation | leave it out",
    ),
    (
        server("sdg", server_learning_rate=1.0),
        "server_optimizer 'sdg' | must be one of | did you mean 'sgd'?",
    ),
    (
        server({"name": "yogi", "eps": 0.1}, server_learning_rate=1.0),
        "option of 'yogi' 'eps' | must be one of b1, b2, tau | choose",
    ),
]

SCHEDULES: list[Case] = [
    (method("fedavg", schedule=0.5), "'schedule' = 0.5 | text or a function | 'constant'"),
    (
        method("fedavg", schedule=lambda round: float("nan")),
        "schedule(0) = nan | finite and at least 0 | round 0",
    ),
    (method("fedavg", schedule=lambda round: -1), "schedule(0) = -1 | at least 0 | round 0"),
    (
        method("adel", rounds=6, total_s=9.0, schedule="cosine", decay_rounds=3, decay_factor=0.0),
        "step size of 0 in round [3] | rounds that train | decay_factor above 0",
    ),
    (method("fedavg", decay_rounds=0), "decay_rounds = 0 | must be positive | 50"),
    (method("fedavg", decay_factor=2), "decay_factor = 2 | must lie in [0, 1] | 0.1"),
    (method("fedavg", warmup_rounds=-1), "warmup_rounds = -1 | at least 0 | no warm-up"),
]

CASES = [*OPTIMIZERS, *SCHEDULES]
