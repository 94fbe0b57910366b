"""FedAT: synchronous rounds inside tiers of similar devices, asynchronous merges across tiers."""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import Count
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import weighted_sum, zeros
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Chunk, Merged, Variables
from fedjax_het.contract.clock import Closing, Flight, Pace, take
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.selection import Candidates, Seen, Selector
from fedjax_het.problem import Problem


class State(NamedTuple):
    """State of the server; M tiers, 0 the fastest.

    Attributes:
      models: latest model of every tier, structure of `Variables`, leading axis M.
      updates: number of updates of every tier, float32[M].
    """

    models: Variables
    updates: jax.Array


@register
def fedat(
    problem: Problem,
    *,
    tiers: Count = 5,
    mu: float = 0.4,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""FedAT: every tier of similar devices has rounds of its own, and slow tiers count more.

    The clients are divided into M tiers of equal size by the duration of their tasks. Each tier
    trains in synchronous rounds, which start from the global model. At the end of a round the mean
    of the clients' models is the new model $w_m$ of the tier, and the global model is

    $w \leftarrow \sum_{m=1}^M \frac{u_{M+1-m}}{\sum_j u_j} w_m$

    with the numbers of updates $u_m$ of the tiers, the fastest first. The slowest tier has the
    weight that belongs to the most frequent one, and so on.

    Warning: as in the paper, every $u_m$ is 0 and every $w_m$ is the initial model at the start.
    The model of tier m therefore counts only once tier M + 1 - m has ended a round, and the global
    model is the initial one until two such tiers have (or the middle one, if M is odd).

    The selection is a part of the method: each tier without clients at work selects its share
    uniformly among its clients that are available. A tier of which none is available waits for the
    next merge of another one.

    Args:
      problem: model, data and fleet. Tiers are those of durations without jitter; equal durations
        are ordered by the client's id.
      tiers: number of tiers M; the paper has 5.
      mu: factor of the proximal term to the global model, the paper's lambda.
      **training: fields of `TrainingOptions`; `clients_per_round` clients are at work at any time,
        divided equally among the tiers.

    Returns:
      The algorithm. Its `info` has `tier`, the one that was merged, from 0; -1 if no update of it
      was finite, which changes nothing.

    References:
      Chai et al., *FedAT: A High-Performance and Communication-Efficient Federated Learning System
      with Asynchronous Tiers*, SC 2021, Algorithm 2; methods/baselines.md 17. Its compression is
      not a part of this method.
    """
    options = TrainingOptions.parse(training)
    parts.require_constant_fleet(problem, "fedat")
    size = options.cohort_size(problem)
    require(
        1 <= tiers <= size,
        f"tiers = {tiers}",
        f"must be between 1 and the {size} clients at work at a time",
        "use 5 and at least as many clients",
    )
    require(np.isfinite(mu) and mu >= 0, f"mu = {mu}", "must be at least 0", "try 0.4")
    duration_s = parts.durations_s(problem, options, options.steps(problem.data.sizes))
    tier = tiers_of(duration_s, tiers)

    def init(variables: Variables, key: jax.Array) -> State:
        del key
        models = jax.tree.map(lambda a: jnp.stack([a] * tiers), variables)
        return State(models, jnp.zeros(tiers, jnp.float32))

    def in_tiers(situation: Situation, plan: Plan) -> Plan:
        return plan._replace(rows={"tier": tier[situation.clients].astype(np.int32)})

    base = parts.full_model(
        "fedat", problem, options, pace=tier_by_tier(tier), proximal=mu, amend=in_tiers
    )
    return base._replace(
        init=init,
        merge=mean_of_tier(tiers),
        update=update,
        select=idle_tiers(tier, equal_parts(size, tiers)),
        paces=Paces(replace="its tiers are rounds of their own pace"),
    )


def tiers_of(duration_s: np.ndarray, tiers: int) -> np.ndarray:
    """Tier of every client, 0 the fastest, int64[n]; sizes differ by at most 1.

    Args:
      duration_s: durations of the clients' tasks, float64[n]; equal ones are ordered by id.
      tiers: number of tiers.
    """
    tier = np.empty(len(duration_s), np.int64)
    by_speed = np.argsort(duration_s, kind="stable")
    tier[by_speed] = np.repeat(np.arange(tiers), equal_parts(len(duration_s), tiers))
    return tier


def equal_parts(total: int, parts: int) -> np.ndarray:
    """Sizes of equal parts of a whole, int64[parts]; the first ones are larger by 1 if need be."""
    return total // parts + (np.arange(parts) < total % parts)


def tier_by_tier(tier: np.ndarray) -> Pace:
    """The server merges a tier when the tasks of all of its clients at work have ended.

    Tiers that end at the same time are merged one after the other, the faster one first.

    Args:
      tier: tier of every client, int64[n].
    """

    def close(flight: Flight) -> Closing:
        own = tier[flight.client]
        ends_s = np.asarray([np.max(flight.ends_s[own == t]) for t in np.unique(own)])
        ends = np.argmin(ends_s)
        arrived = (own == np.unique(own)[ends]) & ~flight.failed
        return take(flight, np.flatnonzero(arrived), float(ends_s[ends]))

    return Pace("tier by tier", close, may_wait=True)


def idle_tiers(tier: np.ndarray, shares: np.ndarray) -> Selector:
    """Selects clients of all tiers that have nobody at work, uniformly inside each of them.

    Its state is the number of clients at work in each tier, int64[M].

    Args:
      tier: tier of every client, int64[n].
      shares: number of clients at work of each tier, int64[M].
    """

    def choose(at_work: np.ndarray, candidates: Candidates) -> tuple[np.ndarray, np.ndarray]:
        own = tier[candidates.clients]
        chosen = [candidates.clients[:0]]
        for idle in np.flatnonzero(at_work == 0):
            members = candidates.clients[own == idle]
            count = min(int(shares[idle]), len(members))
            chosen.append(candidates.rng.choice(members, count, replace=False))
        ids = np.concatenate(chosen)
        return ids, at_work + np.bincount(tier[ids], minlength=len(shares))

    def observe(at_work: np.ndarray, seen: Seen) -> np.ndarray:
        return at_work - np.bincount(tier[seen.clients], minlength=len(shares))

    none = np.zeros(len(shares), np.int64)
    reason = "each tier selects among its own clients"
    return Selector(lambda n: none, choose, observe, replaceable=reason)


class _Sums(NamedTuple):
    """Sum of the weighted models of a tier, and of the weights by tier, float32[M]."""

    models: Variables
    weight: jax.Array


def mean_of_tier(tiers: int) -> Aggregator:
    """The weighted mean of the models of clients that all belong to one tier.

    Args:
      tiers: number of tiers.

    Returns:
      An `Aggregator` whose merged model is that of the tier, not the global one; it reports `tier`.
    """

    def init(state: State, variables: Variables, mask_shapes: PyTree) -> _Sums:
        del state, mask_shapes
        return _Sums(zeros(variables), jnp.zeros(tiers, jnp.float32))

    def add(acc: _Sums, chunk: Chunk) -> _Sums:
        own = jax.tree.map(jnp.add, chunk.start, Variables(chunk.delta, chunk.stats_delta))
        models = jax.tree.map(lambda s, w: s + weighted_sum(chunk.weight, w), acc.models, own)
        return _Sums(models, acc.weight.at[chunk.row["tier"]].add(chunk.weight))

    def finalize(acc: _Sums, variables: Variables, shared: PyTree) -> Merged:
        del shared
        total = jnp.sum(acc.weight)
        some = total > 0
        over = jnp.where(some, total, 1.0)
        mean = jax.tree.map(lambda old, s: jnp.where(some, s / over, old), variables, acc.models)
        return Merged(mean, {"tier": jnp.where(some, jnp.argmax(acc.weight), -1)})

    return Aggregator(init, add, finalize)


def update(state: State, variables: Variables, merged: Merged) -> tuple[State, Variables]:
    """The server's step: puts the model of a tier in its place, and mixes the tiers' models."""
    tier = merged.info["tier"]
    ended = jnp.arange(state.updates.shape[0]) == tier

    def put(every: jax.Array, new: jax.Array) -> jax.Array:
        here = ended.reshape((-1,) + (1,) * new.ndim)
        return jnp.where(jnp.broadcast_to(here, every.shape), new[None], every)

    models = jax.tree.map(put, state.models, merged.variables)
    updates = state.updates + ended.astype(jnp.float32)
    share = updates[::-1] / jnp.maximum(jnp.sum(updates), 1.0)
    mixed = jax.tree.map(
        lambda old, every: jnp.where(tier >= 0, weighted_sum(share, every), old), variables, models
    )
    return State(models, updates), mixed
