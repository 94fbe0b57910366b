"""What a client does to the activations it sends: distance correlation, patch shuffling."""

from fedjax_het.privacy.correlation import distance_correlation
from fedjax_het.privacy.shuffling import shuffle_channels, shuffle_patches

__all__ = ["distance_correlation", "shuffle_channels", "shuffle_patches"]
