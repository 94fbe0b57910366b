"""What a file of one's own holds, by the names and first values of its columns or arrays."""

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_het.common.errors import InputError, require, require_known
from fedjax_het.common.files import listed, open_file, reason
from fedjax_het.common.tables import Table, parse_csv

Kind = Literal["text", "whole", "real"]

_REMEDY = "give a CSV file with a line of names, or an .npz file of numpy.savez"
# Bytes of a CSV file that are looked at, and characters of a value that are shown.
_HEAD, _SHOWN = 2**20, 16
# Names by which parts are guessed, the likeliest first; ends and capitals do not matter.
_WORDS = {
    "label": "label y y_train train_y target class outcome diagnosis",
    "client": "client client_id user user_id writer writer_id subject site hospital owner device",
    "split": "split subset fold",
    "inputs": "x x_train train_x input image feature",
}


@dataclass(frozen=True)
class Found:
    """What a file holds, and what its parts are taken for.

    Attributes:
      path: path of the file.
      source: format, the name of a source of data: `"csv"` or `"npz"`.
      columns: what is known of each column or array, by its name.
      kinds: kind of the values of each.
      shapes: shape of a sample of each.
      parts: names of the columns or arrays that are options of the source, by option.
    """

    path: Path
    source: str
    columns: Mapping[str, str]
    kinds: Mapping[str, Kind]
    shapes: Mapping[str, tuple[int, ...]]
    parts: Mapping[str, str]

    @property
    def features(self) -> list[str]:
        """Columns that have no other use."""
        return [name for name in self.columns if name not in self.parts.values()]


def look(path: Path, given: Mapping[str, str]) -> Found:
    """Looks at a CSV file or an .npz file.

    Args:
      path: path of the file.
      given: names of parts that need no guess: `label`, `client` or `split`.

    Raises:
      InputError: for a file that is missing or neither, a name that is not in it, or no label.
    """
    read = {".csv": _table, ".npz": _arrays}.get(path.suffix.lower())
    if read is None:
        raise InputError(f"file {str(path)!r}: must end in .csv or .npz; {_REMEDY}")
    found = read(path, given)
    require(
        "label" in found.parts,
        f"{path}: {listed([*found.columns])}",
        "none of them has the name of a label",
        "name it with --label",
    )
    return found


def _parts(names: Iterable[str], wanted: Iterable[str], given: Mapping[str, str]) -> dict[str, str]:
    """The given parts, and guesses of the others among the names that are left."""
    names = list(names)
    for part, name in given.items():
        require_known(name, names, f"--{part}")
    parts = dict(given)
    for part in wanted:
        free = {name.lower().rstrip("s"): name for name in names if name not in parts.values()}
        words = [word.rstrip("s") for word in _WORDS[part].split()]
        word = next((word for word in words if word in free), None)
        if part not in given and word is not None:
            parts[part] = free[word]
    return {part: parts[part] for part in wanted if part in parts}


def _table(path: Path, given: Mapping[str, str]) -> Found:
    with open_file(path, _REMEDY) as file:
        head = file.read(_HEAD)
    if len(head) == _HEAD:
        head = head[: head.rfind(b"\n") + 1]  # the last line may be cut
    table = parse_csv(path, head, _REMEDY)
    kinds = {name: _kind(table, name) for name in table.columns}
    return Found(
        path=path,
        source="csv",
        columns={name: _values(table, name, kind) for name, kind in kinds.items()},
        kinds=kinds,
        shapes=dict.fromkeys(kinds, ()),
        parts=_parts(kinds, ("label", "client", "split"), given),
    )


def _kind(table: Table, name: str) -> Kind:
    try:
        numbers = [float(value) for value in table.columns[name] if value.strip()]
    except ValueError:
        return "text"
    return "whole" if all(number.is_integer() for number in numbers) else "real"


def _values(table: Table, name: str, kind: Kind) -> str:
    """The values of a column, in short."""
    values = [value.strip() for value in table.columns[name]]
    different = sorted({value for value in values if value})
    if kind == "text" or len(different) <= 5:
        text = ", ".join([value[:_SHOWN] for value in different[:5]])
        text += f", and {len(different) - 5} more" if len(different) > 5 else ""
    else:
        numbers = [float(value) for value in different]
        text = f"{min(numbers):g} to {max(numbers):g}"
    return text + ("; some are missing" if "" in values else "")


def _arrays(path: Path, given: Mapping[str, str]) -> Found:
    require(
        "split" not in given,
        f"--split={given.get('split')}",
        "is a column of a CSV file",
        "leave it out; an .npz file has arrays for testing, such as test_x and test_y",
    )
    with open_file(path, _REMEDY) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                headers = {
                    name.removesuffix(".npy"): _header(archive, name) for name in archive.namelist()
                }
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
            raise InputError(
                f"{path}: is not an .npz file that can be read ({reason(error)}); {_REMEDY}"
            ) from None
    parts = _parts(headers, ("inputs", "label", "client"), given)
    for part in tuple(parts):
        name = parts[part]
        tests = (name.replace("train", "test"), f"test_{name}", f"{name}_test")
        test = next((test for test in tests if test in headers and test != name), None)
        if test is not None:
            parts[f"test_{part}"] = test
    kinds: dict[str, Kind] = {
        name: "real" if dtype.kind == "f" else "whole" if dtype.kind in "iub" else "text"
        for name, (_, dtype) in headers.items()
    }
    return Found(
        path=path,
        source="npz",
        columns={name: f"{dtype} {list(shape)}" for name, (shape, dtype) in headers.items()},
        kinds=kinds,
        shapes={name: shape[1:] for name, (shape, _) in headers.items()},
        parts=parts,
    )


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the dtype of an array; its values are not read."""
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        if version not in readers:
            raise ValueError(f"array {member!r} is of format {version}")
        shape, _, dtype = readers[version](file)
    return shape, dtype
