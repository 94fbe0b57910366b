"""The server's side as transformations: optimisers on the merged update, FedNova's merge."""

from collections.abc import Callable

from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.server.adaptive import FEDOPT, scale_by_fedopt
from fedjax_het.transforms.server.normalising import normalised
from fedjax_het.transforms.server.optimising import optimizer

__all__ = ["FEDOPT", "SERVER", "normalised", "optimizer", "scale_by_fedopt"]

# Factories of transformations by name.
SERVER: dict[str, Callable[..., Transformation]] = {
    "normalised": normalised,
    "optimizer": optimizer,
}
