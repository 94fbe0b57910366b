"""The two apps."""

import numpy as np
from flwr.app import Context

import fedjax_het as fh
from digits_app.task import data, method, problem


def own_samples(context: Context) -> tuple[np.ndarray, np.ndarray]:
    """The samples of a device: a file that it alone has; in Flower's simulation, its share."""
    if "samples" in context.node_config:
        with np.load(str(context.node_config["samples"])) as held:
            return held["x"], held["y"]
    mine = data.client_samples(int(context.node_config["partition-id"]))
    return data.x[mine], data.y[mine]


apps = fh.export.flower(method, problem, client_data=own_samples)
# Flower looks for these names in the text of the module.
client = apps.client
server = apps.server
