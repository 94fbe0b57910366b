"""The type that every source returns: samples, labels and, if the set has them, owners."""

from dataclasses import dataclass

import numpy as np

from fedjax_het.common.types import PyTree
from fedjax_het.data.federated import Normalise


@dataclass(frozen=True, eq=False)
class RawData:
    """A data set before its samples are assigned to clients.

    Attributes:
      name: name of the source.
      x: training inputs, [N, ...] in storage dtype (uint8 pixels, int16 audio, float32 features,
        int32 tokens), or a dictionary of such arrays.
      y: labels, int32[N, ...] or float32[N, ...].
      test_x: test inputs, like `x`.
      test_y: test labels, like `y`.
      num_classes: number of classes, or symbols; 0 for labels that are numbers.
      normalise: customary (mean, std) of the scaled training inputs, or None.
      classes: names of the labels, or None.
      clients: natural owner of each training sample (ids of any type), or None.
      test_clients: natural owner of each test sample, or None.
    """

    name: str
    x: PyTree
    y: np.ndarray
    test_x: PyTree
    test_y: np.ndarray
    num_classes: int
    normalise: Normalise | None = None
    classes: tuple[str, ...] | None = None
    clients: np.ndarray | None = None
    test_clients: np.ndarray | None = None
