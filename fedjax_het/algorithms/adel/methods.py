"""ADEL-FL itself: planned deadlines and batches, layers merged without bias."""

from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.adel.depths import depths_reached
from fedjax_het.algorithms.adel.layers import on_batch_statistics
from fedjax_het.algorithms.adel.merging import Rule, merge_rule
from fedjax_het.algorithms.adel.options import Planned
from fedjax_het.algorithms.adel.planner import make_planner
from fedjax_het.algorithms.adel.rounds import (
    compute_until,
    layer_mask,
    layered_tasks,
    require_planned,
    require_rule,
)
from fedjax_het.algorithms.adel.tally import Speeds, Tally, count, empty_tally, observe, summary
from fedjax_het.algorithms.registry import register
from fedjax_het.common.errors import require
from fedjax_het.contract.algorithm import Algorithm, Report, Variables
from fedjax_het.contract.clock import deadline
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.problem import Problem

# Room in the compiled batch for devices that turn out faster than they were thought to be.
_GROWTH = 2.0


class AdelState(NamedTuple):
    """Between rounds; all NumPy, so that a resumed run plans with the same bits.

    Attributes:
      deadlines_s: float64[R], T; entries of later rounds change when the plan does.
      scale: float64[], m.
      noise: float64[], the gradient noise that the plan was made for.
      speeds: what is known about the devices.
      tally: for the records.
    """

    deadlines_s: np.ndarray
    scale: np.ndarray
    noise: np.ndarray
    speeds: Speeds
    tally: Tally


@register(options=Planned)
def adel(
    problem: Problem,
    *,
    aggregator: Rule | None = None,
    propensity_floor: float = 0.0,
    estimate_rates: bool = False,
    memory_rounds: float = 20.0,
    replan_tolerance: float = 0.1,
    **planned: Any,
) -> Algorithm:
    r"""ADEL-FL: deadlines and batch sizes planned together, layers merged without bias.

    Every client takes one SGD step per round on $S_u = m P_u (T_t - B_u) / T_t$ samples and sends
    the layers whose gradient is ready at the deadline $T_t$, output side first. With exponential
    layer times everyone finishes Poisson($T_t / m$) layers, so nobody finishes layer l with a
    probability $p_t^l$ that the server knows, and

    $w^l \leftarrow w^l + \frac{1}{1 - p_t^l} \frac{1}{K} \sum_{u : d_u \ge L+1-l} \Delta_u^l$

    is in expectation the step that FedAvg would have taken. Deadlines and m minimise a convergence
    bound under $\sum_t T_t \le T_{max}$ (`Bound`, `plan_deadlines`).

    Warning: the authors' published code divides by U instead (`aggregator="zero_fill"`), which is
    biased towards zero; and it plans beyond the pole of the bound, which `max_miss` rules out.

    Args:
      problem: model, data and fleet; `fleet.build("adel", ...)` is the paper's.
      aggregator: "corrected" (the rule above), "ipw" (each client's inverse propensity, unbiased
        for unequal rates), "zero_fill" or "mean". None takes "corrected" for ideal and "ipw" for
        physical rates.
      propensity_floor: `ipw` divides by no less than this; above 0 it trades bias for variance.
      estimate_rates: learn each client's power from the layers it finishes, starting from the
        fleet's nominal speeds, and give it batches and inverse propensities accordingly; needs
        physical rates.
      memory_rounds: rounds over which observed speeds are forgotten.
      replan_tolerance: plan the remaining deadlines anew when the noise term, which depends on the
        speeds, has changed by this share since the last plan.
      **planned: see `Planned`.

    Returns:
      The algorithm; its `info` reports per layer the assumed and the observed probability of a miss
      and the mean weight of an update so far (1 where the merge is unbiased).

    References:
      ADEL-FL, arXiv 2505.23973. Only its abstract and the authors' code were available: the form of
      the correction is forced by unbiasedness, and the objective is that of the code.
    """
    options = Planned.parse(planned)
    planner, rates, rounds = make_planner(problem, options), options.rates, options.rounds
    setting = planner.setting
    rule = require_rule(aggregator, rates, propensity_floor)
    require(
        not estimate_rates or rates == "physical",
        f"estimate_rates = {estimate_rates} with rates = {rates!r}",
        "ideal layer times do not depend on the devices' speeds",
        "use rates='physical'",
    )
    require(
        memory_rounds > 1 and replan_tolerance > 0,
        f"memory_rounds = {memory_rounds}, replan_tolerance = {replan_tolerance}",
        "must be above 1 and above 0",
        "use 20 and 0.1",
    )
    first = planner.plan(setting.power)
    everyone = np.arange(problem.num_clients)
    room = setting.largest_batch(first.deadlines_s, first.scale)
    if options.max_batch is None and estimate_rates:
        room = min(int(_GROWTH * room), int(np.max(problem.data.sizes)))

    def init(variables: Variables, key: jax.Array) -> AdelState:
        del variables, key
        opening_s = first.deadlines_s[0]
        return AdelState(
            deadlines_s=first.deadlines_s,
            scale=np.asarray(first.scale),
            noise=np.asarray(planner.noise(setting.power)),
            # The nominal speeds count as much as one round of observations.
            speeds=Speeds(setting.power * opening_s, np.full(everyone.size, opening_s)),
            tally=empty_tally(everyone.size, setting.layers.number),
        )

    def plan(
        state: AdelState, variables: Variables, situation: Situation
    ) -> tuple[Plan, AdelState]:
        del variables
        clients, round = situation.clients, situation.round
        require_planned(round, rounds)
        power = state.speeds.power if estimate_rates else setting.power
        work = setting.workload(
            clients, float(state.deadlines_s[round]), float(state.scale), room, power
        )
        missed = setting.missed(clients, work, power)
        finished_s = setting.layer_times(situation, work)
        reached = depths_reached(finished_s, work.window_s)
        busy_s = compute_until(work, reached, finished_s)
        tasks, depth = layered_tasks(
            setting, situation, rule, propensity_floor, work, missed, reached, busy_s
        )
        tally = count(state.tally, clients, rule, missed, depth, propensity_floor)
        state = state._replace(tally=tally)
        if estimate_rates:
            # What a slow link kept from the server tells it nothing.
            seen = (work.window_s > 0) & (depth == reached)
            speeds = observe(
                state.speeds,
                clients[seen],
                work.batch[seen],
                depth[seen],
                np.minimum(busy_s, work.window_s)[seen],
                memory_rounds,
            )
            state = replan(state._replace(speeds=speeds), round + 1)
        return tasks, state

    def replan(state: AdelState, start: int) -> AdelState:
        noise = planner.noise(state.speeds.power)
        if start >= rounds or abs(noise - state.noise) <= replan_tolerance * state.noise:
            return state
        left = planner.plan(state.speeds.power, start, float(np.sum(state.deadlines_s[start:])))
        return state._replace(
            deadlines_s=np.append(state.deadlines_s[:start], left.deadlines_s),
            scale=np.asarray(left.scale),
            noise=np.asarray(noise),
        )

    def observe_round(
        state: AdelState, variables: Variables, report: Report
    ) -> tuple[AdelState, Variables, dict[str, Any]]:
        info = summary(state.tally, report.plan.shared["merge_probability"])
        scale = float(state.scale) / setting.unit_s
        info |= {"deadline_s": report.plan.deadline_s, "batch_scale": scale}
        return state, variables, info

    return Algorithm(
        name="adel",
        init=init,
        plan=plan,
        mask=layer_mask(setting),
        local=setting.local_update(room, on_batch_statistics(problem.model)),
        merge=merge_rule(rule, setting.layers.ids),
        update=parts.replace,
        observe=observe_round,
        pace=deadline("drop"),
        cohort_size=setting.cohort,
    )
