"""A preview: what a run would do before chance has a say; numbers alone, for reports to show."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Column(NamedTuple):
    """One quantity, with a row for every round or for every client.

    Attributes:
      label: what the numbers are, with their unit in parentheses.
      values: array[rows], or array[rows, m] where a row holds several numbers.
      entries: names of the m numbers of a row, which are shown one by one; empty where they are
        shown by the least, the median and the largest.
    """

    label: str
    values: np.ndarray
    entries: Sequence[str] = ()


class Preview(NamedTuple):
    """What a run of a method that plans its rounds ahead would do.

    Attributes:
      method: name of the method.
      summary: names to numbers that concern the whole run.
      by_round: names to columns with a row per round.
      by_client: names to columns with a row per client. The first has one number a row, and the
        others are drawn against it.
    """

    method: str
    summary: Mapping[str, Any]
    by_round: Mapping[str, Column]
    by_client: Mapping[str, Column]
