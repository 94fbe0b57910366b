"""Selections of clients, and compositions of methods."""

import numpy as np
from malformed.case import BASE, Call, Case, method, problem, trained

import fedjax_het as fh
from fedjax_het import algorithms, data, models


def selected(select: object, **options: object) -> Call:
    """Makes FedAvg with a selection."""
    return method("fedavg", select=select, **options)


def composed(*transformations: object) -> Call:
    """Composes FedAvg with something."""
    plain = {"learning_rate": 0.1}
    return lambda here: fh.compose(algorithms.fedavg(problem(), **plain), *transformations)


def many_tiers(here: object) -> None:
    fh.simulate(method("fedavg", select={"name": "tifl", "tiers": 5})(here), problem(), rounds=1)


def without_owners(here: object) -> None:
    """Sequences of labels, of which no client's accuracy can be estimated."""
    x = np.zeros((8, 3), np.int32)
    owner = np.repeat(np.arange(4), 2)
    texts = data.from_arrays(x, x, x[:2], x[:2], clients=owner, num_classes=5)
    network = models.build("char_lstm", (3,), 5, units=4, embedding=2)
    talk = fh.Problem(network, texts, problem().fleet)
    tiers = algorithms.fedavg(talk, learning_rate=0.1, select="tifl")
    fh.simulate(tiers, talk, rounds=1)


CASES: list[Case] = [
    (selected("ort"), "select 'ort' | must be one of fedcs, oort | did you mean 'oort'?"),
    (selected({"cut": 0.7}), "without a name, ['cut'] | must have a name | add it, e.g. 'name'"),
    (selected({"name": "oort", "cutoff": 1}), "select 'oort' 'cutoff' | must be one of | 'cut'"),
    (selected({"name": "oort", "cut": 2.0}), "cut = 2.0 | must lie in (0, 1] | 0.95"),
    (selected({"name": "oort", "exploration": -1}), "exploration = -1 | [0, 1] | leave it out"),
    (selected({"name": "oort", "alpha": -1}), "alpha = -1 | at least 0 | ignore the speed"),
    (selected({"name": "oort", "alpha": "x"}), "'alpha' = 'x' | must be a number | alpha = 2.0"),
    (selected({"name": "oort", "pacer_rounds": 0}), "pacer_rounds = 0 | at least 1 | leave it"),
    (selected({"name": "oort", "pacer_step": -5}), "pacer_step = -5 | at least 0 | no pacer"),
    (selected({"name": "oort", "preferred_percent": 0}), "percent = 0 | (0, 100] | nobody"),
    (selected("power_of_choice"), "'d' is missing | a whole number | add d"),
    (selected({"name": "power_of_choice", "d": 0}), "d = 0 | at least 1 client | twice"),
    (
        selected({"name": "power_of_choice", "d": 2}),
        "d = 2 of power_of_choice | the cohort of 4 clients | twice",
    ),
    (selected({"name": "tifl", "tiers": 0}), "tiers = 0 | at least 1 | use 5"),
    (selected({"name": "tifl", "interval": 0}), "interval = 0 | at least 1 round | use 20"),
    (selected({"name": "tifl", "rounds": 0}), "rounds = 0 | at least 1 | the rounds of the run"),
    (many_tiers, "tiers = 5 | at most the 4 clients | fewer tiers"),
    (without_owners, "select of fedavg with test samples of no client | its own | by oort"),
    (selected("fedcs"), "'deadline_s' is missing | a number | add deadline_s"),
    (selected({"name": "fedcs", "deadline_s": 0}), "deadline_s = 0 | must be positive | 180"),
    (
        selected({"name": "fedcs", "deadline_s": 1, "asked": 0}),
        "asked = 0 | at least 1 client | ten times",
    ),
    (selected(3), "'select' = 3 | must be text or | correct select"),
    (composed(fh.select.oort), "transformation 1, 'oort' | must be a function | select.oort()"),
    (composed(fh.select.uniform), "transformation 1, 'uniform' | a function | call its factory"),
    (composed(fh.select.uniform(), "oort"), "transformation 2, 'oort' | a function | call"),
    (composed(lambda algorithm: None), "transformation 1 | from one Algorithm | call its factory"),
    (
        lambda here: fh.compose(fh.select.oort(), fh.select.oort()),
        "compose of a function | begins with an Algorithm | call the factory",
    ),
    (
        trained(algorithm={**BASE["algorithm"], "select": {"name": "tifl", "tier": 2}}),
        "'tifl' 'tier' | must be one of interval, rounds, tiers | did you mean 'tiers'?",
    ),
]
