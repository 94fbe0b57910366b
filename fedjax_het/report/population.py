"""The facts of every client of a run, which do not change: binary columns beside the rows.

A million clients with ten classes are twelve million numbers. As JSON they would take half a
minute to write and to check, so they have a file of their own, `population.npz`.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_het.common.arrays import Layout, given_array, packed_arrays, read_arrays, within
from fedjax_het.common.errors import require
from fedjax_het.common.numbers import INT32
from fedjax_het.common.writing import write_atomic

POPULATION = "population.npz"
# Columns that give names to clients, classes and devices.
NAMES = ("ids", "classes", "device_names")
_MOST_CHARACTERS = 16
_REDO = "restore the file or run the experiment again"
# Dtypes in the file: the first that holds all numbers of a column.
_NARROW = (np.uint8, np.uint16, np.int32)


@dataclass(frozen=True, eq=False)
class Population:
    """The facts of the n clients of a run, read-only columns.

    Attributes:
      device_groups: class of each client's device, int32[n].
      sizes: number of training samples of each client, int32[n].
      label_counts: number of training samples of each class, int32[n, C]; None if the labels are
        not one class per sample.
      ids: the user's ids of the clients, text or integers [n]; None for their numbers.
      classes: names of the classes, text [C]; None for their numbers.
      device_names: names of the clients' devices, text [n]; None for their numbers.
      source: file, or name of the columns for error messages.

    Raises:
      InputError: if a column is not of whole numbers from 0 to 2^31 - 1, or not one per client.
    """

    device_groups: np.ndarray
    sizes: np.ndarray
    label_counts: np.ndarray | None = None
    ids: np.ndarray | None = None
    classes: np.ndarray | None = None
    device_names: np.ndarray | None = None
    source: str = field(default="population", repr=False)

    def __post_init__(self) -> None:
        n = np.shape(self.device_groups)[:1]
        for name, axes in (("device_groups", 1), ("sizes", 1), ("label_counts", 2)):
            given = getattr(self, name)
            if name != "label_counts" or given is not None:
                object.__setattr__(self, name, _column(given, f"{self.source}: {name}", n, axes))
        lengths = (len(self), self.num_classes, len(self))
        for name, length in zip(NAMES, lengths, strict=True):
            given = getattr(self, name)
            if given is not None:
                object.__setattr__(self, name, _names(given, f"{self.source}: {name}", length))

    def __len__(self) -> int:
        return len(self.device_groups)

    @property
    def num_classes(self) -> int | None:
        """Number of classes C of `label_counts`; None without them."""
        return None if self.label_counts is None else self.label_counts.shape[1]

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The columns that there are, by name."""
        columns = {"device_groups": self.device_groups, "sizes": self.sizes}
        others = {name: getattr(self, name) for name in ("label_counts", *NAMES)}
        return columns | {name: column for name, column in others.items() if column is not None}

    @property
    def named(self) -> list[str]:
        """Which of `NAMES` there are."""
        return [name for name in NAMES if getattr(self, name) is not None]

    def client_name(self, client: int) -> str:
        """The id of a client for a table or a plot, else its number."""
        return shortened(client if self.ids is None else self.ids[client])

    def class_name(self, label: int) -> str:
        """The name of a class for a table or a plot, else its number."""
        return shortened(label if self.classes is None else self.classes[label])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Population):
            return NotImplemented
        ours, theirs = self.columns, other.columns
        return list(ours) == list(theirs) and all(
            np.array_equal(ours[name], theirs[name]) for name in ours
        )

    def write(self, workdir: Path) -> None:
        """Replaces `population.npz` of a directory, atomically; equal columns, equal bytes."""
        narrow = {
            name: column
            if name in NAMES
            else column.astype(next(kind for kind in _NARROW if _holds(kind, column)))
            for name, column in self.columns.items()
        }
        write_atomic(workdir / POPULATION, packed_arrays(narrow))

    @classmethod
    def read(
        cls, workdir: Path, clients: int, classes: int | None, named: Collection[str] = ()
    ) -> "Population":
        """The population of a work directory.

        Args:
          workdir: directory of a finished run.
          clients: number of clients n.
          classes: number of classes of `label_counts`; None for a run without them.
          named: which of `NAMES` there are.

        Raises:
          InputError: if the file is missing or damaged, or is not of so many clients and classes.
        """
        path = workdir / POPULATION
        layout: Layout = dict.fromkeys(("device_groups", "sizes"), ("integers", (clients,)))
        if classes is not None:
            layout = {**layout, "label_counts": ("integers", (clients, classes))}
        for name, length in zip(NAMES, (clients, classes, clients), strict=True):
            if name in named and length is not None:
                layout = {**layout, name: ("names", (length,))}
        return cls(**read_arrays(path, layout, _REDO), source=str(path))


def _holds(kind: type, column: np.ndarray) -> bool:
    return int(column.max(initial=0)) <= np.iinfo(kind).max


def shortened(name: object) -> str:
    """A name in at most 16 characters."""
    text = str(name)
    return text if len(text) <= _MOST_CHARACTERS else text[: _MOST_CHARACTERS - 1] + "…"


def _names(given: Any, what: str, length: int | None) -> np.ndarray:
    """A column of text or integers, read-only."""
    column = given_array(given, what, "give text or whole numbers").view()
    require(
        column.dtype.kind in "iuU" and column.shape == (length,),
        f"{what} of {column.dtype}{list(column.shape)}",
        f"must be text or whole numbers [{length}]",
        _REDO,
    )
    column.setflags(write=False)
    return column


def _column(given: Any, what: str, n: tuple[int, ...], axes: int) -> np.ndarray:
    """A column of whole numbers, int32[n, ...], read-only."""
    array = given_array(given, what, "give whole numbers")
    shape = array.shape
    require(
        array.ndim == axes and shape[:1] == n and min(shape, default=0) > 0,
        f"{what} of shape {list(shape)}",
        f"must have {axes} axes, none of them empty, the first of one entry per client",
        _REDO,
    )
    require(
        array.dtype.kind in "iu" and within(array, 0, INT32),
        f"{what} of {array.dtype}",
        f"must be whole numbers from 0 to {INT32}",
        _REDO,
    )
    column = array.astype(np.int32)
    column.setflags(write=False)
    return column
