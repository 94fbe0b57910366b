"""Text matrices: a file of numbers, one of labels and one of subjects for each of two sets."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, reason
from fedjax_het.data.sources.raw import RawData
from fedjax_het.data.sources.readers.encode import placed, samples
from fedjax_het.data.sources.readers.splits import held_out
from fedjax_het.data.sources.readers.table import MAX_TEXT
from fedjax_het.data.sources.readers.targets import Target, labels_of
from fedjax_het.data.sources.readers.text import CORRECT, full_path, read_utf8

_NAMES = "activity_labels.txt"


def read_text_matrix(
    path: AnyPath,
    *,
    target: Target = None,
    test_fraction: float | None = None,
    test_clients: Sequence[Any] = (),
) -> RawData:
    """A directory of text matrices, as UCI's data of smartphones and others are published.

    It holds `X_train.txt` (numbers between blanks, a sample per line), `y_train.txt` and, for
    clients, `subject_train.txt` (a label and a subject per line), and the same for `test`; each in
    the directory or in its folder `train` or `test`. Columns get mean 0 and deviation 1 over the
    training samples. Labels that are whole numbers are classes, whatever the first of them is; they
    have the names in `activity_labels.txt`, lines of a number and a name, where there is one.

    Args:
      path: the directory.
      target: kind of the labels, `"classes"` or `"numbers"`; None for the rule of `read_csv`.
      test_fraction: share of each subject's samples that are test samples, without `X_test.txt`.
      test_clients: subjects whose samples are all test samples, without `X_test.txt`.

    Raises:
      InputError: for files that are missing, ragged or not of numbers; the message names the line.
    """
    root = full_path(path)
    require(root.is_dir(), str(root), "must be a directory with X_train.txt", CORRECT)
    splits: list[Literal["train", "test"]] = ["train"]
    if _find(root, "X", "test").exists():
        splits.append("test")
    parts = []
    for split in splits:
        file = _find(root, "X", split)
        x = _numbers(file)
        y = _column(_find(root, "y", split), len(x), file)
        subjects = _find(root, "subject", split)
        owner = _column(subjects, len(x), file) if subjects.exists() else None
        parts.append((file, x, y, owner))
    sizes = {x.shape[1] for _, x, _, _ in parts}
    require(
        len(sizes) == 1,
        f"{root}: X_train.txt and X_test.txt of {sorted(sizes)} columns",
        "must have equally many",
        CORRECT,
    )
    owners = [owner for *_, owner in parts]
    lacking = [owner is None for owner in owners]
    require(
        len(set(lacking)) == 1,
        f"{root}: subjects of one set only",
        "must be known for both sets",
        "add the other subject_*.txt, or remove the one",
    )
    y, x = np.concatenate([y for _, _, y, _ in parts]), np.concatenate([x for _, x, _, _ in parts])
    owner = None if lacking[0] else np.concatenate([o for o in owners if o is not None])
    given = None if len(parts) == 1 else np.arange(len(y)) >= len(parts[0][1])
    held = held_out(len(y), owner, given, test_fraction, test_clients, str(root))
    mean, std = x[~held].mean(axis=0), x[~held].std(axis=0)
    x = ((x - mean) / np.where(std > 0, std, 1.0)).astype(np.float32)
    place = placed([(file, len(own)) for file, own, _, _ in parts], "line")
    labels = labels_of(y, held, place, target, None)
    if labels.classes is not None and (root / _NAMES).exists():
        named = _names(root / _NAMES)
        classes = tuple(named.get(name, name) for name in labels.classes)
        labels = type(labels)(labels.y, labels.num_classes, classes)
    return samples(root.resolve().name, x, labels, held, owner)


def _find(root: Path, what: str, split: str) -> Path:
    """The file of a split, in its folder or in the directory."""
    inside = root / split / f"{what}_{split}.txt"
    return inside if inside.exists() else root / f"{what}_{split}.txt"


def _lines(file: Path) -> list[str]:
    lines = read_utf8(file).rstrip().split("\n")
    require(lines != [""], str(file), "is empty", CORRECT)
    return lines


def _numbers(file: Path) -> np.ndarray:
    """A matrix of numbers, float64[N, F]."""
    lines = _lines(file)
    try:
        matrix = np.loadtxt(lines, np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise _fault(file, lines, error) from None
    require(len(matrix) == len(lines), str(file), "has empty lines", CORRECT)
    bad = np.flatnonzero(~(np.abs(matrix) <= np.finfo(np.float32).max).all(axis=1))
    if bad.size:
        column = int(np.flatnonzero(~np.isfinite(matrix[bad[0]]))[:1].sum())
        raise InputError(
            f"{file}, line {bad[0] + 1}, column {column + 1}: {matrix[bad[0], column]}: must be a "
            "finite number; correct it, or leave the line out of all files"
        )
    return matrix


def _fault(file: Path, lines: list[str], error: ValueError) -> InputError:
    """The error that names the first line that is not like the first."""
    width = len(lines[0].split())
    for number, line in enumerate(lines, 1):
        words = line.split()
        if len(words) != width:
            return InputError(
                f"{file}, line {number}: {len(words)} numbers: must be {width}, as in line 1; "
                f"{CORRECT}"
            )
        for place, word in enumerate(words, 1):
            try:
                float(word)
            except ValueError:
                return InputError(
                    f"{file}, line {number}, column {place}: {word!r}: must be a number; {CORRECT}"
                )
    return InputError(f"{file}: not a matrix of numbers ({reason(error)}); {CORRECT}")


def _column(file: Path, rows: int, beside: Path) -> np.ndarray:
    """A value per line: whole numbers, other numbers or text [N]."""
    values = [line.strip() for line in _lines(file)]
    require(
        len(values) == rows,
        f"{file}: {len(values)} lines",
        f"must be as many as in {beside.name}, {rows}",
        CORRECT,
    )
    empty = next((i for i, value in enumerate(values) if not value or len(value) > MAX_TEXT), None)
    if empty is not None:
        raise InputError(f"{file}, line {empty + 1}: is empty or too long; {CORRECT}")
    array = np.array(values)
    for kind in (np.int64, np.float64):
        try:
            return array.astype(kind)
        except (ValueError, OverflowError):
            continue
    return array


def _names(file: Path) -> dict[str, str]:
    """Names of classes by their numbers in the files."""
    pairs = [line.split(maxsplit=1) for line in _lines(file)]
    odd = next((i for i, pair in enumerate(pairs, 1) if len(pair) != 2), None)
    if odd is not None:
        raise InputError(f"{file}, line {odd}: must be a number and a name; {CORRECT}")
    return {number: name.strip() for number, name in pairs}
