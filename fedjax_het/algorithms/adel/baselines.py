"""What ADEL-FL is compared with, in the same model of time: SALF, drop-stragglers, wait-for-all."""

from typing import Any

import jax
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.depths import depths_reached
from fedjax_het.algorithms.adel.layers import on_batch_statistics
from fedjax_het.algorithms.adel.merging import Rule, merge_inputs, merge_rule
from fedjax_het.algorithms.adel.options import EqualDeadlines, Waiting
from fedjax_het.algorithms.adel.rounds import (
    compute_until,
    last_moment,
    layer_mask,
    layered_tasks,
    require_planned,
    require_rule,
)
from fedjax_het.algorithms.adel.tally import Tally, count, empty_tally, summary
from fedjax_het.algorithms.adel.workload import Setting, prepare
from fedjax_het.algorithms.registry import register
from fedjax_het.common.errors import require
from fedjax_het.contract.algorithm import Algorithm, Report, Schedule, Variables
from fedjax_het.contract.clock import barrier, deadline
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem


@register(options=EqualDeadlines)
def salf(
    problem: Problem,
    *,
    aggregator: Rule | None = None,
    propensity_floor: float = 0.0,
    straggler_share: float | None = None,
    **layered: Any,
) -> Algorithm:
    r"""SALF: equal deadlines, every client sends the layers it finished, merged without bias.

    Args:
      problem: model, data and fleet.
      aggregator: as in `adel`; with stragglers the default is "corrected" if everyone is one, and
        "ipw" if not, since clients then differ.
      propensity_floor: as in `adel`.
      straggler_share: None draws depths from layer times, as the ADEL-FL authors compare. A share
        is SALF's own model instead: that share of the clients, the slowest, finishes a uniform
        number 1..L of layers, everyone else all of them; $q^l = 1 - l/L$ for a straggler.
      **layered: see `EqualDeadlines`.

    References:
      SALF, arXiv 2403.18375; its own correction constant was not available, so that of `adel` is
      used with $p^l = \prod_u q_u^l$.
    """
    options = EqualDeadlines.parse(layered)
    setting = prepare(problem, options)
    deadline_s, scale = _equal_deadline(setting, options), options.batch_scale * setting.unit_s
    room = setting.largest_batch(np.full(1, deadline_s), scale)
    layers = setting.layers.number
    rule = require_rule(aggregator, options.rates, propensity_floor)
    slow = np.zeros(problem.num_clients, bool)
    if straggler_share is not None:
        require(
            0 < straggler_share <= 1,
            f"straggler_share = {straggler_share}",
            "must lie in (0, 1]",
            "use 0.9, or leave it out to draw depths from layer times",
        )
        number = round(straggler_share * problem.num_clients)
        slow[np.argsort(setting.power, kind="stable")[:number]] = True
        if aggregator is None:
            rule = "corrected" if slow.all() else "ipw"

    def plan(state: Tally, variables: Variables, situation: Situation) -> tuple[Plan, Tally]:
        del variables
        clients = situation.clients
        require_planned(situation.round, options.rounds)
        work = setting.workload(clients, deadline_s, scale, room)
        if straggler_share is None:
            missed = setting.missed(clients, work, setting.power)
            finished_s = setting.layer_times(situation, work)
            depth = depths_reached(finished_s, work.window_s)
            compute_s = compute_until(work, depth, finished_s)
        else:
            missed = straggler_misses(slow[clients], layers)
            drawn = situation.rng.integers(1, layers, len(clients), endpoint=True)
            depth = np.where(slow[clients], drawn, layers)
            compute_s = last_moment(work)
        tasks, depth = layered_tasks(
            setting, situation, rule, propensity_floor, work, missed, depth, compute_s
        )
        return tasks, count(state, clients, rule, missed, depth, propensity_floor)

    return Algorithm(
        name="salf",
        init=_tally(setting),
        plan=plan,
        mask=layer_mask(setting),
        local=setting.local_update(room, on_batch_statistics(problem.model)),
        merge=merge_rule(rule, setting.layers.ids),
        update=parts.replace,
        observe=_report,
        pace=deadline("drop"),
        cohort_size=setting.cohort,
    )


def straggler_misses(slow: np.ndarray, layers: int) -> np.ndarray:
    r"""float64[k, L]: $q^l = 1 - l/L$ for stragglers of uniform depth 1..L, 0 for the others.

    Args:
      slow: bool[k].
      layers: L; the first axis entry is the input side, l = 1.
    """
    each = 1.0 - np.arange(1, layers + 1) / layers
    return np.where(slow[:, None], each[None, :], 0.0)


@register(options=EqualDeadlines)
def adel_drop(
    problem: Problem,
    *,
    zero_fill: bool = False,
    **layered: Any,
) -> Algorithm:
    """Drop-stragglers in ADEL-FL's model of time: equal deadlines, all layers or nothing.

    Args:
      problem: model, data and fleet.
      zero_fill: count dropped clients as updates of zero, like the authors' code; otherwise the
        mean is over those who finished, and a round that nobody finishes is skipped.
      **layered: see `EqualDeadlines`.
    """
    options = EqualDeadlines.parse(layered)
    setting = prepare(problem, options)
    deadline_s, scale = _equal_deadline(setting, options), options.batch_scale * setting.unit_s
    room = setting.largest_batch(np.full(1, deadline_s), scale)
    layers = setting.layers.number
    rule: Rule = "zero_fill" if zero_fill else "mean"

    def plan(state: Tally, variables: Variables, situation: Situation) -> tuple[Plan, Tally]:
        del variables
        clients = situation.clients
        require_planned(situation.round, options.rounds)
        work = setting.workload(clients, deadline_s, scale, room)
        # All layers are missed when the last one, at the input side, is.
        missed = np.repeat(setting.missed(clients, work, setting.power)[:, :1], layers, axis=1)
        whole_s = setting.layer_times(situation, work)[:, -1]
        shared = merge_inputs(rule, missed)[1]
        full = np.full(len(clients), layers)
        tasks = setting.tasks(situation, work, full, whole_s, shared=shared)
        depth = np.where(tasks.timing.total_s <= deadline_s, layers, 0)
        return tasks, count(state, clients, rule, missed, depth)

    return Algorithm(
        name="adel_drop",
        init=_tally(setting),
        plan=plan,
        mask=None,
        local=setting.local_update(room),
        merge=merge_rule(rule, setting.layers.ids),
        update=parts.replace,
        observe=_report,
        pace=deadline("drop"),
        cohort_size=setting.cohort,
    )


@register(options=Waiting)
def adel_wait(problem: Problem, **layered: Any) -> Algorithm:
    r"""Wait-for-all in ADEL-FL's model of time: a round lasts $\max_u B_u + \Gamma(L, S_u / P_u)$.

    There are no deadlines to plan; `run.max_virtual_s` ends the run.

    Args:
      problem: model, data and fleet.
      **layered: see `Waiting`.
    """
    options = Waiting.parse(layered)
    setting = prepare(problem, options)
    scale = options.batch_scale * setting.unit_s
    room = setting.largest_batch(np.full(1, np.inf), scale)

    def tasks(situation: Situation) -> Plan:
        work = setting.workload(situation.clients, np.inf, scale, room)
        whole_s = setting.layer_times(situation, work)[:, -1]
        full = np.full(len(situation.clients), setting.layers.number)
        return setting.tasks(situation, work, full, whole_s)

    return Algorithm(
        name="adel_wait",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=None,
        local=setting.local_update(room),
        merge=merge_rule("mean", setting.layers.ids),
        update=parts.replace,
        pace=barrier(),
        cohort_size=setting.cohort,
    )


def _tally(setting: Setting) -> Any:
    def init(variables: Variables, key: jax.Array) -> Tally:
        del variables, key
        return empty_tally(setting.problem.num_clients, setting.layers.number)

    return init


def _report(
    state: Tally, variables: Variables, report: Report
) -> tuple[Tally, Variables, dict[str, Any]]:
    return state, variables, summary(state, report.plan.shared["merge_probability"])


def _equal_deadline(setting: Setting, options: EqualDeadlines) -> float:
    """T_max / R, if that is time enough for anyone."""
    rounds, total_s = options.rounds, options.total_s
    least_s = float(np.min(setting.communication_s))
    require(
        total_s / rounds > least_s,
        f"total_s = {total_s} for rounds = {rounds}",
        f"must leave more than the {least_s:.4g} s a round that the best client communicates",
        f"give more than {rounds * least_s:.4g} s, or plan fewer rounds",
    )
    return total_s / rounds
