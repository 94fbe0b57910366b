"""Numbers that no machine or program holds, or that mean nothing."""

from pathlib import Path
from typing import Any

import numpy as np
from malformed.case import BASE, Call, Case, method, problem, ran, trained

from fedjax_het import (
    Problem,
    algorithms,
    experiment,
    fleet,
    models,
    objectives,
    transforms,
)
from fedjax_het.data import from_arrays, iid, label_limited
from fedjax_het.fleet import Fleet

NAN, INF = float("nan"), float("inf")


def layered(name: str = "adel", **options: Any) -> Call:
    """Makes ADEL-FL or a relative on its own fleet."""

    def call(here: Path) -> None:
        base = problem()
        setting = Problem(base.model, base.data, fleet.build("adel", 4))
        given = {"learning_rate": 0.1, "rounds": 4, "total_s": 1e6, **options}
        algorithms.build(name, setting, **given)

    return call


def arrays(**options: Any) -> Call:
    x, y = np.zeros((6, 3), np.float32), np.zeros(6, np.int32)
    return lambda here: from_arrays(x, y, x, y, **{"clients": iid(2), **options})


def model(name: str, shape: tuple[int, ...] = (28, 28, 1), **options: Any) -> Call:
    return lambda here: models.build(name, shape, 10, **options)


def of_fleet(name: str, **options: Any) -> Call:
    return lambda here: fleet.build(name, **{"num_clients": 4, **options})


def too_wide(here: Path) -> None:
    base = problem()
    wide = models.build("mlp", base.data.input_shape, 10, hidden=(10**6, 10**6))
    Problem(wide, base.data, base.fleet)


def labelled(label: str) -> Call:
    config = {**BASE, "compare": {"methods": {label: {}}}}
    return lambda here: experiment.compare([config], here)


BITS_32 = "at most 2147483647"
FINITE = "a finite number (0, or 1e-30 to 1e+30 in size)"

# Values that wrapped to other ones, and trained nothing or the same as another run.
WRAPPED: list[Case] = [
    (method("fedavg", local_steps=2**31), f"'local_steps' = 2147483648 | {BITS_32} | correct"),
    (method("fedavg", local_steps=2**32 + 1), f"'local_steps' = 4294967297 | {BITS_32} | correct"),
    (method("fedavg", epochs=2**31), f"'epochs' = 2147483648 | {BITS_32} | epochs = 1"),
    (method("fedavg", batch_size=2**31), f"'batch_size' = 2147483648 | {BITS_32} | = 20"),
    (
        method("fedavg", epochs=2**31 - 1, batch_size=1),
        f"epochs = 2147483647 of | {BITS_32} local steps | fewer epochs",
    ),
    (
        method("fedavg", local_steps=2**31 - 1),
        f"local_steps = 2147483647 | {BITS_32} samples for a client | fewer steps",
    ),
    (
        method("prfl", recovery=None, epochs=2**24),
        f"epochs = 16777216 | {BITS_32} samples for a client | fewer steps",
    ),
    (ran(seed=2**32), "'seed' = 4294967296 | at most 4294967295 (a random key | seed = 0"),
]

UNBOUNDED: list[Case] = [
    (layered(virtual_layers=10**30), "'virtual_layers' = 10 | at most 1000 | virtual_layers = 0"),
    (layered(rounds=2**31), f"'rounds' = 2147483648 | {BITS_32} | correct"),
    (layered(rounds=10**6), "rounds = 1000000 | at most 100000 | plan some"),
    (layered("salf", rounds=10**7), "rounds = 10000000 | at most 100000 | plan some"),
    (of_fleet("uniform", num_clients=10**12), "'num_clients' = 1000000000000 | at most | correct"),
    (of_fleet("adel", stages=10**9), "'stages' = 1000000000 | at most 1000 | stages = 8"),
    (
        of_fleet("adel", drift=0.1, drift_every_s=1e-9),
        "every_s = 1e-09 | at most 100000 steps | every_s=10",
    ),
    (arrays(num_classes=10**12), "num_classes = 1000000000000 | at most 16777216 | held"),
    (lambda here: label_limited(10**12, 2), "'num_clients' | at most 10000000 | correct"),
    (model("mlp", hidden=(10**12,)), "'hidden' | each a whole number of at most 10000000 | (200"),
    (
        model("resnet", units_per_group=10**9, bottleneck=False),
        "'units_per_group' | 1000 | correct",
    ),
    (model("transformer", (80,), layers=10**9), "'layers' | at most 1000 | layers = 4"),
    (model("unet", depth=10**6), "'depth' | at most 1000 | depth = 2"),
    (model("vgg11", (32, 32, 3), width=1e30), "width = 1e+30 | at most 100 | use 1.0"),
    (too_wide, "'mlp' of 1e+12 parameters | at most 1e+10 | narrower"),
]

BEYOND_64_BITS: list[Case] = [
    (method("fedavg", learning_rate=10**30), f"'learning_rate' = 10 | {FINITE} | correct"),
    (method("fedavg", weight_decay=10**5000), f"whole number of 16610 bits | {FINITE} | = 0.0"),
    (method("fedavg", batch_size=10**30), f"'batch_size' = 10 | {BITS_32} | batch_size = 20"),
    (method("fedavg", clip_norm=10**400), f"'clip_norm' = | {FINITE} | correct clip_norm"),
    (ran(chunk=10**30), f"'chunk' = 10 | {BITS_32} | correct chunk"),
    (ran(seed=2**63), "'seed' = 9223372036854775808 | at most 4294967295 | seed = 0"),
    (ran(eval_every_s=10**400), f"'eval_every_s' = | {FINITE} | correct eval_every_s"),
    (model("leaf_cnn", hidden=10**30), "'hidden' = 10 | at most 10000000 | hidden = 512"),
    (of_fleet("uniform", seed=2**63), "'seed' = 92 | fits 64 bits | seed = 0"),
    (
        method("fedavg", client_optimizer={"name": "adam", "eps": 10**400}),
        "'adam', eps = <whole number of 1329 bits> | at least 0 and finite | optax's",
    ),
    (
        method("fedavg", schedule=lambda round: 10**400),
        "schedule(0) = <whole | must be a | round 0",
    ),
    (
        lambda here: transforms.select.oort(alpha=10**400),
        f"'alpha' = <whole | {FINITE} | alpha = 2.0",
    ),
    (lambda here: objectives.regression(delta=10**30), f"'delta' = 10 | {FINITE} | delta = 1.0"),
    (
        lambda here: algorithms.fedprox(problem(), mu=10**400),
        f"'mu' = <whole | {FINITE} | mu = 0.1",
    ),
    (lambda here: Fleet(np.ones(2), latency_s=10**30), "latency_s = 10 | numbers | per device"),
    (arrays(per_client_cap=10**30), f"per_client_cap = 10 | {BITS_32} | can be held"),
]

UNPHYSICAL: list[Case] = [
    (of_fleet("adel", max_communication_s=1e308), f"= 1e+308 | {FINITE} | = 1.0"),
    (of_fleet("adel", max_communication_s=-1), "= -1 | at least 0 | use 1"),
    (of_fleet("adel", max_communication_s=NAN), f"= nan | {FINITE} | = 1.0"),
    (of_fleet("adel", drift_every_s=NAN), f"'drift_every_s' = nan | {FINITE} | = 10.0"),
    (of_fleet("adel", drift_until_s=-1), "until_s = -1 | positive | until_s=200"),
    (of_fleet("uniform", flops_per_s=1e308), f"'flops_per_s' = 1e+308 | {FINITE} | = 1000"),
    (of_fleet("uniform", flops_per_s=1j), "'flops_per_s' = 1j | must be a number | = 1000"),
    (of_fleet("uniform", flops_per_s=True), "'flops_per_s' = True | must be a number | = 1000"),
    (of_fleet("uniform", failure_rate=[]), "'failure_rate' = [] | must be a number | = 0.0"),
    (of_fleet("prfl", sigma=2**40), "sigma = 1099511627776 | at most 10 | use 0.3"),
    (
        lambda here: Fleet(np.full(2, 1e308)),
        "flops_per_s = [1.e+308] of device [0] | from 1e-30 to 1e+30 | unit",
    ),
    (lambda here: Fleet(np.full(2, 1j)), "flops_per_s | must be numbers | per device"),
    (lambda here: Fleet(np.full(2, True)), "flops_per_s = array([ True | numbers | per device"),
    (lambda here: Fleet(np.ones(2), groups=[0, [1]]), "groups = [0, [1]] | 2 integers | from 0"),
    (lambda here: Fleet(np.ones(2), groups=10**12), "groups = 10 | at most 1000000 | from 0"),
    (arrays(normalise=(0.0, 1e-320)), "std = (1e-320,) | of at least 1e-30 | per channel"),
    (trained(data__normalise=(0.0, 1e-320)), f"'normalise' | {FINITE} | correct"),
    (layered(total_s=1e308), f"'total_s' = 1e+308 | {FINITE} | correct total_s"),
    (layered(learning_rate=1e-308), f"'learning_rate' = 1e-308 | {FINITE} | correct"),
    (layered(shortest_s=NAN), f"'shortest_s' = nan | {FINITE} or None | correct shortest_s"),
    (layered(shortest_s=-1), "shortest_s = -1 | at least 0 | leave it out"),
    (
        method("prfl", recovery=None, links={"server_jitter": 1e9}),
        "jitter 1000000000.0 | at most 10 | use inf",
    ),
    (method("fedavg", learning_rate=1j), "'learning_rate' = 1j | must be a number | correct"),
    (method("fedavg", momentum=True), "'momentum' = True | must be a number | momentum = 0.0"),
    (method("fedavg", schedule=lambda round: 1j), "schedule(0) = 1j | must be a number | round 0"),
    (method("fedavg", schedule=lambda round: True), "schedule(0) = True | a number | round 0"),
    (method("fedpmt", capacity=lambda round: [1j] * 4), "capacity = [1j | numbers | divide"),
    (method("feddrop", capacity=[]), "capacity of shape (0,) | each of the 4 clients | divide"),
    (
        lambda here: transforms.attack.sign_flip(clients=[None, 1]),
        "'clients' = [None, 1] | each a whole number | correct clients",
    ),
    (
        lambda here: transforms.attack.sign_flip(clients=[0, [1]]),  # type: ignore[list-item]
        "'clients' = [0, [1]] | each a whole number | correct clients",
    ),
    (
        lambda here: transforms.privacy.gaussian(clip=NAN, noise=0.0),
        "'clip' = nan | inf or a finite number | correct clip",
    ),
    (model("leaf_cnn", hidden=0), "hidden = 0 | must be positive | use 512"),
    (arrays(classes=3), "'classes' = 3 | a list, each text or None | correct classes"),
    (arrays(seed=1j), "'seed' = 1j | a whole number | seed = 0"),
    (arrays(validation_fraction=1j), "validation_fraction = 1j | below 1 | one tenth"),
    (ran(name="a" * 10_000), "name of 10000 characters | at most 200 | shorter one"),
    (ran(max_virtual_s=-INF), "max_virtual_s = -inf | positive number | leave it out"),
    (labelled(""), "label '' | names a directory | 'FedAvg'"),
    (labelled("ü" * 150), "label 'üüü | 1 to 200 bytes | 'FedAvg'"),
    (
        lambda here: algorithms.build(
            "dtfl",
            Problem(models.with_exits(problem().model), problem().data, problem().fleet),
            learning_rate=0.1,
            scheduler={"initial_tier": 7},
        ),
        "initial_tier = 7 | a tier from 1 to 1 | leaves most",
    ),
]

CASES = [*WRAPPED, *UNBOUNDED, *BEYOND_64_BITS, *UNPHYSICAL]
