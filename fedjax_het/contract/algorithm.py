"""The contract of a federated algorithm: a NamedTuple of pure functions, and the types they use.

A round flows through these types in one direction::

    select ──ids──> plan ──Plan──> pace (when) ──> local ──Chunk──> merge ──Merged──> update
                                                                                        │
                                             host: records <── observe <──Report────────┘

The factory of an algorithm takes the `Problem` (model, data, fleet) and its hyper-parameters,
closes over both, and returns an immutable `Algorithm`.

The state of a method is a pytree. Its JAX leaves are on the device and are changed by `update`. Its
NumPy leaves are on the host, keep their precision and are changed by `plan` and `observe`.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.contract.clock import Pace
from fedjax_het.contract.memory import Buffers, Memory
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Question, Schedule, Situation
from fedjax_het.contract.preview import Preview
from fedjax_het.contract.selection import Select, Selector, uniform
from fedjax_het.contract.submodels import SubModels
from fedjax_het.contract.uploads import Upload
from fedjax_het.contract.widths import Widths

Array = jax.Array

# `Algorithm.sends` of a method whose clients send no parameters.
LOGITS = "features and logits"


class Variables(NamedTuple):
    """The parameters and running statistics of a model, in the order of its blocks.

    Attributes:
      params: parameters, `{"blocks": (p_0, ..., p_{L-1}), "exits": (e_0, ..., e_{L-2}) or ()}`;
        block 0 is the input side.
      stats: running statistics in the same outer structure; `{}` for a block without any.
    """

    params: PyTree
    stats: PyTree


class Task(NamedTuple):
    """One client's work inside the compiled program; scalars are traced.

    Attributes:
      client: client id, int32.
      key: typed PRNG key, `fold_in(fold_in(root, round), client)`.
      steps: local steps of this client, int32.
      loop_steps: largest `steps` among the clients trained side by side, the loop bound, int32.
      batch: samples per mini-batch, int32.
      learning_rate_scale: factor on the local updates, float32.
      exit: block after which this client's loss is taken (`exit` of its planned route), int32.
      mask: pytree that broadcasts against the parameters, or None if everything trains.
      row, shared: this client's row of `Plan.rows`, and `Plan.shared`.
      kept: what the client's training reads of the buffers of the merge (`Memory`), or None.
      width: level of the client's sub-network (`width` of its planned route), int32; that of the
        route that is compiled in may be wider if it is `padded`.
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
    kept: PyTree = None
    width: Any = None


class ClientResult(NamedTuple):
    """The result of a local update for one client.

    Attributes:
      delta: parameters after training minus before, structure of `Variables.params`; None at every
        leaf that the route does not train.
      stats: running statistics after training, structure of `Variables.stats`.
      loss: mean training loss over the local steps, weighted by samples, float32.
      samples: number of training samples processed, int32.
      aux: pytree for the merge only (importances ...), which stays on the device, or None.
      info: small pytree for `Algorithm.observe` (losses by part, logits ...), which is copied to
        the host, or None.
      square_loss: mean over the mini-batches of the first epoch of their squared losses, weighted
        by samples, float32; None for the square of `loss`.
    """

    delta: PyTree
    stats: PyTree
    loss: Array
    samples: Array
    aux: PyTree = None
    info: PyTree = None
    square_loss: Array | None = None


class Chunk(NamedTuple):
    """Stacked results of the clients trained side by side, the input of the merge.

    Every field has the leading axis c of the clients, under every pace.

    Attributes:
      client: client ids, int32[c].
      weight: aggregation weights, float32[c]; 0 for padding and for clients whose update is not
        finite.
      delta: stacked `ClientResult.delta`, zero for clients of weight 0.
      stats_delta: running statistics after training minus before, structure of `Variables.stats`.
      mask: stacked masks, or None if everything trains.
      start: `Variables` from which every client started; they cost nothing if the merge does not
        use them.
      row: rows of `Plan.rows`.
      shared: value of `Plan.shared` of each client's plan. If all clients share one plan, it is
        broadcast inside the program, without a copy in memory.
      staleness: server steps between the model from which a client started and this one, int32[c].
      aux: stacked `ClientResult.aux`, zero for clients of weight 0.
      steps: local steps of each client, int32[c].
      place: number of each task among those of the merge, from 0, int32[c]; that of padding, which
        has weight 0, is one of them again.
      key: typed PRNG keys [c] of the uploads of each task, which differ from those of the training.
      stats_mask: whether each client holds a running statistic, bool[c, ...] in their structure;
        None if every client holds all of them.
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
    steps: Any = None
    place: Any = None
    key: Any = None
    stats_mask: PyTree = None


class Merged(NamedTuple):
    """The result of a merge.

    Attributes:
      variables: merged model.
      info: small arrays by name, for the records.
      round: number of the server step, from 0, int32; the engine sets it for `Algorithm.update`.
      key: typed PRNG key of the server's step, which the engine sets for `Algorithm.update`; it
        depends on the seed and the step only, and differs from those of the clients.
    """

    variables: Variables
    info: Mapping[str, Any] = {}
    round: Any = None
    key: Any = None


class Aggregator(NamedTuple):
    """A streaming merge: unless it is `sized`, its memory does not grow with the cohort.

    Attributes:
      init: function `(state, variables, mask_shapes) -> acc`; `mask_shapes` is one client's mask as
        `ShapeDtypeStruct`s, or None.
      add: function `(acc, Chunk) -> acc`, traced into the training program. It is a sum over
        clients, so that several devices may start from zeros and add their sums. The memory of
        `acc` is reused.
      finalize: function `(acc, variables, shared) -> Merged`, traced; it returns coordinates that
        no client trained unchanged, bit for bit. `shared` is that of the newest plan.
      buffers: access to the buffers of the merge, or None if it keeps none. `init` passes the
        buffers in the state on to `add`, which may then replace their content and runs on one
        device; `update` gets a state without them.
      mean: whether it is the mean of the updates over the clients that train a coordinate, weighted
        by `Chunk.weight`, so that another rule may stand in its place. `init` then returns
        `aggregation.Sums`.
      sized: function `(tasks, shapes) -> Aggregator` of a merge that keeps the updates of a step
        apart: the merge for at most so many tasks of a model with these shapes of `Variables`. It
        raises `InputError` if they need too much memory. The engine calls it, when the cohort and
        the pace of the method are known. None for a merge that needs no such number.
      narrow: pair of `add` and of a function `(acc, Chunk, Placed) -> acc` that is equal to it for
        updates at the sizes of sub-networks by width and saves putting every update into its place.
        The engine uses it as long as `add` is still the first of the pair.
    """

    init: Callable[..., PyTree]
    add: Callable[[PyTree, Chunk], PyTree]
    finalize: Callable[[PyTree, Variables, PyTree], Merged]
    buffers: Buffers | None = None
    mean: bool = False
    sized: "Callable[[int, Variables], Aggregator] | None" = None
    narrow: tuple[Callable[..., PyTree], Callable[..., PyTree]] | None = None

    @property
    def add_narrow(self) -> Callable[..., PyTree] | None:
        """The function of `narrow`, or None if there is none or `add` is another one."""
        return None if self.narrow is None or self.narrow[0] is not self.add else self.narrow[1]

    @property
    def memory(self) -> Memory | None:
        """What clients read of the buffers, or None."""
        return None if self.buffers is None else self.buffers.memory

    def memory_in(self, acc: PyTree) -> PyTree:
        """The buffers in an accumulator, if clients read them; else None."""
        return None if self.memory is None else self.buffers.take(acc)  # type: ignore[union-attr]


class Report(NamedTuple):
    """The results of the executed tasks of a step, on the host, for `observe`.

    Attributes:
      round: number of the server step, from 0.
      plan: tasks that were executed, with the local steps that count.
      loss: mean training loss of each task, float32[k].
      samples: training samples processed by each task, int64[k].
      merged: whether each task was merged, bool[k]; False if its update is not finite.
      staleness: server steps between the model from which a task started and the merge, int64[k].
      client_info: stacked `ClientResult.info`, leading axis k, NumPy; or None.
      info: values that the merge reported, NumPy.
    """

    round: int
    plan: Plan
    loss: np.ndarray
    samples: np.ndarray
    merged: np.ndarray
    staleness: np.ndarray
    client_info: PyTree
    info: Mapping[str, Any]


# `(state, variables, Report) -> (state, variables, info)`; see `Algorithm.observe`.
Observe = Callable[[PyTree, Variables, Report], tuple[PyTree, Variables, dict[str, Any]]]


class Algorithm(NamedTuple):
    """A federated method as a set of pure functions (like an optax transformation).

    Attributes:
      name: name in records and plots.
      init: function `(variables, key) -> state`; the state is a pytree of JAX and NumPy arrays (see
        the module), in which arrays per client have a leading client axis.
      plan: function `(state, variables, Situation) -> (Plan, state)`, on the host; a `Schedule` if
        it depends on nothing that is learned.
      mask: function `(row, shared) -> mask`, traced, for one client; a mask is a pytree of bools
        that broadcasts against the parameters. None if every client trains everything.
      local: function `(route, start, data, Task) -> ClientResult` for one client, traced; the
        engine applies `vmap`.
      merge: `Aggregator` of the method.
      update: function `(state, variables, Merged) -> (state, variables)`, the server's step,
        traced. It may read and change the JAX leaves of the state; it must return the NumPy leaves
        unchanged.
      pace: rule for the time of a merge; see `fedjax_het.contract.clock`.
      cohort_size: number of clients selected per round; under a pace that may leave tasks waiting,
        the number of clients at work at any time.
      observe: function `(state, variables, Report) -> (state, variables, info)`, on the host, after
        every step. It updates host state and may replace the model (a roll-back); `info` is
        recorded. If None, rounds need not return to the host.
      select: selection of the cohort, a function or a `Selector`; see `contract.selection`.
      evaluated: function `(state, variables) -> [Variables]` for the models whose mean metrics
        count as those of the method; None for the global model only.
      calibrate: function `variables -> variables`, on the host, which completes the global model
        before it is evaluated, saved or returned: the statistics of norms that clients neither use
        nor send. Training must not depend on what it changes. None for a model that is complete.
      paces: what another pace in the place of `pace` may do to the tasks; see `contract.paces`.
      preview: function `() -> Preview`, on the host, which describes a run ahead; None for none.
      uploads: changes of the updates on their way to the merge, in their order.
      replaces: whether `observe` may replace the model (a roll-back, training on the server).
      sends: what a client sends to the server; changes of updates are refused by a method whose
        clients send something else than their "updates", and attacks on parameters by one whose
        clients send `LOGITS`.
      widths: sub-networks by width of which clients train one, or None if all train the complete
        network. `local` then gets the tensors of the sub-network of its route, and its results are
        put back into their places before the merge.
      submodels: models of the kinds of clients, which are evaluated beside the global one, or None.
      measure: function `(variables, data, Question) -> pytree` for one client, traced, that answers
        what `plan` asks of the clients' own samples; None for a plan that asks nothing. A plan that
        looks at samples in another way cannot leave the simulation.
      options: resolved options of the method's factory in JSON types, which belong to the identity
        of a run; `algorithms.register` sets them. None for a method that nobody registered.
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
    select: Select | Selector = uniform
    evaluated: Callable[[PyTree, Variables], list[Variables]] | None = None
    calibrate: Callable[[Variables], Variables] | None = None
    paces: Paces = Paces()
    preview: Callable[[], Preview] | None = None
    uploads: tuple[Upload, ...] = ()
    replaces: bool = False
    sends: str = "updates"
    widths: Widths | None = None
    submodels: SubModels | None = None
    measure: Callable[[Variables, Any, Question], PyTree] | None = None
    options: Mapping[str, Any] | None = None

    @property
    def overlaps(self) -> bool:
        """Whether tasks may span merges, as some may be left waiting or the merge has buffers."""
        kept = self.merge.buffers is not None or any(each.keep for each in self.uploads)
        return self.pace.may_wait or kept

    @property
    def most_merged(self) -> int:
        """Largest number of tasks that a step merges."""
        most = self.pace.most
        return self.most_tasks if most is None else min(most, self.most_tasks)

    @property
    def most_tasks(self) -> int:
        """Largest number of tasks that a merge may find, arrived or still at work."""
        # While a refilling pace waits, there are arrived tasks as well as running ones.
        return self.cohort_size * (2 if self.pace.refills else 1)

    @property
    def plans_ahead(self) -> bool:
        """Whether a batch of rounds can be planned first and run in one program."""
        learns = self.observe is not None or isinstance(self.select, Selector)
        return isinstance(self.plan, Schedule) and not learns and not self.overlaps
