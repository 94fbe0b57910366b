"""SCAFFOLD: control variates of the server and of every client correct the local gradients."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.client_memory import LAST_STEP, added, no_rows, require_room, row_of
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, UniformTraining
from fedjax_het.common.numbers import Unlimited
from fedjax_het.common.types import PyTree
from fedjax_het.contract.aggregation import masked_mean, weighted_sum
from fedjax_het.contract.algorithm import Aggregator, Algorithm, Chunk, Merged, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.memory import Buffers, Memory
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation
from fedjax_het.fleet.flops import tree_bytes
from fedjax_het.problem import Problem
from fedjax_het.transforms import server


class State(NamedTuple):
    """Control variates, which are buffers of the merge; None while they are merged.

    Attributes:
      own: variates $c_i$ of all clients, float32[n, ...] per parameter.
      common: variate $c$ of the server, in the shapes of the parameters, as the clients of the
        newest step read it.
      change: change of `common` at the next step.
    """

    own: PyTree
    common: PyTree
    change: PyTree


class Acc(NamedTuple):
    """Accumulator of a merge: the sums of the mean, and the control variates."""

    sums: PyTree
    variates: State


class Kept(NamedTuple):
    """What a client reads: its own control variate and that of the server."""

    own: PyTree
    common: PyTree


@register(options=UniformTraining)
def scaffold(
    problem: Problem,
    *,
    server_learning_rate: float = 1.0,
    memory_bytes: Unlimited = 16e9,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""SCAFFOLD: local steps along $g_i(y) - c_i + c$, which do not drift to a client's optimum.

    After its local steps a client has $c_i^+ = c_i - c + \bar g_i$ with the mean $\bar g_i$ of its
    corrected gradients, so $c_i^+$ is the mean of its own gradients, a proximal term included. For
    plain SGD without decay
    $\bar g_i = (x - y_i) / (K \eta_l)$, which is the paper's option II; the mean defines the method
    for every optimiser of the clients as well. The server moves by $x \leftarrow x +
    \frac{\eta_g}{|S|} \sum_i \Delta y_i$ and $c \leftarrow c + \frac{1}{n} \sum_i (c_i^+ - c_i)$.

    A client sends and receives as many values again as the model has parameters, which are priced,
    and a device holds two arrays per parameter more. The simulation keeps n models.

    Args:
      problem: model, data and fleet.
      server_learning_rate: step size $\eta_g$ of the server.
      memory_bytes: limit of the bytes of all clients' control variates.
      **training: fields of `UniformTraining`; with `weighting="samples"` the model moves by the
        weighted mean of the updates, and c by changes weighted with n_i over the mean of all
        clients, so that it remains the weighted mean of the c_i.

    References:
      Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*, 2020,
      Algorithm 1 with option II.
    """
    options = UniformTraining.parse(training)
    step = server.optimizer("sgd", learning_rate=server_learning_rate)
    require_room(problem, "scaffold", memory_bytes)
    like, n = problem.model.shapes.params, problem.num_clients
    more, relative = tree_bytes(like), parts.relative_weights(problem, options)

    def amend(situation: Situation, plan: Plan) -> Plan:
        timing = plan.timing
        down, up = timing.bytes_down + more, timing.bytes_up + more
        plan = plan._replace(timing=timing.moving(bytes_down=down, bytes_up=up))
        return relative(situation, plan)

    def init(variables: Variables, key: Any) -> State:
        del key
        zero = jax.tree.map(jnp.zeros_like, variables.params)
        return State(no_rows(variables.params, n), zero, zero)

    def correction(task: Task) -> PyTree:
        return jax.tree.map(jnp.subtract, task.kept.common, task.kept.own)

    base = parts.full_model("scaffold", problem, options, pace=barrier(), kept=2, amend=amend)
    return step(
        base._replace(
            init=init,
            local=options.local_update(
                problem, linear=correction, observe=lambda grads: grads, mean=True
            ),
            merge=_merge(like, n),
            sends="its update and the change of its control variate",
            paces=Paces(overlap=LAST_STEP),
        )
    )


def _merge(like: PyTree, n: int) -> Aggregator:
    """The mean of the updates, and the control variates of n clients after the step."""
    mean = masked_mean()

    def init(state: State, variables: Variables, mask_shapes: PyTree) -> Acc:
        common = jax.tree.map(jnp.add, state.common, state.change)
        zero = jax.tree.map(jnp.zeros_like, common)
        return Acc(mean.init((), variables, mask_shapes), State(state.own, common, zero))

    def add(acc: Acc, chunk: Chunk) -> Acc:
        own, common, total = acc.variates

        def renewed(common: jax.Array, mean_gradient: jax.Array | None) -> jax.Array | None:
            return None if mean_gradient is None else mean_gradient - common[None]

        change = jax.tree.map(renewed, common, chunk.aux)
        total = jax.tree.map(
            lambda sum, new: sum if new is None else sum + weighted_sum(chunk.weight / n, new),
            total,
            change,
        )
        return Acc(mean.add(acc.sums, chunk), State(added(own, chunk, change), common, total))

    def finalize(acc: Acc, variables: Variables, shared: PyTree) -> Merged:
        return mean.finalize(acc.sums, variables, shared)

    def put(state: State, variates: State | None) -> State:
        del state
        return State(None, None, None) if variates is None else variates

    def read(variates: State, client: jax.Array) -> Kept:
        return Kept(row_of(variates.own, client), variates.common)

    buffers = Buffers(lambda acc: acc.variates, put, Memory(read, Kept(like, like)))
    return Aggregator(init, add, finalize, buffers)
