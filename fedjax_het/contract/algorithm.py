"""The contract of a federated algorithm: one NamedTuple of pure functions, and what they exchange.

A round flows through these types in one direction::

    plan ──Plan──> clock (when) ──> cohort (train) ──Chunk──> merge ──Variables──> update

The factory of an algorithm takes the `Problem` (model, data, fleet) and its hyper-parameters,
closes over both, and returns an `Algorithm`; nothing in it is mutable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.masks import Route

Array = jax.Array


class Variables(NamedTuple):
    """What a model is made of, each in the order of its blocks.

    Attributes:
      params: `{"blocks": (p_0, ..., p_{L-1}), "exits": (e_0, ..., e_{L-2}) or ()}`; block 0 is the
        input side.
      stats: running statistics in the same outer structure; `{}` for a block without any.
    """

    params: PyTree
    stats: PyTree


class Timing(NamedTuple):
    """Price of each client's task, NumPy arrays of length k; durations are positive in sum."""

    download_s: np.ndarray  # float64[k]
    compute_s: np.ndarray  # float64[k]
    upload_s: np.ndarray  # float64[k]
    bytes_down: np.ndarray  # int64[k]
    bytes_up: np.ndarray  # int64[k]
    flops: np.ndarray  # float64[k]

    @property
    def total_s(self) -> np.ndarray:
        """Seconds from dispatch to arrival, float64[k]."""
        return self.download_s + self.compute_s + self.upload_s


class Plan(NamedTuple):
    """Who trains what, on how many samples, and what it costs; one row a client task.

    Attributes:
      clients: int64[k], distinct client ids.
      routes: k static descriptions of the work that may not be left out; each covers its mask.
      steps: int32[k], local optimiser steps (>= 1).
      batch: int32[k], samples per local mini-batch (>= 1).
      weight: float32[k], aggregation weight a_i (> 0).
      timing: what the tasks cost on the virtual clock.
      rows: pytree of arrays with leading axis k, one row per client (a depth, a density, last
        round's logits ...); handed to `Algorithm.mask` and to the local update.
      shared: pytree broadcast to every client and to `merge` (a ranking, a bias correction ...).
      learning_rate_scale: factor on the local updates of this round.
      deadline_s: seconds after dispatch at which a deadline pace closes the round.
      info: what there is to record of the plan, names to numbers.
    """

    clients: np.ndarray
    routes: Sequence[Route]
    steps: np.ndarray
    batch: np.ndarray
    weight: np.ndarray
    timing: Timing
    rows: PyTree = None
    shared: PyTree = None
    learning_rate_scale: float = 1.0
    deadline_s: float = float("inf")
    info: Mapping[str, Any] | None = None


class Task(NamedTuple):
    """One client's work inside the compiled program; scalars are traced unless noted.

    Attributes:
      client: int32, client id.
      key: typed PRNG key, `fold_in(fold_in(root, round), client)`.
      steps: int32, local steps of this client.
      loop_steps: int32, the largest `steps` among the clients trained side by side: the loop bound.
      batch: int32, samples per mini-batch.
      learning_rate_scale: float32.
      exit: int32, block after which this client's loss is taken (`exit` of its planned route).
      mask: pytree that broadcasts against the parameters, or None when everything trains.
      row, shared: this client's row of `Plan.rows`, and `Plan.shared`.
    """

    client: Array
    key: Array
    steps: Array
    loop_steps: Array
    batch: Array
    learning_rate_scale: Array
    exit: Array
    mask: PyTree
    row: PyTree
    shared: PyTree


class ClientResult(NamedTuple):
    """What a local update returns for one client.

    Attributes:
      delta: parameters after minus before, structure of `Variables.params`; None at every leaf that
        the route left out.
      stats: running statistics after training, structure of `Variables.stats`.
      loss: float32, mean training loss over the local steps, weighted by samples.
      samples: int32, training samples processed.
      aux: small pytree per client for `update` (importances, logits ...), or None.
    """

    delta: PyTree
    stats: PyTree
    loss: Array
    samples: Array
    aux: PyTree = None


class Chunk(NamedTuple):
    """Stacked results of the clients trained side by side, as the merge sees them (leading axis c).

    Attributes:
      client: int32[c].
      weight: float32[c]; 0 for padding and for clients whose update is not finite.
      delta: like `ClientResult.delta`, zero-filled where `weight` is 0.
      stats_delta: running statistics after minus before, structure of `Variables.stats`.
      mask: stacked mask, or None when everything trains.
      start: the `Variables` every client started from, stacked; free where it is not used.
      row, shared: as in `Task`, rows stacked. Under a pace that leaves tasks waiting `shared` is
        stacked as well, for every client brings that of its own dispatch.
      aux: stacked `ClientResult.aux`, zero-filled where `weight` is 0.
      staleness: int32[c], server steps between the model a client started from and this one.
    """

    client: Array
    weight: Array
    delta: PyTree
    stats_delta: PyTree
    mask: PyTree
    start: Variables
    row: PyTree
    shared: PyTree
    aux: PyTree = None
    staleness: Any = None


class Aggregator(NamedTuple):
    """Merging as a stream: memory does not grow with the cohort.

    Attributes:
      init: `(state, variables, mask_shapes) -> acc`; `mask_shapes` is one client's mask as
        `ShapeDtypeStruct`s, or None.
      add: `(acc, Chunk) -> acc`; traced into the training program. It must be a sum over clients,
        so that devices may start from zeros and add up what they hold. `acc` is consumed. Under a
        pace that leaves tasks waiting it runs on one device, and may also replace what it holds.
      finalize: `(acc, variables, shared) -> (Variables, info)`; coordinates nobody trained are
        returned bit for bit. `info` maps names to small arrays.
    """

    init: Callable[..., PyTree]
    add: Callable[[PyTree, Chunk], PyTree]
    finalize: Callable[..., tuple[Variables, dict[str, Any]]]


class Situation(NamedTuple):
    """What `plan` may look at besides its own state.

    Attributes:
      round: server step about to start, from 0.
      now_s: virtual time of the dispatch.
      clients: int64[k], the sampled cohort, all available at `now_s`.
      key: typed PRNG key of this round, for device work inside the plan.
      rng: NumPy generator of this round, for draws on the host.
      accuracy: on the test set, if the model has been evaluated since the last plan.
    """

    round: int
    now_s: float
    clients: np.ndarray
    key: Array
    rng: np.random.Generator
    accuracy: float | None = None


class Report(NamedTuple):
    """What came back from the cohort, on the host, for `update` and for the records.

    Attributes:
      round: server step, from 0.
      plan: the plan that was executed (deadlines already applied).
      loss: float32[k]; NaN for tasks that were not run.
      samples: int64[k].
      merged: bool[k], False for tasks dropped by the pace or left out as not finite.
      nonfinite: int64[...], ids of the clients whose update was not finite.
      aux: stacked `ClientResult.aux`, leading axis k, or None. Under a pace that leaves tasks
        waiting it stays on the device, and the merge alone sees it (`Chunk.aux`).
      info: what `finalize` reported.
      staleness: int64[k], server steps between the model a task started from and the merge.
      acc: the merge's accumulator, on the device, for methods with buffers that outlive a step.
    """

    round: int
    plan: Plan
    loss: np.ndarray
    samples: np.ndarray
    merged: np.ndarray
    nonfinite: np.ndarray
    aux: PyTree
    info: dict[str, Any]
    staleness: Any = None
    acc: PyTree = None


@dataclass(frozen=True)
class Schedule:
    """A plan that looks at nothing learned, neither the model nor the state nor an accuracy.

    With a `ServerStep` for `update`, whole blocks of rounds are planned first and then run in one
    program, without coming back to the host in between.

    Attributes:
      tasks: `(Situation) -> Plan`.
    """

    tasks: Callable[[Situation], Plan]

    def __call__(
        self, state: PyTree, variables: Variables, situation: Situation
    ) -> tuple[Plan, PyTree]:
        """`Algorithm.plan`."""
        del variables
        return self.tasks(situation), state


@dataclass(frozen=True)
class ServerStep:
    """A server's step that looks at no report, in pure JAX; see `Schedule`.

    Attributes:
      step: `(state, variables, merged) -> (state, variables)`, traceable.
    """

    step: Callable[[PyTree, Variables, Variables], tuple[PyTree, Variables]]

    def __call__(
        self, state: PyTree, variables: Variables, merged: Variables, report: Report
    ) -> tuple[PyTree, Variables, dict[str, Any]]:
        """`Algorithm.update`."""
        del report
        return *self.step(state, variables, merged), {}


class Algorithm(NamedTuple):
    """A federated method, as pure functions (in the manner of an optax transformation).

    Attributes:
      name: for records and plots.
      init: `(variables, key) -> state`, a pytree of arrays; state per client has a leading client
        axis.
      plan: `(state, variables, Situation) -> (Plan, state)`; a `Schedule` if it can be.
      mask: `(row, shared) -> mask` pytree of bools broadcasting against the parameters (traced, one
        client), or None when every client trains everything.
      local: `(route, start, data, Task) -> ClientResult`, one client; the cohort vmaps it.
      merge: the `Aggregator`.
      update: `(state, variables, merged, Report) -> (state, variables, info)`; the server's step, a
        `ServerStep` if it can be.
      pace: when the server merges; see `fedjax_het.contract.clock`.
      cohort_size: clients sampled per round; clients at work at any time, under a pace that leaves
        tasks waiting.
      evaluated: `(state, variables) -> [Variables]`, the models whose mean accuracy counts as the
        method's; None for the global model alone.
    """

    name: str
    init: Callable[..., PyTree]
    plan: Callable[[PyTree, Variables, Situation], tuple[Plan, PyTree]]
    mask: Callable[[PyTree, PyTree], PyTree] | None
    local: Callable[..., ClientResult]
    merge: Aggregator
    update: Callable[..., tuple[PyTree, Variables, dict[str, Any]]]
    pace: Any
    cohort_size: int
    evaluated: Callable[[PyTree, Variables], list[Variables]] | None = None
