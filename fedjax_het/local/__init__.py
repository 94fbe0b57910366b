"""How a client trains, and what it does to the activations that it sends."""

from fedjax_het.local.privacy import (
    Privacy,
    distance_correlation,
    shuffle_channels,
    shuffle_patches,
)

__all__ = ["Privacy", "distance_correlation", "shuffle_channels", "shuffle_patches"]
