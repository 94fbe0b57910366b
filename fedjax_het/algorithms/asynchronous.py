"""FedAsync, FedBuff and FedFix: whole models, and a server that does not wait for all clients."""

from typing import Unpack

import numpy as np

from fedjax_het.algorithms.parts import full_model, relative_weights
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions, UniformTraining
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import arrivals, window
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.staleness import capped, discount, discounted_sum, mixing
from fedjax_het.problem import Problem


@register
def fedasync(
    problem: Problem,
    *,
    alpha: float = 0.6,
    rho: float = 0.005,
    staleness: str = "polynomial",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: Count | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedAsync: every arrival is merged, $w \leftarrow (1 - \alpha_t) w + \alpha_t w_i$.

    $\alpha_t = \alpha s(\tau)$ with the staleness $\tau$ in server steps. Arrivals at the same time
    are merged one after the other, in the order of the clients' ids.

    Args:
      problem: model, data and fleet.
      alpha: weight of an update of staleness 0.
      rho: factor of the proximal term to the model from which a client started, $\frac{\rho}{2}
        \lVert w - w_\tau \rVert^2$.
      staleness: discount of stale updates: "constant", "polynomial" or "hinge"; see
        `staleness.discount`.
      a: exponent or slope of the discount; 10 is usual for the hinge.
      b: largest staleness without a discount by the hinge.
      max_staleness: largest staleness of an update in server steps; a client whose update would be
        later is stopped and dropped. None for no limit.
      **training: fields of `TrainingOptions`; `clients_per_round` clients are at work at any time.
        `weighting` has no effect, because every merge has a single client.

    References:
      Xie, Koyejo and Gupta, *Asynchronous Federated Optimization*, 2019, Algorithm 1.
    """
    require(0 < alpha <= 1, f"alpha = {alpha}", "must lie in (0, 1]", "try 0.6")
    require(np.isfinite(rho) and rho >= 0, f"rho = {rho}", "must be at least 0", "try 0.005")
    pace = capped(arrivals(1), max_staleness)
    options = TrainingOptions.parse(training)
    base = full_model("fedasync", problem, options, pace=pace, proximal=rho)
    paces = Paces(replace="it mixes in one arrival at a time")
    return base._replace(merge=mixing(discount(staleness, a, b), alpha), paces=paces)


@register(options=UniformTraining)
def fedbuff(
    problem: Problem,
    *,
    buffer_size: Count = 10,
    server_learning_rate: float = 1.0,
    staleness: str = "polynomial",
    a: float = 0.5,
    b: float = 4.0,
    max_staleness: Count | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedBuff: every K arrivals, $w \leftarrow w + \frac{\eta}{K} \sum_i s(\tau_i) \Delta_i$.

    The sum is divided by K, not by the sum of the s, so stale updates make the step smaller. A
    client that has arrived is replaced immediately, so `clients_per_round` clients are at work at
    any time (a client is dispatched only once with the same model, unless its task failed).

    Args:
      problem: model, data and fleet.
      buffer_size: number of arrivals per merge, K.
      server_learning_rate: step size eta of the server.
      staleness: discount of stale updates: "constant", "polynomial" or "hinge"; see
        `staleness.discount`.
      a: exponent or slope of the discount.
      b: largest staleness without a discount by the hinge.
      max_staleness: largest staleness of an update in server steps; a client whose update would be
        later is stopped and dropped. None for no limit.
      **training: fields of `UniformTraining`; `weighting="samples"` adds the factor n_i over the
        mean of all clients.

    References:
      Nguyen et al., *Federated Learning with Buffered Asynchronous Aggregation*, 2022, Algorithm 1.
    """
    options = UniformTraining.parse(training)
    size = options.cohort_size(problem)
    require(
        1 <= buffer_size <= size,
        f"buffer_size = {buffer_size}",
        f"must be between 1 and the {size} clients at work at a time",
        "try a tenth of them",
    )
    _require_step(server_learning_rate)
    relative = relative_weights(problem, options)
    pace = capped(arrivals(buffer_size, refill=True), max_staleness)
    base = full_model("fedbuff", problem, options, pace=pace, amend=relative)
    merge = discounted_sum(discount(staleness, a, b), server_learning_rate / buffer_size)
    paces = Paces(replace="its merge divides by the arrivals of its own pace, buffer_size")
    return base._replace(merge=merge, paces=paces)


@register
def fedfix(
    problem: Problem,
    *,
    interval_s: float,
    server_learning_rate: float = 1.0,
    unbiased: bool = True,
    most_windows: Count | None = None,
    max_staleness: Count | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedFix: every $\Delta t$, $w \leftarrow w + \eta \sum_i d_i \Delta_i$ over the arrivals.

    A task of duration $T_i$ arrives once in $\lceil T_i / \Delta t \rceil$ windows, so $d_i = p_i
    \lceil T_i / \Delta t \rceil$ gives every client the mean weight $p_i$ per window at any speed.
    With $\Delta t$ above all $T_i$ this is FedAvg. If not all clients are at work at a time, d_i is
    multiplied by the number of clients over the number at work. $T_i$ is the planned duration,
    without pauses and failures of devices: clients that pause or fail get less than $p_i$.

    Args:
      problem: model, data and fleet.
      interval_s: virtual seconds between merges, Delta t.
      server_learning_rate: step size eta of the server.
      unbiased: whether d_i is the rule above; False means d_i = p_i, which gives slow clients too
        little weight.
      most_windows: upper limit of the factor $\lceil T_i / \Delta t \rceil$, against very large
        updates of very slow clients; None for no limit.
      max_staleness: largest staleness of an update in server steps, as in `fedbuff`; clients whose
        tasks last longer never count. None for no limit.
      **training: fields of `TrainingOptions`; `weighting` determines p_i.

    References:
      Fraboni et al., *A General Theory for Federated Optimization with Asynchronous and
      Heterogeneous Clients Updates*, 2023. The rule for d_i is derived here.
    """
    options = TrainingOptions.parse(training)
    _require_step(server_learning_rate)
    require(
        most_windows is None or most_windows >= 1,
        f"most_windows = {most_windows}",
        "must be at least 1",
        "leave it out for no cap",
    )
    everyone = (
        problem.data.sizes if options.weighting == "samples" else np.ones(problem.num_clients)
    )
    # Mean share of the clients at work in the sum of all weights.
    share = np.sum(everyone) * options.cohort_size(problem) / problem.num_clients

    def per_window(situation: Situation, plan: Plan) -> Plan:
        weight = plan.weight / share
        if unbiased:
            began = np.floor(situation.now_s / interval_s + 1e-9)
            ended = np.ceil((situation.now_s + plan.timing.total_s) / interval_s - 1e-9)
            weight = weight * np.clip(ended - began, 1, most_windows)
        return plan._replace(weight=weight.astype(np.float32))

    pace = capped(window(interval_s), max_staleness)
    base = full_model("fedfix", problem, options, pace=pace, amend=per_window)
    merge = discounted_sum(discount("constant"), server_learning_rate)
    paces = Paces(replace="its weights count the windows of its own pace, interval_s")
    return base._replace(merge=merge, paces=paces)


def _require_step(server_learning_rate: float) -> None:
    require(
        np.isfinite(server_learning_rate) and server_learning_rate > 0,
        f"server_learning_rate = {server_learning_rate}",
        "must be positive and finite",
        "try 1.0",
    )
