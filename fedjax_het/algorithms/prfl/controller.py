"""The server's side of PR-FL between merges: densities, recovery, ranking, roll-back."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.prfl import density as rules
from fedjax_het.algorithms.prfl.buffers import (
    Booked,
    Layout,
    Slots,
    flat,
    free_ranking,
    rolled_back,
    unpack,
)
from fedjax_het.algorithms.prfl.density import Stops, Times
from fedjax_het.algorithms.prfl.ranking import Importance, close_interval, rank_weights
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import prepare
from fedjax_het.problem import Problem


class State(NamedTuple):
    """What PR-FL keeps; n clients, N weights.

    Attributes:
      step: int64[], merges so far.
      slots: latest uploads.
      booked: what is set aside for the next ones.
      importance: of the weights.
      rank: int32 per prunable leaf.
      order: int32[N], its inverse: the weights by rank.
      place: int64[], of this ranking among those of the slots; -1 before the first.
      density: float64[n], rho of the next sub-models.
      floor: float64[n], smallest density the time rule may give.
      lowest: float64[], smallest floor of all.
      first_stage: bool[], until the first recovery.
      times: of the clients.
      stops: n + 1 automata, the server's last.
      armed, finished: bool[], the server's automaton has fired once; with the floor at 1.
      sent_s: float64[n, 2], when the last task of each client was sent out, and when it arrives.
      uplink: float64[n, 3], its upload as (from, to, mean rate).
      best: `(variables, slots, booked, importance)` of the best score of an armed server, or ().
    """

    step: np.ndarray
    slots: Slots
    booked: Booked
    importance: Importance
    rank: list[jax.Array]
    order: jax.Array
    place: np.ndarray
    density: np.ndarray
    floor: np.ndarray
    lowest: np.ndarray
    first_stage: np.ndarray
    times: Times
    stops: Stops
    armed: np.ndarray
    finished: np.ndarray
    sent_s: np.ndarray
    uplink: np.ndarray
    best: PyTree


class Settings(NamedTuple):
    """The options of the controller, see `prfl`, and the layout of its buffers."""

    mode: str
    core: float
    increment: float
    patience: int
    adapt: bool
    recover: bool
    roll_back: bool
    remask: str
    layout: Layout


class Scorer:
    """Accuracy on the server's validation samples, of its model and of every upload.

    Args:
      problem: the model, and the pipeline of the data.
      x, y: the samples.
    """

    def __init__(self, problem: Problem, x: np.ndarray, y: np.ndarray):
        batch = min(len(y), 64 if jax.default_backend() == "cpu" else 1024)
        places = np.resize(np.arange(len(y)), -(-len(y) // batch) * batch)
        self._x = jnp.asarray(x[places].reshape(-1, batch, *x.shape[1:]))
        self._y = jnp.asarray(y[places].reshape(-1, batch, *y.shape[1:]))
        counts = (np.arange(len(places)) < len(y)).reshape(-1, batch)
        self._counts = jnp.asarray(counts.astype(np.float32))

        def accuracy(variables: Variables, *samples: jax.Array) -> jax.Array:
            def right(part: tuple[jax.Array, ...]) -> jax.Array:
                logits, _ = problem.model.apply(variables, prepare(part[0], problem.data.pipeline))
                hit = (jnp.argmax(logits, axis=-1).astype(part[1].dtype) == part[1]).astype(
                    jnp.float32
                )
                return jnp.sum(hit.reshape(hit.shape[0], -1).mean(axis=1) * part[2])

            return jnp.sum(jax.lax.map(right, samples)) / jnp.sum(samples[2])

        structure = jax.eval_shape(lambda: problem.model.init(jax.random.key(0))).params

        def of_slots(slots: Slots, booked: Booked, *samples: jax.Array) -> jax.Array:
            def one(client: jax.Array) -> jax.Array:
                return accuracy(unpack(slots, booked, client, structure), *samples)

            return jax.lax.map(one, jnp.arange(slots.size.shape[0]))

        self._accuracy, self._of_slots = jax.jit(accuracy), jax.jit(of_slots)

    def __call__(self, variables: Variables, slots: Slots, booked: Booked) -> np.ndarray:
        """float64[n + 1], the clients' and the server's; NaN before the first upload."""
        samples = (self._x, self._y, self._counts)
        server = self._accuracy(variables, *samples)
        clients = self._of_slots(slots, jax.tree.map(jnp.asarray, booked), *samples)
        known = np.asarray(slots.size) > 0
        return np.append(np.where(known, np.asarray(clients, np.float64), np.nan), float(server))


def rerank(
    state: State, variables: Variables, settings: Settings, cost: np.ndarray, *, changed: bool
) -> State:
    """Closes the interval of the importances and ranks the weights anew.

    While uploads refer to all rankings that there is room for, the newest stays.
    """
    importance = _close(state.importance)
    state = state._replace(importance=importance)
    if settings.remask == "on_density_change" and not changed:
        return state
    kept = settings.layout.pages > 0
    place = free_ranking(state.slots, state.booked) if kept else -1
    if place is None:
        return state
    rank, by_weight, order = _rank(
        variables.params, importance.table, settings.core, tuple(cost.tolist())
    )
    slots = state.slots
    if kept:
        slots = slots._replace(ranks=slots.ranks.at[place].set(by_weight))
    return state._replace(slots=slots, rank=rank, order=order, place=np.asarray(place))


_close = jax.jit(close_interval)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _rank(
    params: PyTree, table: list[jax.Array], core: float, cost: tuple[float, ...]
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """The ranking by leaf and by weight, and the weights by rank."""
    rank = rank_weights(params, table, core, np.asarray(cost))
    by_weight = flat(rank)
    places = jnp.arange(by_weight.size, dtype=jnp.int32)
    return rank, by_weight, jnp.zeros_like(by_weight).at[by_weight].set(places)


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def adjust(
    state: State, variables: Variables, settings: Settings, score: np.ndarray | None
) -> tuple[State, Variables, dict[str, Any]]:
    """Densities at the end of an interval (sections 4 and 5).

    Args:
      state: after the merge.
      variables: the server's model.
      settings: options.
      score: what `Scorer` says; None without recovery.

    Returns:
      The state and the model, which a roll-back replaces, and what happened.
    """
    density, floor, lowest = state.density, state.floor, float(state.lowest)
    first_stage = bool(state.first_stage)
    info: dict[str, Any] = {}
    # Once densities only grow, a floor that all have passed rises with them.
    only_grow = settings.mode == "code" and not first_stage
    if only_grow and np.min(density) > lowest + 0.01:
        lowest = float(np.min(density))
    if score is not None:
        patience = np.full(len(score), settings.patience)
        if lowest >= 1.0:
            patience[-1] *= 8
        stops, fire = rules.check(state.stops, score, patience)
        armed, finished, best = state.armed, state.finished, state.best
        if settings.roll_back and not score[-1] <= state.stops.best[-1]:
            best = _copy((variables, state.slots, state.booked, state.importance))
        if fire[-1] and not armed:
            armed = np.asarray(True)
        elif fire[-1]:
            finished = np.asarray(lowest >= 1.0)
            lowest = min(lowest + settings.increment, 1.0)
            if settings.roll_back:
                variables, slots, booked, importance = _copy(best)
                slots, booked, place = rolled_back(
                    slots,
                    jax.tree.map(np.asarray, booked),
                    state.slots,
                    state.booked,
                    int(state.place),
                    settings.layout,
                )
                state = state._replace(
                    slots=slots, booked=booked, importance=importance, place=np.asarray(place)
                )
                info["rolled_back"] = True
        raised = np.minimum(density + settings.increment, 1.0)
        if settings.mode == "code":
            density = np.where(fire[:-1], raised, density)
            floor = np.maximum(floor, lowest)
        else:
            floor = np.maximum(np.where(fire[:-1], raised, floor), lowest)
        density = np.maximum(density, floor)
        if np.any(fire[:-1]) or lowest > float(state.lowest):
            first_stage = False
        info["recovered"] = np.flatnonzero(fire[:-1]).tolist()
        info["validation_accuracy"] = float(score[-1])
        state = state._replace(stops=stops, armed=armed, finished=finished, best=best)
    if settings.adapt and (first_stage or settings.mode == "paper"):
        rule = rules.feedback if settings.mode == "code" else rules.by_ratio
        density = rule(density, rules.mean_times(state.times), floor)
    state = state._replace(
        density=density,
        floor=floor,
        lowest=np.asarray(lowest),
        first_stage=np.asarray(first_stage),
    )
    info["densities"] = np.round(density, 4).tolist()
    return state, variables, info
