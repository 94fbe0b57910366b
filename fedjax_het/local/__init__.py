"""Local training of a client, and the treatment of the activations that it sends."""

from fedjax_het.local.privacy import (
    Privacy,
    distance_correlation,
    shuffle_channels,
    shuffle_patches,
)

__all__ = ["Privacy", "distance_correlation", "shuffle_channels", "shuffle_patches"]
