"""A plot of the labels that each client holds."""

import os

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from fedjax_het.common.writing import refusing
from fedjax_het.data.federated import FederatedData

_MOST_NAMES = 40  # number of tick labels that fit beside each other
_MOST_ROWS_IN_ORDER = 60  # more clients than this are sorted, so that the pattern shows


def label_plot(data: FederatedData, path: str | os.PathLike[str] | None = None) -> Figure:
    """Heat map of the share of each label in each client's samples, with the clients' sizes.

    Up to 60 clients appear in the order of their ids; more are sorted by their most frequent label.

    Args:
      data: federated data to plot.
      path: file to write (its suffix chooses the format), or None.

    Returns:
      The matplotlib `Figure`, independent of pyplot's state.
    """
    counts = data.label_counts()
    classes = counts.shape[1]
    share = counts / counts.sum(axis=1, keepdims=True)
    in_order = data.num_clients <= _MOST_ROWS_IN_ORDER
    rows = np.arange(data.num_clients)
    if not in_order:
        rows = np.lexsort((-share.max(axis=1), share.argmax(axis=1)))
    figure = Figure(figsize=(9.0, float(np.clip(1.6 + 0.16 * data.num_clients, 3.2, 8.0))))
    figure.set_layout_engine("constrained")
    heat, sizes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
    image = heat.imshow(
        share[rows],
        aspect="auto",
        cmap="Blues",
        norm=PowerNorm(0.4, vmin=0.0, vmax=share.max()),  # a few percent must differ from none
        interpolation="nearest",
    )
    figure.colorbar(image, ax=heat, label="share of the client's samples", pad=0.01)
    heat.set_xlabel("label")
    heat.set_ylabel("client" if in_order else "clients, sorted by their most frequent label")
    if classes <= _MOST_NAMES:
        names = data.classes or [str(c) for c in range(classes)]
        long = max(len(name) for name in names) > 2
        heat.set_xticks(
            range(classes),
            [repr(name) if name.isspace() else name for name in names],
            rotation=45 if long else 0,
            ha="right" if long else "center",
            parse_math=False,
        )
    if in_order:
        step = -(-data.num_clients // 30)
        shown = range(0, data.num_clients, step)
        ids = [str(client if data.ids is None else data.ids[client]) for client in shown]
        heat.set_yticks(shown, ids, parse_math=False)
    else:
        heat.set_yticks([])
    held = data.sizes[rows]
    sizes.barh(np.arange(data.num_clients), held, height=0.8 if in_order else 1.0, color="0.45")
    sizes.set_xlabel("samples")
    sizes.tick_params(labelleft=False)
    sizes.set_xlim(0, 1.05 * held.max())
    figure.suptitle(
        f"{data.name}: {data.num_clients} clients, {held.sum():,} samples, "
        f"{held.min():,} to {held.max():,} each"
    )
    if path is not None:
        with refusing(f"path = {str(path)!r}"):
            figure.savefig(path, dpi=150)
    return figure
