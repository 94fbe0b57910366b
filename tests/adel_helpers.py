"""Problems and draws that the tests of ADEL-FL share; importable as `adel_helpers`."""

import functools
from typing import Any

import jax
import numpy as np
from problems import digits

from fedjax_het.contract.plan import Situation
from fedjax_het.fleet.cost import cost_table
from fedjax_het.fleet.device import Fleet
from fedjax_het.fleet.presets import build as build_fleet
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem


def draws(users: int, layers: int, rate: Any, number: int, seed: int = 0) -> np.ndarray:
    """int64[number, users] depths: Poisson(rate) layers, at most all of them."""
    counts = np.random.default_rng(seed).poisson(rate, (number, users))
    return np.minimum(counts, layers)


@functools.cache
def adel_problem(
    users: int = 8,
    samples: int = 40,
    hidden: tuple[int, ...] = (24, 16),
    stages: int | None = None,
    mean_power: int = 24,
    **fleet: Any,
) -> Problem:
    """Digits on the ADEL-FL fleet; powers in samples x layers per second of this very network.

    With `batch_size=mean_power` a `batch_scale` is in seconds per layer, the m of the paper.
    """
    model = mlp((64,), 10, hidden=hidden)
    stages = model.num_blocks if stages is None else stages
    unit = float(cost_table(model).step_flops()) / stages

    def with_mean(max_power: float) -> Fleet:
        return build_fleet(
            "adel",
            users,
            stages=stages,
            flops_per_sample_layer=unit,
            max_power=max_power,
            min_share=0.2,
            max_communication_s=0.5,
            **fleet,
        )

    found = float(with_mean(1.0).flops_per_s.mean()) / unit
    devices = with_mean(mean_power / found)
    return Problem(model, digits((samples,) * users), devices)


def situations(problem: Problem, rounds: int, *, seed: int = 0, every_s: float = 1.0) -> Any:
    """What `plan` is given in one round after another."""
    everyone = np.arange(problem.num_clients)
    for round in range(rounds):
        rng = np.random.default_rng([seed, round])
        key = jax.random.fold_in(jax.random.key(seed), round)
        yield Situation(round, every_s * round, everyone, key, rng)
