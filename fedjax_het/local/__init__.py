"""How a client trains, and what it does to the activations that it sends."""

from fedjax_het.local.correlation import distance_correlation
from fedjax_het.local.shuffling import shuffle_channels, shuffle_patches

__all__ = ["distance_correlation", "shuffle_channels", "shuffle_patches"]
