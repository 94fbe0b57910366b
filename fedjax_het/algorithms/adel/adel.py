"""ADEL-FL: planned deadlines and batches, and an unbiased merge of layers."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.bound import AUTHORS, Constants, require_planned
from fedjax_het.algorithms.adel.depths import on_batch_statistics
from fedjax_het.algorithms.adel.merging import (
    OWN_DEADLINE,
    Rule,
    Tally,
    empty_tally,
    layer_merge,
)
from fedjax_het.algorithms.adel.online import Learned, Online
from fedjax_het.algorithms.adel.planning import Solver, make_planner, preview
from fedjax_het.algorithms.adel.workload import Layered, LayeredKeywords, prepare
from fedjax_het.algorithms.registry import register
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.contract.algorithm import Algorithm, Report, Variables
from fedjax_het.contract.clock import deadline
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem


class AdelState(NamedTuple):
    """State between rounds; NumPy only, so that a resumed run plans with the same bits.

    Attributes:
      deadlines_s: deadlines T of all rounds, float64[R].
      scale: batch scale m, float64[].
      tally: counts for the records.
      learned: estimates of the devices' speeds; None without `online`.
    """

    deadlines_s: np.ndarray
    scale: np.ndarray
    tally: Tally
    learned: Learned | None


@register(options=Layered)
def adel(
    problem: Problem,
    *,
    rounds: Count,
    total_s: float,
    batch_scale: Sequence[float] = (0.5, 1.2),
    max_miss: float = 0.45,
    shortest_s: float | None = None,
    constants: Constants = AUTHORS,
    solver: Solver = "water_filling",
    aggregator: Rule | None = None,
    propensity_floor: float = 0.0,
    online: Online | None = None,
    **layered: Unpack[LayeredKeywords],
) -> Algorithm:
    r"""ADEL-FL: jointly planned deadlines and batch sizes, and an unbiased merge of layers.

    Every client takes one SGD step per round on $S_u = m P_u (T_t - B_u) / T_t$ samples and sends
    the layers whose gradient is ready at the deadline $T_t$, output side first. With exponential
    layer times every client finishes Poisson($T_t / m$) layers. The server thus knows the
    probability $p_t^l$ that no client finishes layer l, and

    $w^l \leftarrow w^l + \frac{1}{1 - p_t^l} \frac{1}{K} \sum_{u : d_u \ge L+1-l} \Delta_u^l$

    is in expectation the step of FedAvg. Deadlines and m minimise a convergence bound under
    $\sum_t T_t \le T_{max}$ (`Bound`, `plan_deadlines`).

    Warning: the authors' published code divides by U instead (`aggregator="zero_fill"`), which is
    biased towards zero. It also plans beyond the pole of the bound, which `max_miss` excludes.

    Args:
      problem: model, data and fleet; `fleet.build("adel", ...)` is the paper's fleet.
      rounds: number of planned rounds, R; a run cannot be longer.
      total_s: virtual seconds for all rounds together, T_max.
      batch_scale: smallest and largest m, in units of the time that a device of mean power takes
        for a layer of `batch_size` samples. At scale 1 its batch has about `batch_size` samples.
      max_miss: largest probability p_max < 1/2 that no client finishes the input layer.
      shortest_s: shortest deadline; None leaves every client some time after its communication. A
        client with a longer communication time misses the rounds that are too short for it.
      constants: assumptions of the bound; by default those of the authors' code.
      solver: solver of the plan: "water_filling", exact and fast, or "trust_constr", as in the
        paper.
      aggregator: merge rule: "corrected" (the rule above), "ipw" (inverse propensity of each
        client, unbiased for unequal rates), "zero_fill" or "mean". None means "corrected" for ideal
        and "ipw" for physical rates.
      propensity_floor: smallest divisor of `ipw`; a value above 0 reduces variance and adds bias.
      online: options of an extension that learns each client's power from the layers it finishes,
        starting from the fleet's nominal speeds, and plans accordingly; needs physical rates. None
        keeps the nominal speeds.
      **layered: fields of `Layered`; `learning_rate` is required.

    Returns:
      The algorithm. Its `info` holds per layer the assumed and the observed probability of a miss
      and the mean weight of an update so far (1 if the merge is unbiased).

    References:
      ADEL-FL, arXiv 2505.23973. Only its abstract and the authors' code were available. The form of
      the correction follows from unbiasedness, and the objective is that of the code
      (methods/adel_fl.md 2.1, 3.1, 6.1).
    """
    setting = prepare(problem, Layered.parse(layered))
    planner = make_planner(
        setting,
        rounds=rounds,
        total_s=total_s,
        batch_scale=batch_scale,
        max_miss=max_miss,
        shortest_s=shortest_s,
        constants=constants,
        solver=solver,
    )
    merge = layer_merge(aggregator, propensity_floor, setting.unbiased)
    rates = setting.options.rates
    require(
        online is None or rates == "physical",
        f"online = {online} with rates = {rates!r}",
        "ideal layer times do not depend on the devices' speeds",
        "use rates='physical'",
    )
    first = planner.plan(setting.power)
    capacity = setting.largest_batch(first.deadlines_s, first.scale)
    if online is not None and setting.options.max_batch is None:
        capacity = online.room(capacity, int(np.max(problem.data.sizes)))

    def init(variables: Variables, key: jax.Array) -> AdelState:
        del variables, key
        return AdelState(
            first.deadlines_s,
            np.asarray(first.scale),
            empty_tally(problem.num_clients, setting.layers.number),
            None if online is None else online.start(planner, first.deadlines_s[0]),
        )

    def plan(
        state: AdelState, variables: Variables, situation: Situation
    ) -> tuple[Plan, AdelState]:
        del variables
        clients, t, learned = situation.clients, situation.round, state.learned
        require_planned(t, rounds)
        power = setting.power if learned is None else learned.speeds.power
        deadline_s, scale = float(state.deadlines_s[t]), float(state.scale)
        work = setting.workload(clients, deadline_s, scale, capacity, power)
        tried = setting.attempt(situation, work)
        tasks, sent = setting.layered_tasks(situation, merge, work, tried)
        state = state._replace(tally=state.tally.add(clients, merge, tried.missed, sent))
        if online is not None and learned is not None:
            learned = online.observe(learned, clients, work, tried, sent)
            learned, deadlines_s, m = online.replan(
                planner, learned, state.deadlines_s, state.scale, t + 1
            )
            state = state._replace(deadlines_s=deadlines_s, scale=m, learned=learned)
        return tasks, state

    def observe(
        state: AdelState, variables: Variables, report: Report
    ) -> tuple[AdelState, Variables, dict[str, Any]]:
        info = state.tally.summary(report.plan.shared["merge_probability"])
        scale = float(state.scale) / setting.unit_s
        info |= {"deadline_s": report.plan.deadline_s, "batch_scale": scale}
        return state, variables, info

    return Algorithm(
        name="adel",
        init=init,
        plan=plan,
        mask=setting.layers.mask,
        local=setting.local_update(capacity, on_batch_statistics(problem.model)),
        merge=merge.aggregator(setting.layers.ids),
        update=parts.replace,
        observe=observe,
        pace=deadline("drop"),
        cohort_size=setting.cohort,
        paces=OWN_DEADLINE,
        preview=functools.partial(preview, "adel", setting, first, capacity),
    )
