"""What PR-FL works out about a problem before it starts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_het.algorithms.prfl.buffers import Layout, page_size
from fedjax_het.algorithms.prfl.ranking import prunable
from fedjax_het.algorithms.training import TrainingOptions
from fedjax_het.common.errors import require, require_known
from fedjax_het.common.types import PyTree
from fedjax_het.problem import Problem


def time_per_weight(problem: Problem, training: TrainingOptions, structure: PyTree) -> np.ndarray:
    """PruneFL's cost of a weight, per prunable leaf: to send it, and to compute with it.

    Both on the device in the middle, relative to the mean over all weights.
    """
    fleet, table = problem.fleet, problem.cost
    link_s = 4 / np.median(fleet.uplink_bytes_per_s) + 4 / np.median(fleet.downlink_bytes_per_s)
    samples = float(
        np.median(training.samples(problem.data.sizes, training.steps(problem.data.sizes)))
    )
    flops = table.forward_flops + table.input_grad_flops + table.weight_grad_flops
    cost, size = [], []
    for block, work in zip(structure["blocks"], flops, strict=True):
        own = prunable(block)
        total = sum(leaf.size for leaf in own)
        for leaf in own:
            cost.append(link_s + samples * work / max(total, 1) / np.median(fleet.flops_per_s))
            size.append(leaf.size)
    for leaf in prunable(structure["exits"]):
        cost.append(float(np.mean(cost)))
        size.append(leaf.size)
    return np.asarray(cost) / np.average(cost, weights=size)


def buffer_layout(
    counts: np.ndarray,
    weights: int,
    dense: int,
    density: float | None,
    memory_bytes: float,
    *,
    copies: int,
) -> Layout:
    """How much room the buffers have; see `buffers`.

    Args:
      counts: int64[n], weights of the first sub-models.
      weights: of the whole model that can be pruned.
      dense: parameters that cannot.
      density: mean density to have room for; None for what fits, up to all.
      memory_bytes: limit.
      copies: of the buffers; 0 keeps nothing.

    Raises:
      InputError: the first sub-models do not fit, or more is asked for than fits.
    """
    require(
        density is None or 0 < density <= 1,
        f"buffer_density = {density}",
        "must lie in (0, 1]",
        "leave it out for as much as fits",
    )
    n = len(counts)
    layout = Layout(weights, page_size(weights), 0)
    if copies == 0:
        return layout
    # Rankings, importances, sums, and where the pages of each client are.
    fixed = 4 * (20 * (weights + dense) + n * layout.per_model)
    each = 4 * copies * layout.page
    first, most = int(np.sum(layout.needed(counts))), n * layout.per_model
    room = memory_bytes - fixed - 4 * copies * n * dense
    wanted = most if density is None else int(np.ceil(density * most))
    require(
        density is None or wanted >= first,
        f"buffer_density = {density}",
        f"is below the mean density {first / most:.3g} of the first sub-models",
        "raise it, or lower densities",
    )
    least = first if density is None else wanted
    need = least * each + memory_bytes - room
    require(
        least * each <= room,
        f"buffers of {n} clients and a model of {weights + dense} parameters: {need:.4g} bytes",
        f"exceed memory_bytes = {memory_bytes:.4g}",
        "raise it if there is as much, set roll_back = False, or take smaller densities",
    )
    return layout._replace(pages=min(wanted, int(room // each)))


def check_control(
    problem: Problem,
    densities: Sequence[float],
    lowest: float,
    core: float,
    interval: int,
    increment: float,
    patience: int,
    validate_on: str,
    recover: bool,
) -> None:
    """Raises `InputError` unless these options of `prfl` can be used."""
    values = np.asarray(densities, np.float64)
    require(
        values.ndim == 1 and values.size > 0 and bool(np.all((values > 0) & (values <= 1))),
        f"densities = {densities}",
        "must be a list of numbers in (0, 1]",
        "use (1.0,) to let adaptation find them",
    )
    for name, value in (("lowest", lowest), ("core", core), ("increment", increment)):
        require(0 < value <= 1, f"{name} = {value}", "must lie in (0, 1]", "leave it out")
    require(core <= lowest, f"core = {core}", f"must be at most lowest = {lowest}", "use 0.05")
    for name, count in (("interval", interval), ("patience", patience)):
        require(count >= 1, f"{name} = {count}", "must be at least 1", "leave it out")
    require_known(validate_on, ("validation", "test"), "validate_on")
    require(
        not recover or validate_on == "test" or problem.data.val_x is not None,
        "recover = True without validation data",
        "recovery looks at accuracies on held-out samples",
        "load the data with validation_fraction = 0.05, or set validate_on = 'test'",
    )


def check_server(
    up_bytes_per_s: float,
    down_bytes_per_s: float,
    jitter: float,
    slack_s: float,
    shares: dict[str, Any],
) -> None:
    """Raises `InputError` unless these options of `prfl` can be used."""
    for name, value in shares.items():
        require(0 <= value <= 1, f"{name} = {value}", "must lie in [0, 1]", "leave it out")
    require(
        up_bytes_per_s > 0 and down_bytes_per_s > 0 and jitter >= 0,
        f"server link of {up_bytes_per_s} and {down_bytes_per_s} bytes/s, jitter {jitter}",
        "must be positive, with a jitter of at least 0",
        "use inf for a link without a limit",
    )
    require(slack_s >= 0, f"slack_s = {slack_s}", "must be at least 0", "use 0.1")
