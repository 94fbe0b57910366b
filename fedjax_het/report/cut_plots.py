"""Plots of the block at which the network was cut, per client and step, and of device speeds."""

import numpy as np
from matplotlib.figure import Figure

from fedjax_het.report.population import Population
from fedjax_het.report.records import RunRecord
from fedjax_het.report.style import styled
from fedjax_het.report.tasks import evenly


def cuts_of(record: RunRecord) -> tuple[np.ndarray, np.ndarray] | None:
    """The last block on the client and the device's FLOP/s, each float64[clients, steps].

    An entry is NaN if the client had no task in the step; a speed is NaN if it was not recorded.
    The result is None for a run whose tasks were not split.
    """
    columns = record.client_columns
    cut = columns["cut_block"]
    if not np.isfinite(cut).any():
        return None
    step, client = (columns[name].astype(np.int64) for name in ("step", "client"))
    shape = (int(client.max()) + 1, int(step.max()))
    block, speed = np.full(shape, np.nan), np.full(shape, np.nan)
    block[client, step - 1] = cut
    speed[client, step - 1] = columns["device_flops_per_s"]
    return block, speed


def cuts_over_time(record: RunRecord, most: int = 40) -> Figure | None:
    """Heat maps over clients and server steps: speed of the device, last block on the client.

    Args:
      record: record of one run.
      most: largest number of clients to show, evenly chosen from fast to slow.

    Returns:
      The figure; None for a run whose tasks were not split.
    """
    found = cuts_of(record)
    last = int(record.summary["num_blocks"]) - 1
    return None if found is None else _heat_maps(*found, last, most, record.population)


@styled
def _heat_maps(
    block: np.ndarray, speed: np.ndarray, last: int, most: int, population: Population
) -> Figure:
    known = np.isfinite(speed).any(axis=1)
    mean = np.full(len(speed), np.inf)
    mean[known] = np.nanmean(speed[known], axis=1)
    order = np.argsort(-mean, kind="stable")
    shown = order[evenly(order.size, most)]
    figure = Figure(figsize=(6.6, 1.9 + 0.17 * max(2 * shown.size, 12)))
    parts = figure.subplots(2 if known.any() else 1, 1, sharex=True, squeeze=False)[:, 0]
    drawings = [(block[shown], "viridis", "last block on the client", (0.0, last - 1.0))]
    if known.any():
        relative = np.log2(speed[shown] / np.nanmax(speed))
        low = min(float(np.nanmin(relative)), -1.0)
        drawings.insert(0, (relative, "Greys_r", "speed (log2, fastest 0)", (low, 0.0)))
    edges = (0.5, block.shape[1] + 0.5, shown.size - 0.5, -0.5)
    for axes, (values, colours, label, limits) in zip(parts, drawings, strict=True):
        image = axes.imshow(
            values,
            aspect="auto",
            cmap=colours,
            vmin=limits[0],
            vmax=limits[1],
            extent=edges,
            interpolation="nearest",
        )
        figure.colorbar(image, ax=axes, label=label)
        names = [population.client_name(int(client)) for client in shown]
        axes.set_yticks(np.arange(shown.size), names, parse_math=False)
        axes.tick_params("y", length=0, labelsize=8)
        axes.set_ylabel("client")
    parts[-1].set_xlabel("server step")
    return figure
