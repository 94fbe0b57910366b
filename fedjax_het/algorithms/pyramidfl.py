"""PyramidFL: Oort's cohorts; early finishers train more, and upload less where it matters less."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_het.algorithms import parts
from fedjax_het.algorithms.registry import register
from fedjax_het.algorithms.training import TrainingKeywords, TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options
from fedjax_het.common.types import PyTree
from fedjax_het.contract import masks
from fedjax_het.contract.aggregation import masked_mean, plain_mean
from fedjax_het.contract.algorithm import Algorithm, ClientResult, Report, Task, Variables
from fedjax_het.contract.clock import barrier
from fedjax_het.contract.masks import Route
from fedjax_het.contract.paces import Paces
from fedjax_het.contract.plan import Plan, Situation, Timing
from fedjax_het.contract.selection import Candidates, Selector
from fedjax_het.data.batches import DeviceData
from fedjax_het.fleet.cost import price
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.base import BlockModel
from fedjax_het.problem import Problem
from fedjax_het.transforms.select import oort as by_oort

# Constants of the authors' code: most added work as a multiple of the planned work, most epochs,
# and the factor by which the gradient utility of a client that has been seen is reduced.
_MOST_ADDED, _MOST_EPOCHS = 10, 5
_SEEN = 0.01
# An upload without tensors tells the utility, float32.
_LEAST_BYTES = 4


class Utilities(NamedTuple):
    """What the server remembers of the clients.

    Attributes:
      gradient: gradient utility of each client, float64[n].
    """

    gradient: np.ndarray


@register
def pyramidfl(
    problem: Problem,
    *,
    beta: float = 1.0,
    thinned_from: float = 0.1,
    thinned_to: float = 0.6,
    left_out: str = "masked",
    oort: Mapping[str, Any] | None = None,
    **training: Unpack[TrainingKeywords],
) -> Algorithm:
    r"""PyramidFL: Oort's cohorts, in which clients fill the time until the slowest has finished.

    Clients are ranked by their gradient utility $\lVert \Delta_i \rVert \min(n_i, s_i) / 100$, with
    the samples $s_i$ and the whole update $\Delta_i$ of the last task; a client not seen yet has
    the utility $n_i$. Of K clients, the one with `rank` better ones sends every tensor with
    probability $1 - d_i$, $d_i$ = `thinned_from` + rank (`thinned_to` - `thinned_from`) / K. The
    server draws the tensors, so the clock charges exactly those; 4 bytes if there are none.

    With the thinned uploads the slowest client takes T seconds. A client that takes $t_i$, of which
    $c_i$ for its $E_i$ steps, trains $\lfloor \beta (T - t_i) E_i / c_i \rfloor$ steps more, at
    most $10 E_i$ more and five epochs in all. It trains all tensors; only what it sends is thinned.

    Oort sees the durations of whole tasks, without added steps or thinned uploads. Another one is
    refused, because it would see the tasks as they are.

    Args:
      problem: model, data and fleet.
      beta: share of the idle time that is filled with training, in [0, 1].
      thinned_from: share of the upload that the client of the highest utility leaves out, in [0,
        1].
      thinned_to: share that no client reaches, from `thinned_from` to 1; equal shares for everyone
        if they are equal, and whole uploads if both are 0.
      left_out: meaning of a tensor that is not sent: "masked", the mean is over the clients that
        sent it; "zeroed", it counts as unchanged, as in the authors' code.
      oort: options of `select.oort`; None for its defaults.
      **training: fields of `TrainingOptions`.

    Returns:
      The algorithm. `info` has `added_steps`, the sum over the cohort, and `thinned_share`, the
      share of the cohort's upload bytes that is left out.

    References:
      Li et al., *PyramidFL: A Fine-grained Client Selection Framework for Efficient Federated
      Learning*, MobiCom 2022; https://github.com/liecn/PyramidFL; methods/selection.md 6.
    """
    require(0 <= beta <= 1, f"beta = {beta}", "must lie in [0, 1]", "use 1, or 0 for no added work")
    require(
        0 <= thinned_from <= thinned_to <= 1,
        f"thinned_from = {thinned_from}, thinned_to = {thinned_to}",
        "must satisfy 0 <= thinned_from <= thinned_to <= 1",
        "use 0.1 and 0.6, or 0 and 0 for whole uploads",
    )
    require_known(left_out, ("masked", "zeroed"), "left_out")
    check_options(oort or {}, "option 'oort' of pyramidfl, its option", by_oort)
    options = TrainingOptions.parse(training)
    base = parts.full_model("pyramidfl", problem, options, pace=barrier())
    train, upload = base.local, Upload(problem.model)
    last = problem.model.num_blocks - 1

    def init(variables: Variables, key: Any) -> Utilities:
        del variables, key
        return Utilities(problem.data.sizes.astype(np.float64))

    def plan(
        state: Utilities, variables: Variables, situation: Situation
    ) -> tuple[Plan, Utilities]:
        del variables
        clients, fleet = situation.clients, problem.fleet.at(situation.round)
        sizes = problem.data.sizes[clients]
        share = shares(state.gradient[clients], thinned_from, thinned_to)
        sent = situation.rng.random((len(clients), upload.tensors)) >= share[:, None]
        bytes_up = np.maximum(upload.bytes(sent), _LEAST_BYTES)

        def timing(steps: np.ndarray, rng: np.random.Generator | None) -> Timing:
            samples = options.samples(sizes, steps)
            return price(
                problem.cost,
                fleet,
                clients,
                0,
                last,
                samples,
                situation.now_s,
                rng,
                bytes_up=bytes_up,
            )

        least = options.steps(sizes)
        most = np.maximum(_MOST_EPOCHS * -(-sizes // options.batch_size), least)
        steps = np.minimum(least + added(timing(least, None), least, beta), most)
        tasks = parts.plan_tasks(
            problem,
            options,
            situation,
            rows={"sent": sent},
            timing=timing(steps, situation.rng),
        )
        info = {
            "added_steps": int(np.sum(steps - least)),
            "thinned_share": 1.0 - float(np.mean(bytes_up)) / float(upload.whole_bytes),
        }
        return tasks._replace(steps=steps, info=info), state

    def local(route: Route, start: Variables, data: DeviceData, task: Task) -> ClientResult:
        result = train(route, start, data, task._replace(mask=None))
        norm = optax.tree.norm(result.delta)
        return result._replace(delta=masks.apply(task.mask, result.delta), info={"norm": norm})

    def observe(
        state: Utilities, variables: Variables, report: Report
    ) -> tuple[Utilities, Variables, dict[str, Any]]:
        clients = report.plan.clients
        seen = np.minimum(problem.data.sizes[clients], report.samples)
        worth = _SEEN * report.client_info["norm"].astype(np.float64) * seen
        gradient = state.gradient.copy()
        gradient[clients[report.merged]] = worth[report.merged]
        return Utilities(gradient), variables, {}

    # A constant fleet is the same object in every round.
    @functools.lru_cache(maxsize=1)
    def whole_tasks(fleet: Fleet) -> Timing:
        sizes, clients = problem.data.sizes, np.arange(problem.num_clients)
        samples = options.samples(sizes, options.steps(sizes))
        return price(problem.cost, fleet, clients, 0, last, samples, 0.0, None)

    selecting = by_oort(**(oort or {}))(base).select
    assert isinstance(selecting, Selector)
    return base._replace(
        init=init,
        plan=plan,
        mask=lambda row, shared: upload.mask(row["sent"]),
        local=local,
        paces=Paces(
            drop="the steps of a client follow from the slowest of its cohort, which must arrive",
            overlap="the steps of a client follow from the slowest of its cohort",
        ),
        merge=masked_mean() if left_out == "masked" else plain_mean(),
        observe=observe,
        select=knowing(selecting, lambda round: whole_tasks(problem.fleet.at(round))),
    )


class Upload:
    """The tensors that a client may send: all parameters of the blocks, in their order.

    The statistics of a block are sent with any of its tensors.

    Args:
      model: model of the clients.

    Attributes:
      tensors: number t of tensors.
    """

    def __init__(self, model: BlockModel):
        params, stats = model.shapes
        leaves = [jax.tree.leaves(block) for block in params["blocks"]]
        self._params = params
        self._block = np.repeat(np.arange(len(leaves)), [len(block) for block in leaves])
        self._bytes = np.asarray([a.size * a.dtype.itemsize for block in leaves for a in block])
        sent = stats["blocks"] if model.stats_policy == "mean" else [()] * len(leaves)
        self._stats_bytes = np.asarray(
            [sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(block)) for block in sent]
        )
        self.tensors = len(self._bytes)

    @property
    def whole_bytes(self) -> int:
        """Bytes of all tensors and their statistics."""
        return int(self.bytes(np.ones((1, self.tensors), bool))[0])

    def bytes(self, sent: np.ndarray) -> np.ndarray:
        """Bytes of the uploads with these tensors, int64[k]; `sent` is bool[k, t]."""
        blocks = np.stack(
            [np.any(sent[:, self._block == b], axis=1) for b in range(len(self._stats_bytes))],
            axis=1,
        )
        return sent.astype(np.int64) @ self._bytes + blocks.astype(np.int64) @ self._stats_bytes

    def mask(self, sent: jax.Array) -> PyTree:
        """Mask of the tensors that are sent; `sent` is bool[t], traced."""
        structure = jax.tree.structure(self._params["blocks"])
        blocks = jax.tree.unflatten(structure, [sent[i] for i in range(self.tensors)])
        exits = jax.tree.map(lambda _: jnp.asarray(False), self._params["exits"])
        return {"blocks": blocks, "exits": exits}


def shares(utility: np.ndarray, least: float, bound: float) -> np.ndarray:
    """Share of its upload that each client of a cohort leaves out, float64[k].

    Args:
      utility: gradient utilities, float64[k]; clients with the same have the same share.
      least: share of the client of the highest utility.
      bound: share that no client reaches.
    """
    rank = np.searchsorted(np.sort(-utility), -utility)
    return least + rank * (bound - least) / len(utility)


def added(timing: Timing, steps: np.ndarray, beta: float) -> np.ndarray:
    """Steps that fit between the end of each task and that of the slowest, int64[k].

    Args:
      timing: expected durations of the tasks.
      steps: steps of the tasks, int64[k], at least 1.
      beta: share of the time that is filled.
    """
    total_s = timing.total_s
    idle = beta * (np.max(total_s) - total_s) / (timing.compute_s / steps)
    return np.minimum(_MOST_ADDED * steps, np.floor(idle + 1e-9)).astype(np.int64)


def knowing(select: Selector, timing_of: Callable[[int], Timing]) -> Selector:
    """The selection with other durations of tasks than those of the cohort's plan.

    Args:
      select: selection.
      timing_of: function from the round to the timing of the tasks of all clients.
    """

    def choose(state: PyTree, candidates: Candidates) -> tuple[np.ndarray, PyTree]:
        assert candidates.known is not None
        timing = timing_of(candidates.round)
        known = candidates.known._replace(duration_s=timing.total_s)

        def asked(clients: np.ndarray) -> Timing:
            return jax.tree.map(lambda column: column[clients], timing)

        return select.choose(state, replace(candidates, known=known, price=asked))

    fixed = "PyramidFL is Oort with two more rules; give options of Oort as oort={...}"
    return select._replace(choose=choose, replaceable=fixed)
