"""TimelyFL: every client fits its work, more epochs or fewer layers, into one interval."""

from typing import NamedTuple, Unpack

import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Schedule, Situation, Timing
from fedjax_het.fleet.cost import price
from fedjax_het.problem import Problem

# Tolerance for rounding of durations, so that a task that ends with the interval fits into it.
_SLACK = 1e-9


class Workloads(NamedTuple):
    """What the clients of a cohort do in an interval.

    Attributes:
      interval_s: length of the interval T in seconds.
      epochs: passes E of each client over its samples, int64[k], at least 1.
      share: largest share alpha of its whole task for which each client has time, float64[k].
    """

    interval_s: float
    epochs: np.ndarray
    share: np.ndarray


def workloads(compute_s: np.ndarray, transfer_s: np.ndarray, fastest: int) -> Workloads:
    r"""The interval of a cohort, and what its clients have time for.

    $T$ is the `fastest`-th smallest of $t^{cmp}_c + t^{com}_c$, and

    $$E_c = \max(\lfloor (T - t^{com}_c) / t^{cmp}_c \rfloor, 1), \quad
    \alpha_c = \min(T / (t^{cmp}_c + t^{com}_c), 1).$$

    Args:
      compute_s: seconds $t^{cmp}$ of one epoch of the whole model, float64[k].
      transfer_s: seconds $t^{com}$ of its download and upload, float64[k].
      fastest: number of clients that finish the whole model within the interval, 1..k.
    """
    total_s = compute_s + transfer_s
    interval_s = float(np.sort(total_s)[fastest - 1])
    epochs = np.floor((interval_s - transfer_s) / compute_s * (1 + _SLACK)).astype(np.int64)
    return Workloads(interval_s, np.maximum(epochs, 1), np.minimum(interval_s / total_s, 1.0))


@register
def timelyfl(
    problem: Problem,
    *,
    fastest: Count | None = None,
    max_epochs: Count | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""TimelyFL: fast clients train more epochs, slow ones fewer layers, and no update is stale.

    In every round the clients report how long they would take for one epoch of the whole model and
    for its transfer. `workloads` has the interval, the epochs and the share $\alpha_c$ of the time
    of the whole task that remains for a slow client, which trains the longest suffix of layers
    whose task takes at most that share, runs the layers before it forward only and uploads the
    suffix. The server averages every layer over the clients that trained it, weighted by samples.

    The time of a suffix is that of its task on the client's device of this round: download of the
    whole model, whole forward pass, backward pass of the suffix, upload of the suffix. Without
    transfers it is the suffix's share of the FLOPs of a step. Because the forward pass stays, no
    suffix takes less than about a third of an epoch: a client without time for its last layer
    trains this one and is late, and the server waits for it. `pace.deadline` does not.

    An epoch is the local work of the training options, `epochs` passes or `local_steps` steps; the
    method multiplies it. Estimates are expected durations without jitter, at the rates of the
    dispatch, so tasks end with the interval as far as the durations are as expected.

    Warning: the first layers see the data of fast clients only.

    Args:
      problem: model, data and fleet.
      fastest: number of clients of a cohort for which the interval has time for the whole model;
        None for half of the cohort.
      max_epochs: largest multiple of the local work; None for as much as there is time for.
      **training: fields of `TrainingOptions`.

    Returns:
      The algorithm. `info` has the interval as `interval_s`, the number of `late_clients`, and the
      number of `clients_per_block` that trained each block, input side first.

    References:
      Zhang et al., *TimelyFL: Heterogeneity-aware Asynchronous Federated Learning with Adaptive
      Partial Training*, arXiv 2304.06947. There is no public code, and the rule of the epochs and
      shares is from a description of the paper. That shares are shares of priced time, and that
      late clients are waited for, is our choice.
    """
    options = TrainingOptions.parse(training)
    cohort = options.cohort_size(problem)
    require(
        fastest is None or 1 <= fastest <= cohort,
        f"fastest = {fastest}",
        f"must lie between 1 and the {cohort} clients of a cohort",
        "leave it out for half of the cohort",
    )
    require(
        max_epochs is None or max_epochs >= 1,
        f"max_epochs = {max_epochs}",
        "must be at least 1",
        "leave it out for no limit",
    )
    # Any client may be among the fastest of its cohort and then trains the whole model.
    parts.require_memory(problem, options, 0)
    last = problem.model.num_blocks - 1

    def tasks(situation: Situation) -> Plan:
        clients, sizes = situation.clients, problem.data.sizes[situation.clients]
        fleet, k = problem.fleet.at(situation.round), len(situation.clients)
        steps = options.steps(sizes)

        def timing(
            first: np.ndarray | int, steps: np.ndarray, rng: np.random.Generator | None
        ) -> Timing:
            samples = options.samples(sizes, steps)
            return price(problem.cost, fleet, clients, first, last, samples, situation.now_s, rng)

        # A row per suffix, the longest first.
        expected = [timing(first, steps, None) for first in range(last + 1)]
        suffix_s = np.stack([each.total_s for each in expected])
        compute_s = expected[0].compute_s
        count = max(k // 2, 1) if fastest is None else min(fastest, k)
        work = workloads(compute_s, suffix_s[0] - compute_s, count)
        fits = suffix_s <= work.share * suffix_s[0] * (1 + _SLACK)
        first = np.where(fits.any(axis=0), np.argmax(fits, axis=0), last)
        epochs = work.epochs if max_epochs is None else np.minimum(work.epochs, max_epochs)
        steps = steps * epochs
        plan = parts.plan_tasks(
            problem,
            options,
            situation,
            first=first,
            rows={"first": first.astype(np.int32)},
            timing=timing(first, steps, situation.rng),
        )
        info = {
            "interval_s": work.interval_s,
            "late_clients": int(np.sum(~fits.any(axis=0))),
            "clients_per_block": [int(np.sum(first <= block)) for block in range(last + 1)],
        }
        return plan._replace(steps=steps, info=info)

    structure = problem.model.shapes.params

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        return masks.suffix(structure, jnp.asarray(row["first"]))

    return Algorithm(
        name="timelyfl",
        init=parts.stateless,
        plan=Schedule(tasks),
        mask=mask,
        local=options.local_update(problem),
        merge=masked_mean(),
        update=parts.replace,
        pace=barrier(),
        cohort_size=cohort,
        paces=Paces(overlap="its clients fit their work into the interval of their cohort"),
    )
