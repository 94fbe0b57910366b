"""One round of layered training: who stops when, what is sent, and how it will be merged."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from fedjax_het.algorithms.adel.layers import trained
from fedjax_het.algorithms.adel.merging import Rule, merge_inputs
from fedjax_het.algorithms.adel.options import Rates
from fedjax_het.algorithms.adel.workload import Setting, Workload
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.contract.plan import Plan, Situation

# Relative room for rounding between the end of a window and the deadline it was computed from.
_ROUNDING = 2e-15


def last_moment(work: Workload) -> np.ndarray:
    """float64[k]: how long a client may compute and still send what it has by the deadline."""
    return np.maximum(work.window_s - _ROUNDING * work.deadline_s, 0.0)


def compute_until(work: Workload, depth: np.ndarray, finished_s: np.ndarray) -> np.ndarray:
    """How long each client computes: until it is done, or until it must send what it has.

    A client without a finished layer goes on until it has one, and misses the deadline.

    Args:
      work: the round's workload.
      depth: int64[k], layers finished.
      finished_s: float64[k, L], see `Setting.layer_times`.
    """
    until_s = np.where(depth == 0, finished_s[:, 0], last_moment(work))
    return np.where(depth == finished_s.shape[1], finished_s[:, -1], until_s)


def layer_mask(setting: Setting) -> Any:
    """`Algorithm.mask` of the layers that a client finished."""
    ids = setting.layers.ids

    def mask(row: PyTree, shared: PyTree) -> PyTree:
        del shared
        return trained(ids, jnp.asarray(row["first_layer"]))

    return mask


def layered_tasks(
    setting: Setting,
    situation: Situation,
    rule: Rule,
    propensity_floor: float,
    work: Workload,
    missed: np.ndarray,
    depth: np.ndarray,
    compute_s: np.ndarray,
) -> tuple[Plan, np.ndarray]:
    """The tasks of a round of layered training, and the depths that reach the server.

    A client whose link is slower than expected misses the deadline with all it has.
    """
    rows, shared = merge_inputs(rule, missed, propensity_floor)
    first_layer = (setting.layers.number - depth).astype(np.int32)
    tasks = setting.tasks(
        situation,
        work,
        depth,
        compute_s,
        rows={"first_layer": first_layer, **rows},
        shared=shared,
    )
    return tasks, np.where(tasks.timing.total_s <= work.deadline_s, depth, 0)


def require_rule(aggregator: Rule | None, rates: Rates, propensity_floor: float) -> Rule:
    """The merge rule, by default the one that is unbiased for these rates."""
    require(
        0 <= propensity_floor < 1,
        f"propensity_floor = {propensity_floor}",
        "must lie in [0, 1)",
        "use 0 for an unbiased merge, 0.1 for a steadier one",
    )
    if aggregator is None:
        return "corrected" if rates == "ideal" else "ipw"
    require_known(aggregator, ("corrected", "ipw", "zero_fill", "mean"), "aggregator")
    return aggregator


def require_planned(round: int, rounds: int) -> None:
    """Raises `InputError` when a run goes on after its last planned round."""
    require(
        round < rounds,
        f"round {round + 1}",
        f"is beyond the {rounds} rounds that the time was divided among",
        f"set run.rounds = {rounds}, or plan more rounds",
    )
