"""The contract of a federated algorithm: one NamedTuple of pure functions, and what they exchange.

A round flows through these types in one direction::

    select ──ids──> plan ──Plan──> pace (when) ──> local ──Chunk──> merge ──Merged──> update
                                                                                        │
                                             host: records <── observe <──Report────────┘

The factory of an algorithm takes the `Problem` (model, data, fleet) and its hyper-parameters,
closes over both, and returns an `Algorithm`; nothing in it is mutable.

The state of a method is a pytree. Its JAX leaves live on the device and are changed by `update`;
its NumPy leaves live on the host, keep their precision and are changed by `plan` and `observe`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.clock import Pace
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.contract.preview import Preview
from fedjax_het.contract.selection import Select, uniform

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
      aux: pytree for the merge alone (importances ...), which stays on the device, or None.
      info: small pytree for `Algorithm.observe` (losses by part, logits ...), which is fetched to
        the host, or None.
    """

    delta: PyTree
    stats: PyTree
    loss: Array
    samples: Array
    aux: PyTree = None
    info: PyTree = None


class Chunk(NamedTuple):
    """Stacked results of the clients trained side by side, as the merge sees them.

    Every field has the leading axis c of the clients, whatever the pace.

    Attributes:
      client: int32[c].
      weight: float32[c]; 0 for padding and for clients whose update is not finite.
      delta: like `ClientResult.delta`, zero-filled where `weight` is 0.
      stats_delta: running statistics after minus before, structure of `Variables.stats`.
      mask: stacked mask, or None when everything trains.
      start: the `Variables` every client started from; free where it is not used.
      row: rows of `Plan.rows`.
      shared: what the client's own plan shared (`Plan.shared`); where all clients share one plan it
        is broadcast inside the program, without a copy in memory.
      staleness: int32[c], server steps between the model a client started from and this one.
      aux: stacked `ClientResult.aux`, zero-filled where `weight` is 0.
    """

    client: Array
    weight: Array
    delta: PyTree
    stats_delta: PyTree
    mask: PyTree
    start: Variables
    row: PyTree
    shared: PyTree
    staleness: Array
    aux: PyTree = None


class Merged(NamedTuple):
    """What a merge makes of the server's model.

    Attributes:
      variables: the merged model.
      info: names to small arrays, for the records.
    """

    variables: Variables
    info: Mapping[str, Any] = {}


class Buffers(NamedTuple):
    """Where a merge keeps what outlives a step on the device (the latest upload of every client).

    Attributes:
      take: `acc -> buffers`, out of an accumulator, without computing anything.
      put: `(state, buffers) -> state`, into the state of the method; None takes them out of it.
    """

    take: Callable[[PyTree], PyTree]
    put: Callable[[PyTree, PyTree], PyTree]


class Aggregator(NamedTuple):
    """Merging as a stream: memory does not grow with the cohort.

    Attributes:
      init: `(state, variables, mask_shapes) -> acc`; `mask_shapes` is one client's mask as
        `ShapeDtypeStruct`s, or None.
      add: `(acc, Chunk) -> acc`; traced into the training program. It is a sum over clients, so
        that devices may start from zeros and add up what they hold. `acc` is consumed.
      finalize: `(acc, variables, shared) -> Merged`, traced; coordinates nobody trained are
        returned bit for bit. `shared` is that of the newest plan.
      buffers: where it keeps buffers, or None if it keeps none. `init` hands the buffers of the
        state on to `add`, which may then replace what they hold and runs on one device; `update`
        sees a state without them.
    """

    init: Callable[..., PyTree]
    add: Callable[[PyTree, Chunk], PyTree]
    finalize: Callable[[PyTree, Variables, PyTree], Merged]
    buffers: Buffers | None = None


class Report(NamedTuple):
    """What came back from the cohort, on the host, for `observe`.

    Attributes:
      round: server step, from 0.
      plan: the tasks that were executed, with the steps that count.
      loss: float32[k].
      samples: int64[k].
      merged: bool[k], False for tasks left out because their update is not finite.
      staleness: int64[k], server steps between the model a task started from and the merge.
      client_info: stacked `ClientResult.info`, leading axis k, NumPy; or None.
      info: what the merge reported, NumPy.
    """

    round: int
    plan: Plan
    loss: np.ndarray
    samples: np.ndarray
    merged: np.ndarray
    staleness: np.ndarray
    client_info: PyTree
    info: Mapping[str, Any]


@dataclass(frozen=True)
class Schedule:
    """A plan that looks at nothing learned, neither the model nor the state nor an accuracy.

    Where `Algorithm.plan` is a `Schedule` and nothing observes the rounds, whole batches of rounds
    are planned first and then run in one program, without coming back to the host in between. A
    plan of any other type is asked anew before every round.

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


# `(state, variables, Report) -> (state, variables, info)`; see `Algorithm.observe`.
Observe = Callable[[PyTree, Variables, Report], tuple[PyTree, Variables, dict[str, Any]]]


class Algorithm(NamedTuple):
    """A federated method, as pure functions (in the manner of an optax transformation).

    Attributes:
      name: for records and plots.
      init: `(variables, key) -> state`, a pytree of JAX and NumPy arrays (see the module); state
        per client has a leading client axis.
      plan: `(state, variables, Situation) -> (Plan, state)`, on the host; a `Schedule` where it
        looks at nothing learned.
      mask: `(row, shared) -> mask` pytree of bools broadcasting against the parameters (traced, one
        client), or None when every client trains everything.
      local: `(route, start, data, Task) -> ClientResult`, one client; the engine vmaps it.
      merge: the `Aggregator`.
      update: `(state, variables, Merged) -> (state, variables)`, the server's step, traced. It may
        read and change the JAX leaves of the state; its NumPy leaves pass through as they are.
      pace: when the server merges; see `fedjax_het.contract.clock`.
      cohort_size: clients selected per round; clients at work at any time, under a pace that may
        leave tasks waiting.
      observe: `(state, variables, Report) -> (state, variables, info)`, on the host, after every
        step: keeps books, and may replace the model (a roll-back). `info` is recorded. None if
        nothing is to be seen; rounds then need not come back to the host.
      select: who takes part; see `fedjax_het.contract.selection`.
      evaluated: `(state, variables) -> [Variables]`, the models whose mean accuracy counts as the
        method's; None for the global model alone.
      preview: `() -> Preview`, on the host, what a run would do; None for a method that plans
        nothing ahead.
    """

    name: str
    init: Callable[[Variables, Array], PyTree]
    plan: Callable[[PyTree, Variables, Situation], tuple[Plan, PyTree]]
    mask: Callable[[PyTree, PyTree], PyTree] | None
    local: Callable[..., ClientResult]
    merge: Aggregator
    update: Callable[[PyTree, Variables, Merged], tuple[PyTree, Variables]]
    pace: Pace
    cohort_size: int
    observe: (
        Callable[[PyTree, Variables, Report], tuple[PyTree, Variables, dict[str, Any]]] | None
    ) = None
    select: Select = uniform
    evaluated: Callable[[PyTree, Variables], list[Variables]] | None = None
    preview: Callable[[], Preview] | None = None

    @property
    def overlaps(self) -> bool:
        """Whether clients are at work across merges: the pace leaves some, or buffers hold some."""
        return self.pace.may_wait or self.merge.buffers is not None

    @property
    def plans_ahead(self) -> bool:
        """Whether rounds can be planned first and run in one program."""
        return isinstance(self.plan, Schedule) and self.observe is None and not self.overlaps
