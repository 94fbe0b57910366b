"""The server's part of PR-FL between merges: its state, and its actions at an interval's end."""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.prfl import density as rules
from fedjax_het.algorithms.prfl.buffers import (
    Booked,
    Layout,
    Slots,
    free_ranking,
    no_bookings,
    no_slots,
    release,
    rolled_back,
    unpack,
)
from fedjax_het.algorithms.prfl.density import Density, Recovery, Stops, Times
from fedjax_het.algorithms.prfl.links import WARM_UP, Traffic, no_traffic
from fedjax_het.algorithms.prfl.ranking import (
    Importance,
    close_interval,
    flat,
    no_importance,
    prunable,
    rank_weights,
)
from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.contract.algorithm import Variables
from fedjax_het.data.batches import Batch, in_batches, prepare
from fedjax_het.problem import Problem


class Control(NamedTuple):
    """Options of the controller.

    Attributes:
      mode: variant of the method, "code" or "paper", see `prfl`.
      adapt: whether densities follow the clients' times.
      density: options of the sub-models.
      recovery: options of recovery; None for no recovery.
      layout: shape of the pool of buffers.
      cost: float64[leaves], cost of a weight, from `ranking.time_per_weight`, or ones.
    """

    mode: Literal["code", "paper"]
    adapt: bool
    density: Density
    recovery: Recovery | None
    layout: Layout
    cost: np.ndarray

    @property
    def rolls_back(self) -> bool:
        """Whether the server may return to its best model."""
        return self.recovery is not None and self.recovery.roll_back


class State(NamedTuple):
    """State of PR-FL; n clients, N weights.

    Attributes:
      step: int64[], number of merges so far.
      slots: latest uploads.
      booked: pages reserved for the next uploads.
      importance: importance of the weights.
      rank: rank of each weight, int32 per prunable leaf.
      order: int32[N], weights by rank, the inverse of `rank`.
      place: int64[], index of this ranking among those of the slots; -1 before the first.
      density: float64[n], densities rho of the next sub-models.
      floor: float64[n], smallest density that the time rule may give.
      lowest: float64[], smallest floor of all clients.
      first_stage: bool[], whether no recovery has happened yet.
      times: times of the clients.
      stops: n + 1 automata of early stopping; the last is the server's.
      armed: bool[], whether the server's automaton has fired once.
      traffic: tasks on the server's link.
      best: `(variables, slots, booked, importance)` of the server's best score, armed or not, or of
        `init` before the first evaluation; () without roll-back.
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
    traffic: Traffic
    best: PyTree


def first_state(variables: Variables, control: Control, clients: int) -> State:
    """State before the first task: whole models, no ranking, empty buffers."""
    density, weights = control.density, control.layout.weights
    slots = no_slots(variables, control.layout, clients)
    booked, importance = no_bookings(control.layout, clients), no_importance(variables.params)
    best = ()
    if control.rolls_back:
        best = jax.tree.map(jnp.array, (variables, slots, booked, importance))
    rank = [jnp.zeros(leaf.shape, jnp.int32) for leaf in prunable(variables.params)]
    return State(
        step=np.asarray(0),
        slots=slots,
        booked=booked,
        importance=importance,
        rank=rank if control.density.prunes else [],
        order=jnp.arange(weights, dtype=jnp.int32),
        place=np.asarray(-1 if control.density.prunes else 0),
        density=density.first(clients),
        floor=np.full(clients, float(density.lowest)),
        lowest=np.asarray(float(density.lowest)),
        first_stage=np.asarray(True),
        times=rules.no_times(clients, density.interval),
        stops=rules.no_stops(clients + 1),
        armed=np.asarray(False),
        traffic=no_traffic(clients),
        best=best,
    )


def arrived(state: State, layout: Layout, clients: np.ndarray, merged: np.ndarray) -> State:
    """The state after a merge: next step, times of the arrivals, and released pages.

    Args:
      state: state before the merge.
      layout: shape of the pool of buffers.
      clients: ids of the clients whose tasks are finished, int64[k].
      merged: mask of those that count, bool[k].
    """
    times = state.times
    if state.step >= WARM_UP:  # earlier times contain the wait for all clients
        times = rules.record(times, clients, state.traffic.sent_s[clients, 1])
    return state._replace(
        step=np.asarray(int(state.step) + 1),
        booked=release(state.booked, layout, clients[merged]),
        times=times,
    )


# Function `(variables, slots, booked) -> float64[n + 1]`, see `scorer`.
Score = Callable[[Variables, Slots, Booked], np.ndarray]


def scorer(problem: Problem, validate_on: str) -> Score:
    """Score of every upload and of the server's model on the server's held-out samples.

    The score is the objective's first metric that is a mean over samples (the accuracy), or the
    loss, negative if lower is better.

    Args:
      problem: model, samples and pipeline of the data.
      validate_on: option of this name of `Recovery`.

    Returns:
      A function that returns the clients' scores, then the server's; NaN before the first upload.

    Raises:
      InputError: if there are no validation samples.
    """
    data = problem.data
    x, y = (data.test_x, data.test_y) if validate_on == "test" else (data.val_x, data.val_y)
    require(
        x is not None,
        "recovery without validation data",
        "looks at accuracies on held-out samples",
        "load the data with validation_fraction = 0.05, or set validate_on = 'test'",
    )
    assert x is not None
    assert y is not None
    batches, objective = in_batches(x, y), problem.objective
    metric = next((m for m in objective.metrics if m.kind == "mean"), None)

    def mean(variables: Variables, samples: Batch) -> jax.Array:
        def one(batch: Batch) -> tuple[jax.Array, jax.Array]:
            batch = batch._replace(x=prepare(batch.x, data.pipeline))
            outputs, _ = problem.model.apply(variables, batch.x)
            if metric is None:
                value, weight = objective.losses(outputs, batch), objective.weight(batch)
            else:
                value, weight = metric.measure(outputs, batch)
            weight = weight * batch.weight
            return jnp.sum(value * weight), jnp.sum(weight)

        value, weight = jax.tree.map(jnp.sum, jax.lax.map(one, samples))
        sign = 1.0 if metric is not None and metric.higher_is_better else -1.0
        return sign * value / jnp.where(weight > 0, weight, 1.0)

    @jax.jit
    def of_slots(slots: Slots, booked: Booked, like: PyTree, samples: Batch) -> jax.Array:
        def one(client: jax.Array) -> jax.Array:
            return mean(unpack(slots, booked, client, like), samples)

        return jax.lax.map(one, jnp.arange(slots.size.shape[0]))

    of_server = jax.jit(mean)

    def score(variables: Variables, slots: Slots, booked: Booked) -> np.ndarray:
        server = of_server(variables, batches)
        booked = jax.tree.map(jnp.asarray, booked)
        clients = of_slots(slots, booked, variables.params, batches)
        found = np.append(np.asarray(clients), np.asarray(server))
        known = np.append(np.asarray(slots.size) > 0, True)
        return np.where(known, found.astype(np.float64), np.nan)

    return score


def rerank(state: State, variables: Variables, control: Control, *, changed: bool) -> State:
    """Closes the interval of the importances and makes a new ranking of the weights.

    While uploads refer to all RANKINGS rankings, the newest stays in use.
    """
    importance = _close(state.importance)
    state = state._replace(importance=importance)
    if control.density.remask == "on_density_change" and not changed:
        return state
    kept = control.layout.pages > 0
    place = free_ranking(state.slots, state.booked) if kept else -1
    if place is None:
        return state
    rank, by_weight, order = _rank(
        variables.params, importance.table, control.density.core, tuple(control.cost.tolist())
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
    """The rank of each weight, per leaf, and the weights by rank."""
    rank = rank_weights(params, table, core, np.asarray(cost))
    by_weight = flat(rank)
    places = jnp.arange(by_weight.size, dtype=jnp.int32)
    return rank, by_weight, jnp.zeros_like(by_weight).at[by_weight].set(places)


_copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))


def adjust(
    state: State, variables: Variables, control: Control, score: np.ndarray | None
) -> tuple[State, Variables, dict[str, Any]]:
    """Densities at the end of an interval (methods/pr_fl.md 4, 5).

    Args:
      state: state after the merge.
      variables: model of the server.
      control: options of the controller.
      score: scores from `scorer`; None without recovery.

    Returns:
      The state and the model, which a roll-back replaces, and the records.
    """
    info: dict[str, Any] = {}
    # After the first stage densities only grow, and the floor rises to their minimum.
    slowest = float(np.min(state.density))
    only_grow = control.mode == "code" and not state.first_stage
    if only_grow and slowest > state.lowest + 0.01:
        state = state._replace(lowest=np.asarray(slowest))
    if score is not None:
        assert control.recovery is not None
        state, variables, info = _recover(state, variables, control, control.recovery, score)
    if control.adapt and (state.first_stage or control.mode == "paper"):
        rule = rules.feedback if control.mode == "code" else rules.by_ratio
        density = rule(state.density, rules.mean_times(state.times), state.floor)
        state = state._replace(density=density)
    info["densities"] = np.round(state.density, 4).tolist()
    return state, variables, info


def _recover(
    state: State, variables: Variables, control: Control, options: Recovery, score: np.ndarray
) -> tuple[State, Variables, dict[str, Any]]:
    """Raises the densities of clients that stopped improving, or all floors; see `adjust`."""
    info: dict[str, Any] = {}
    lowest = float(state.lowest)
    patience = np.full(len(score), options.patience)
    if lowest >= 1.0:
        patience[-1] *= 8
    if options.roll_back and not score[-1] <= state.stops.best[-1]:
        best = _copy((variables, state.slots, state.booked, state.importance))
        state = state._replace(best=best)
    stops, fire = rules.check(state.stops, score, patience)
    if fire[-1] and not state.armed:
        state = state._replace(armed=np.asarray(True))
    elif fire[-1]:
        lowest = min(lowest + options.increment, 1.0)
        if options.roll_back:
            state, variables = _roll_back(state, control.layout)
            info["rolled_back"] = True
    raised = np.minimum(state.density + options.increment, 1.0)
    if control.mode == "code":
        density = np.where(fire[:-1], raised, state.density)
        floor = np.maximum(state.floor, lowest)
    else:
        density = state.density
        floor = np.maximum(np.where(fire[:-1], raised, state.floor), lowest)
    recovered = np.any(fire[:-1]) or lowest > state.lowest
    info["recovered"] = np.flatnonzero(fire[:-1]).tolist()
    info["validation_score"] = float(score[-1])
    state = state._replace(
        density=np.maximum(density, floor),
        floor=floor,
        lowest=np.asarray(lowest),
        first_stage=np.asarray(bool(state.first_stage) and not recovered),
        stops=stops,
    )
    return state, variables, info


def _roll_back(state: State, layout: Layout) -> tuple[State, Variables]:
    """The state and the model of the best score, with bookings for the tasks at work."""
    variables, slots, booked, importance = _copy(state.best)
    slots, booked, place = rolled_back(
        slots,
        jax.tree.map(np.asarray, booked),
        state.slots,
        state.booked,
        int(state.place),
        layout,
    )
    state = state._replace(
        slots=slots, booked=booked, importance=importance, place=np.asarray(place)
    )
    return state, variables
