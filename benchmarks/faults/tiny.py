"""A tiny configuration for every registered method, and tiny parts to exchange in it."""

import copy
from typing import Any

from fedjax_het.algorithms import ALGORITHMS

_TRAINING = {"learning_rate": 0.1, "batch_size": 4}
_WIDE = {**_TRAINING, "levels": [0, 1, 2, 1, 0, 2], "rates": [1.0, 0.5, 0.25]}
_BUDGET = {"learning_rate": 1.0, "rounds": 12, "total_s": 24.0}
_ADEL = {
    "name": "adel",
    "stages": 3,
    "flops_per_sample_layer": 2000.0,
    "max_power": 40.0,
    "min_share": 0.2,
    "max_communication_s": 0.5,
}
_EXITS = {"name": "mlp", "hidden": [12, 8], "exits": True}

# Sections that differ from `_BASE`; any other method trains with `_TRAINING` alone.
_METHODS: dict[str, dict[str, Any]] = {
    "adel": {"algorithm": _BUDGET, "fleet": _ADEL},
    "adel_drop": {"algorithm": _BUDGET, "fleet": _ADEL},
    "adel_wait": {"algorithm": {"learning_rate": 1.0}, "fleet": _ADEL},
    "depthfl": {"algorithm": {**_TRAINING, "levels": "even"}, "model": _EXITS},
    "drop_stragglers": {"algorithm": {**_TRAINING, "deadline_s": 0.1}},
    "dtfl": {"model": _EXITS},
    "fedat": {"algorithm": {**_TRAINING, "tiers": 2}},
    "fedbuff": {"algorithm": {**_TRAINING, "buffer_size": 4}},
    "feddrop": {"algorithm": {**_TRAINING, "rates": [1.0, 0.75, 0.5]}},
    "feddyn": {"algorithm": {**_TRAINING, "alpha": 0.1}},
    "fedel": {"model": _EXITS},
    "fedfix": {"algorithm": {**_TRAINING, "interval_s": 0.12}},
    "fedgkt": {"algorithm": {**_TRAINING, "server_epochs": (2,)}, "model": _EXITS},
    "fedopt": {
        "algorithm": {**_TRAINING, "server_optimizer": "momentum", "server_learning_rate": 0.5}
    },
    "fedpmt": {"algorithm": {**_TRAINING, "depths": [1, 3]}},
    "fedprox": {"algorithm": {**_TRAINING, "deadline_s": 0.1}},
    "fedrolex": {"algorithm": _WIDE},
    "fjord": {"algorithm": _WIDE},
    "heterofl": {"algorithm": _WIDE},
    "nested_mask_sync": {"algorithm": {**_TRAINING, "density": {"interval": 1}}},
    "prfl": {
        "algorithm": {
            **_TRAINING,
            "interval_s": 0.02,
            "density": {"interval": 1},
            "recovery": {"patience": 1, "validate_on": "test"},
        }
    },
    "salf": {"algorithm": _BUDGET, "fleet": _ADEL},
    "scalefl": {"algorithm": {**_TRAINING, "levels": "even", "gamma": 0.5}, "model": _EXITS},
    "sub_fedavg": {"algorithm": {**_TRAINING, "epochs": 2, "least_accuracy": 0.0}},
}
_BASE: dict[str, dict[str, Any]] = {
    "data": {
        "source": "digits",
        "num_clients": 6,
        "partition": {"name": "iid"},
        "per_client_cap": 8,
    },
    "model": {"name": "mlp", "hidden": [12, 8]},
    "fleet": {
        "name": "speed_groups",
        "relative_speeds": [0.5, 0.8, 1.0],
        "base_flops_per_s": 1e6,
        "downlink_bytes_per_s": 2e5,
        "uplink_bytes_per_s": 1e5,
    },
    "algorithm": _TRAINING,
    "run": {"rounds": 2},
}
METHODS = tuple(sorted(ALGORITHMS))

# Options that a transformation cannot do without, or that make it do something on tiny problems.
TRANSFORMATIONS: dict[str, dict[str, Any]] = {
    "attack.noise": {"deviation": 0.1, "share": 0.5},
    "attack.scaled": {"factor": -2.0, "share": 0.5},
    "attack.sign_flip": {"share": 0.5},
    "compress.qsgd": {"levels": 4, "bucket": 16},
    "compress.random_k": {"share": 0.3, "error_feedback": True},
    "compress.top_k": {"share": 0.2},
    "compress.uniform": {"bits": 4, "bucket": 16},
    "pace.arrivals": {"count": 2},
    "pace.buffer": {"count": 2, "staleness": "polynomial"},
    "pace.deadline": {"deadline_s": 1.0},
    "pace.first": {"count": 2, "of": 3},
    "pace.window": {"interval_s": 0.12},
    "privacy.adaptive_clip": {"noise": 0.1},
    "privacy.gaussian": {"clip": 0.5, "noise": 0.1},
    "robust.krum": {"attackers": 0, "keep": 2},
    "robust.norm_bound": {"limit": 0.1},
    "robust.trimmed_mean": {"share": 0.3},
    "select.fedcs": {"deadline_s": 1000.0},
    "select.power_of_choice": {"d": 6},
    "select.tifl": {"tiers": 2, "interval": 1},
    "server.optimizer": {"choice": "momentum", "learning_rate": 0.5},
}

# Other parts; networks that take long to compile are built and not trained.
DATA: dict[str, dict[str, Any]] = {
    "diabetes": {
        "data": {"source": "diabetes", "num_clients": 6, "partition": {"name": "iid"}},
        "objective": {"name": "regression"},
    },
}
FLEETS: dict[str, dict[str, Any]] = {
    name: {"name": name} for name in ("exponential", "dtfl", "fedel", "prfl", "uniform", "adel")
}
MODELS: dict[str, dict[str, Any]] = {
    name: {"name": name}
    for name in ("logistic", "cifar_cnn", "leaf_cnn", "pfl_cnn", "heterofl_cnn", "adel_cnn2")
}
BUILT_ONLY = frozenset(MODELS) - {"logistic"}
PARTITIONS: dict[str, dict[str, Any]] = {
    "contiguous": {"name": "contiguous"},
    "dirichlet": {"name": "dirichlet", "alpha": 1.0},
    "label_limited": {"name": "label_limited", "classes": 3},
    "quantity_skew": {"name": "quantity_skew"},
    "shards": {"name": "shards"},
}


def config(method: str) -> dict[str, Any]:
    """A configuration of two rounds of the method; a copy that may be changed."""
    own = copy.deepcopy(_METHODS.get(method, {}))
    base = {**copy.deepcopy(_BASE), **own}
    base["algorithm"] = {"name": method, **base["algorithm"]}
    return base
