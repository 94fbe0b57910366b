"""Candidates, settled tasks and draws, by which selections are tested without training."""

import itertools

import numpy as np
from problems import digits_problem

import fedjax_het as fh
from fedjax_het.contract.plan import Timing
from fedjax_het.contract.selection import Candidates, Pool, Seen
from fedjax_het.engine.selecting import nothing_known

SAMPLES = np.asarray([10, 20, 30, 40])


def selection(transformation):
    """What the transformation makes of a method's selection."""
    return transformation(fh.algorithms.fedavg(digits_problem(), learning_rate=0.1)).select


def candidates(wanted, *, round=0, clients=None, samples=SAMPLES, seed=0, duration_s=None, **known):
    n = len(samples)
    duration_s = np.ones(n) if duration_s is None else np.asarray(duration_s, np.float64)

    def price(asked):
        none = np.zeros(len(asked))
        return Timing(none, duration_s[asked], none, none, none, none)

    return Candidates(
        round=round,
        now_s=0.0,
        pool=Pool(np.arange(n) if clients is None else np.asarray(clients)),
        wanted=wanted,
        rng=np.random.default_rng(seed),
        samples=np.asarray(samples),
        running=lambda: np.cumsum(samples, dtype=np.float64),
        known=nothing_known(n)._replace(**{k: np.asarray(v) for k, v in known.items()}),
        price=price,
    )


def seen(round, clients, loss, *, status="merged", samples=None, sizes=None):
    k = len(clients)
    sizes = np.full(k, 100) if sizes is None else np.asarray(sizes)
    return Seen(
        round=round,
        clients=np.asarray(clients),
        status=np.broadcast_to(np.asarray(status), k),
        loss=np.asarray(loss, np.float64),
        square_loss=np.square(np.asarray(loss, np.float64)),
        samples=sizes if samples is None else np.asarray(samples),
        sizes=sizes,
        duration_s=np.ones(k),
    )


def inclusion(weight, count):
    """Probability of each client to be among `count` drawn in proportion to weights, exactly."""
    chance = np.zeros(len(weight))
    for order in itertools.permutations(range(len(weight)), count):
        p, rest = 1.0, sum(weight)
        for i in order:
            p *= weight[i] / rest
            rest -= weight[i]
        chance[list(order)] += p
    return chance


def assert_drawn_with(chance, counts, draws):
    """Within four standard errors of the frequencies."""
    error = np.sqrt(chance * (1 - chance) / draws)
    assert np.all(np.abs(counts / draws - chance) <= 4 * error + 1e-12)


def counted(draws, choose, n):
    counts = np.zeros(n)
    for seed in range(draws):
        chosen = choose(seed)
        assert len(np.unique(chosen)) == len(chosen)
        counts[chosen] += 1
    return counts
