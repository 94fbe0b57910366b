"""Labels as a file has them, made classes numbered from 0 or numbers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import listed
from fedjax_het.data.checks import as_labels

Target = Literal["classes", "numbers"] | None
MAX_CLASSES = 10_000


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels in the form of `RawData`.

    Attributes:
      y: int32 or float32 [N, ...].
      num_classes: number of classes, 0 for numbers.
      classes: names of the classes, or None.
    """

    y: np.ndarray
    num_classes: int
    classes: tuple[str, ...] | None = None


def labels_of(
    values: np.ndarray,
    held: np.ndarray,
    row: Callable[[int], str],
    target: Target = None,
    names: Sequence[str] | None = None,
) -> Labels:
    """Labels of one value per sample.

    Text, bools and whole numbers are classes, in sorted order of their values in the training
    samples; other numbers are numbers. `target` overrides this.

    Args:
      values: bools, integers, floats or text [N].
      held: test samples, bool[N].
      row: place of a sample, for error messages.
      target: kind of labels; None for the rule.
      names: names of the classes that the values 0, 1, ... stand for, or None.

    Raises:
      InputError: for labels that are not finite, of too many classes, or of a class without
        training samples.
    """
    if values.dtype.kind == "f":
        _check_finite(values, row)
    if target is None:
        target = "numbers" if values.dtype.kind == "f" else "classes"
    if target == "numbers":
        require(
            values.dtype.kind in "iufb",
            f"{row(0)}: label {str(values[0])!r}",
            "is text, and must be a number for target = 'numbers'",
            "name another column, or leave target out",
        )
        return Labels(values.astype(np.float32), 0)
    known = np.unique(values[~held])
    place = np.minimum(np.searchsorted(known, values), len(known) - 1)
    unseen = np.flatnonzero(known[place] != values)
    if unseen.size:
        raise InputError(
            f"{row(int(unseen[0]))}: label {str(values[unseen[0]])!r}: must be one of the training "
            f"samples' {listed(known.tolist())}; move samples of it to the training set, or leave "
            "it out"
        )
    require(
        2 <= len(known) <= MAX_CLASSES,
        f"{row(0)}: labels with {len(known)} different values",
        f"must be 2 to {MAX_CLASSES} classes",
        "name another label, or say target = 'numbers'",
    )
    return Labels(place.astype(np.int32), len(known), _names(known, names, row))


def _names(
    known: np.ndarray, names: Sequence[str] | None, row: Callable[[int], str]
) -> tuple[str, ...]:
    if names is None:
        return tuple(str(value) for value in known.tolist())
    require(
        int(known[0]) >= 0 and int(known[-1]) < len(names),
        f"{row(0)}: labels {int(known[0])}..{int(known[-1])}",
        f"must lie in 0..{len(names) - 1}, the {len(names)} classes that have names",
        "correct the names or the labels",
    )
    return tuple(str(names[int(value)]) for value in known)


def columns_of(
    values: np.ndarray, row: Callable[[int], str], target: Target, names: Sequence[str]
) -> Labels:
    """Several labels per sample: 0 and 1 for labels that hold or not, else numbers.

    Args:
      values: numbers or bools [N, C].
      row: place of a sample, for error messages.
      target: kind of labels; None for the rule.
      names: names of the columns.
    """
    values = values.astype(np.float64)
    _check_finite(values, row)
    flags = np.isin(values, (0, 1)).all(axis=1)
    if target is None:
        target = "classes" if flags.all() else "numbers"
    if target == "numbers":
        return Labels(values.astype(np.float32), 0)
    if not flags.all():
        odd = int(np.flatnonzero(~flags)[0])
        raise InputError(
            f"{row(odd)}: labels {values[odd].tolist()}: must be 0 or 1, whether a label holds; "
            "name one column, or say target = 'numbers'"
        )
    return Labels(values.astype(np.int32), 2)


def arrays_of(
    values: np.ndarray, held: np.ndarray, row: Callable[[int], str], target: Target
) -> Labels:
    """Labels of an array: as `labels_of` for one per sample, as they are for several."""
    if values.ndim == 1:
        return labels_of(values, held, row, target)
    y = as_labels(values, "labels")
    if target == "numbers":
        y = y.astype(np.float32)
    return Labels(y, 0 if y.dtype == np.float32 else 1 + max(1, int(y.max(initial=0))))


def _check_finite(values: np.ndarray, row: Callable[[int], str]) -> None:
    # What is infinite as float32 is so here.
    usable = np.abs(values) <= np.finfo(np.float32).max
    bad = np.flatnonzero(~usable.reshape(len(values), -1).all(axis=1))
    if bad.size:
        raise InputError(
            f"{row(int(bad[0]))}: label {values[bad[0]]}: must be a finite number; correct it, or "
            "leave the sample out"
        )
