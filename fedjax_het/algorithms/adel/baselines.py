"""Baselines of ADEL-FL in the same model of time: SALF, drop-stragglers and wait-for-all."""

import functools
from collections.abc import Callable
from typing import Any, Unpack

import jax
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.bound import AUTHORS, bound_of, require_budget, require_planned
from fedjax_het.algorithms.adel.depths import on_batch_statistics
from fedjax_het.algorithms.adel.merging import (
    OWN_DEADLINE,
    LayerMerge,
    Rule,
    Tally,
    empty_tally,
    layer_merge,
)
from fedjax_het.algorithms.adel.planning import make_plan, preview
from fedjax_het.algorithms.adel.workload import (
    Attempt,
    Layered,
    LayeredKeywords,
    Setting,
    prepare,
)
from fedjax_het.algorithms.registry import register
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm, Report, Variables
from fedjax_het.contract.clock import barrier, deadline
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation
from fedjax_het.contract.preview import Preview
from fedjax_het.problem import Problem


@register(options=Layered)
def salf(
    problem: Problem,
    *,
    rounds: Count,
    total_s: float,
    batch_scale: float = 1.0,
    aggregator: Rule | None = None,
    propensity_floor: float = 0.0,
    straggler_share: float | None = None,
    **layered: Unpack[LayeredKeywords],
) -> Algorithm:
    r"""SALF: equal deadlines, and an unbiased merge of the layers that each client finishes.

    Args:
      problem: model, data and fleet.
      rounds: number of planned rounds, R; a run cannot be longer.
      total_s: virtual seconds for all rounds together, T_max.
      batch_scale: constant batch scale m; batches are $m P_u (T - B_u) / T$, in the unit of `adel`.
      aggregator: merge rule as in `adel`. With stragglers the default is "corrected" if all clients
        are stragglers, and otherwise "ipw", because the clients then differ.
      propensity_floor: smallest divisor of `ipw`, as in `adel`.
      straggler_share: share of stragglers, the slowest clients. A straggler finishes a uniform
        number 1..L of layers, so $q^l = 1 - l/L$, and all other clients finish all layers, which is
        SALF's own model. None draws depths from layer times, as in the ADEL-FL authors' comparison.
      **layered: fields of `Layered`; `learning_rate` is required.

    References:
      SALF, arXiv 2403.18375. Its correction constant was not available, so the constant of `adel`
      is used with $p^l = \prod_u q_u^l$ (methods/adel_fl.md 5).
    """
    setting = prepare(problem, Layered.parse(layered))
    deadline_s, scale = _equal(setting, rounds, total_s, batch_scale)
    capacity = setting.largest_batch(np.full(1, deadline_s), scale)
    layers = setting.layers.number
    slow, unbiased = None, setting.unbiased
    if straggler_share is not None:
        slow = slowest(setting.power, straggler_share)
        unbiased = "corrected" if slow.all() else "ipw"
    merge = layer_merge(aggregator, propensity_floor, unbiased)

    def plan(state: Tally, variables: Variables, situation: Situation) -> tuple[Plan, Tally]:
        del variables
        clients = situation.clients
        require_planned(situation.round, rounds)
        work = setting.workload(clients, deadline_s, scale, capacity)
        if slow is None:
            tried = setting.attempt(situation, work)
        else:
            missed = straggler_misses(slow[clients], layers)
            drawn = situation.rng.integers(1, layers, len(clients), endpoint=True)
            depth = np.where(slow[clients], drawn, layers)
            tried = Attempt(missed, depth, work.last_moment_s)
        tasks, sent = setting.layered_tasks(situation, merge, work, tried)
        return tasks, state.add(clients, merge, tried.missed, sent)

    return Algorithm(
        name="salf",
        init=_tally(setting),
        plan=plan,
        mask=setting.layers.mask,
        local=setting.local_update(capacity, on_batch_statistics(problem.model)),
        merge=merge.aggregator(setting.layers.ids),
        update=parts.replace,
        observe=_report,
        pace=deadline("drop"),
        cohort_size=setting.cohort,
        paces=OWN_DEADLINE,
        preview=functools.partial(_preview, "salf", setting, rounds, deadline_s, scale, capacity),
    )


def slowest(power: np.ndarray, share: float) -> np.ndarray:
    """Mask of SALF's stragglers, bool[n].

    Args:
      power: power of the devices in samples x layers per second, float64[n].
      share: share of the clients that are stragglers.
    """
    require(
        0 < share <= 1,
        f"straggler_share = {share}",
        "must lie in (0, 1]",
        "use 0.9, or leave it out to draw depths from layer times",
    )
    slow = np.zeros(power.size, bool)
    slow[np.argsort(power, kind="stable")[: round(share * power.size)]] = True
    return slow


def straggler_misses(slow: np.ndarray, layers: int) -> np.ndarray:
    r"""Miss probabilities: $q^l = 1 - l/L$ for SALF's stragglers, 0 for the others; float64[k, L].

    Args:
      slow: mask of the stragglers among the clients, bool[k].
      layers: number of layers, L; the first entry of its axis is the input side, l = 1.
    """
    each = 1.0 - np.arange(1, layers + 1) / layers
    return np.where(slow[:, None], each[None, :], 0.0)


@register(options=Layered)
def adel_drop(
    problem: Problem,
    *,
    rounds: Count,
    total_s: float,
    batch_scale: float = 1.0,
    zero_fill: bool = False,
    **layered: Unpack[LayeredKeywords],
) -> Algorithm:
    """Drop-stragglers in ADEL-FL's model of time: equal deadlines, all layers or none.

    Args:
      problem: model, data and fleet.
      rounds: number of planned rounds, as in `salf`.
      total_s: virtual seconds for all rounds together, as in `salf`.
      batch_scale: constant batch scale, as in `salf`.
      zero_fill: whether dropped clients count as updates of zero, as in the authors' code.
        Otherwise the mean is over the clients that finish, and a round without such clients changes
        nothing.
      **layered: fields of `Layered`; `learning_rate` is required.

    References:
      methods/adel_fl.md 5, A14.
    """
    setting = prepare(problem, Layered.parse(layered))
    deadline_s, scale = _equal(setting, rounds, total_s, batch_scale)
    capacity = setting.largest_batch(np.full(1, deadline_s), scale)
    layers = setting.layers.number
    merge = LayerMerge("zero_fill" if zero_fill else "mean")

    def plan(state: Tally, variables: Variables, situation: Situation) -> tuple[Plan, Tally]:
        del variables
        clients = situation.clients
        require_planned(situation.round, rounds)
        work = setting.workload(clients, deadline_s, scale, capacity)
        # A client that misses the last layer, at the input side, misses all layers.
        missed = np.repeat(setting.missed(work)[:, :1], layers, axis=1)
        whole_s = setting.layer_times(situation, work)[:, -1]
        full, shared = np.full(len(clients), layers), merge.inputs(missed)[1]
        tasks = setting.tasks(situation, work, full, whole_s, shared=shared)
        depth = np.where(tasks.timing.total_s <= deadline_s, layers, 0)
        return tasks, state.add(clients, merge, missed, depth)

    return Algorithm(
        name="adel_drop",
        init=_tally(setting),
        plan=plan,
        mask=None,
        local=setting.local_update(capacity),
        merge=merge.aggregator(setting.layers.ids),
        update=parts.replace,
        observe=_report,
        pace=deadline("drop"),
        cohort_size=setting.cohort,
        paces=OWN_DEADLINE,
        preview=functools.partial(
            _preview, "adel_drop", setting, rounds, deadline_s, scale, capacity
        ),
    )


@register(options=Layered)
def adel_wait(
    problem: Problem, *, batch_scale: float = 1.0, **layered: Unpack[LayeredKeywords]
) -> Algorithm:
    r"""Wait-for-all in ADEL-FL's model of time: a round lasts $\max_u B_u + \Gamma(L, S_u / P_u)$.

    There are no deadlines; `run.max_virtual_s` ends the run.

    Args:
      problem: model, data and fleet.
      batch_scale: constant batch scale m; batches are $m P_u$, in the unit of `adel`.
      **layered: fields of `Layered`; `learning_rate` is required.

    References:
      methods/adel_fl.md 5, A15.
    """
    setting = prepare(problem, Layered.parse(layered))
    scale = _scale(setting, batch_scale)
    capacity = setting.largest_batch(np.full(1, np.inf), scale)

    def tasks(situation: Situation) -> Plan:
        work = setting.workload(situation.clients, np.inf, scale, capacity)
        whole_s = setting.layer_times(situation, work)[:, -1]
        full = np.full(len(situation.clients), setting.layers.number)
        return setting.tasks(situation, work, full, whole_s)

    return Algorithm(
        name="adel_wait",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=None,
        local=setting.local_update(capacity),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=setting.cohort,
        paces=Paces(overlap=True),
    )


def _tally(setting: Setting) -> Callable[[Variables, jax.Array], Tally]:
    def init(variables: Variables, key: jax.Array) -> Tally:
        del variables, key
        return empty_tally(setting.problem.num_clients, setting.layers.number)

    return init


def _report(
    state: Tally, variables: Variables, report: Report
) -> tuple[Tally, Variables, dict[str, Any]]:
    return state, variables, state.summary(report.plan.shared["merge_probability"])


def _scale(setting: Setting, batch_scale: float) -> float:
    """Scale of the batch rule, m, in seconds per layer."""
    require(
        0 < batch_scale < np.inf,
        f"batch_scale = {batch_scale}",
        "must be positive",
        "use 1.0 for batches of about batch_size",
    )
    return batch_scale * setting.unit_s


def _equal(
    setting: Setting, rounds: int, total_s: float, batch_scale: float
) -> tuple[float, float]:
    """The deadline of every round, T_max / R, checked for the fastest client, and m."""
    require_budget(rounds, total_s)
    least_s = float(np.min(setting.communication_s))
    require(
        total_s / rounds > least_s,
        f"total_s = {total_s} for rounds = {rounds}",
        f"must leave more than the {least_s:.4g} s a round that the best client communicates",
        f"give more than {rounds * least_s:.4g} s, or plan fewer rounds",
    )
    return total_s / rounds, _scale(setting, batch_scale)


def _preview(
    name: str, setting: Setting, rounds: int, deadline_s: float, scale: float, max_batch: int
) -> Preview:
    bound = bound_of(setting, rounds, setting.power, AUTHORS)
    equal = make_plan(bound, np.full(rounds, deadline_s), scale)
    return preview(name, setting, equal, max_batch)
