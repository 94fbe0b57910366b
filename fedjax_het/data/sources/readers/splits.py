"""Which rows of a data set are its test set: by a column, by client, by chance, or as given."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import listed
from fedjax_het.data.checks import check_fraction

# Share of the rows that are test rows if nothing says which.
TEST_FRACTION = 0.2
_WORDS = {"train": False, "training": False, "test": True, "testing": True}


def by_word(words: np.ndarray, row: Callable[[int], str]) -> np.ndarray:
    """Test rows of a column of the words train and test, bool[N].

    Args:
      words: text [N].
      row: place of a row, for error messages.
    """
    known, place = np.unique(words, return_inverse=True)
    found = [_WORDS.get(str(word).lower()) for word in known]
    odd = [i for i, held in enumerate(found) if held is None]
    if odd:
        first = int(np.flatnonzero(place == odd[0])[0])
        raise InputError(
            f"{row(first)}: split {str(words[first])!r}: must be 'train' or 'test'; correct it, or "
            "leave its rows out (validation_fraction makes a validation set)"
        )
    return np.array(found, bool)[place]


def held_out(
    rows: int,
    owner: np.ndarray | None,
    given: np.ndarray | None,
    test_fraction: float | None,
    test_clients: Sequence[Any],
    where: str,
) -> np.ndarray:
    """The test rows, bool[N].

    Args:
      rows: number N of rows.
      owner: client of each row, or None.
      given: test rows as files or a column say, or None.
      test_fraction: share of the rows, drawn at random: of every client by itself, rounded down;
        of all without clients, at least one.
      test_clients: clients all of whose rows are test rows.
      where: file, for error messages.

    Raises:
      InputError: if there are two answers, or one of the sets is empty.
    """
    answers = {
        "a test set of its own": given is not None,
        f"test_fraction = {test_fraction}": test_fraction is not None,
        f"test_clients = {list(test_clients)}": bool(len(test_clients)),
    }
    told = [name for name, is_told in answers.items() if is_told]
    require(
        len(told) <= 1, f"{where}: {' and '.join(told)}", "exclude each other", "keep one of them"
    )
    if given is not None:
        held = given
    elif len(test_clients):
        held = _of_clients(owner, test_clients, where)
    else:
        told = [f"test_fraction = {TEST_FRACTION if test_fraction is None else test_fraction}"]
        held = _by_chance(rows, owner, test_fraction)
    for split, count in (("training", (~held).sum()), ("test", held.sum())):
        require(
            count > 0,
            f"{where}: {rows} rows, {told[0]}",
            f"leave no {split} row",
            "say which rows are test rows by split, test_fraction or test_clients",
        )
    return held


def _of_clients(owner: np.ndarray | None, chosen: Sequence[Any], where: str) -> np.ndarray:
    if owner is None:
        raise InputError(
            f"{where}: test_clients = {list(chosen)}: needs to know the clients; say where they "
            "are with client"
        )
    known = np.unique(owner)
    for client in chosen:
        require(
            client in known.tolist(),
            f"{where}: test client {client!r}",
            f"must be one of the clients {listed(known.tolist())}",
            "name clients as the file does",
        )
    return np.isin(owner, np.asarray(list(chosen)))


def _by_chance(rows: int, owner: np.ndarray | None, fraction: float | None) -> np.ndarray:
    fraction = TEST_FRACTION if fraction is None else fraction
    check_fraction(fraction, "test_fraction")
    order = np.random.default_rng(0).permutation(rows)
    if owner is None:
        held = np.zeros(rows, bool)
        held[order[: max(1, int(fraction * rows))]] = True
        return held
    # The first rows of every client in a random order.
    _, place, count = np.unique(owner[order], return_inverse=True, return_counts=True)
    by_client = np.argsort(place, kind="stable")
    rank = np.arange(rows) - np.repeat(np.cumsum(count) - count, count)
    held = np.zeros(rows, bool)
    held[order[by_client]] = rank < np.repeat((fraction * count).astype(np.int64), count)
    return held
