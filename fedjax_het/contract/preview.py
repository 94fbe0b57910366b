"""A preview: the numbers of a run that are known without randomness and training, for reports."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Column(NamedTuple):
    """One quantity, with a row for every round or for every client.

    Attributes:
      label: name of the quantity, with its unit in parentheses.
      values: values of the quantity, array[rows], or array[rows, m] with several numbers per row.
      entries: names of the m numbers of a row, to show each of them; if empty, only the least, the
        median and the largest are shown.
    """

    label: str
    values: np.ndarray
    entries: Sequence[str] = ()


class Preview(NamedTuple):
    """The preview of a run of a method that plans its rounds ahead.

    Attributes:
      method: name of the method.
      summary: numbers of the whole run, by name.
      by_round: columns with a row per round, by name.
      by_client: columns with a row per client, by name. The first column has one number per row,
        and the others are plotted against it.
    """

    method: str
    summary: Mapping[str, Any]
    by_round: Mapping[str, Column]
    by_client: Mapping[str, Column]
