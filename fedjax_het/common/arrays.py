"""Arrays that are given by users, or read from and packed for files: the one way in and out.

What NumPy would convert without a word is refused here: hidden values of masked arrays, and whole
numbers that a cast would wrap.
"""

import io
import math
import tokenize
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from fedjax_het.common.errors import InputError, require
from fedjax_het.common.files import AnyPath, open_file, reason, zip_members

_NPY = b"\x93NUMPY"
_MAX_HEADER = 10_000
# Axes that an array of NumPy may have.
_MOST_AXES = 64
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What the parser of headers raises for damaged ones.
_DAMAGE = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError)
# Kinds of dtypes by the words of a layout; any other word is the name of a dtype.
_WORDS = {
    "integers": "iu",
    "numbers": "iuf",
    "text": "U",
    "names": "iuU",
    "numbers, bools or text": "biufU",
}
# Kind and shape of the arrays of a file; axes with one name are equally long.
Layout = Mapping[str, tuple[str, tuple[str | int, ...]]]


def given_array(value: Any, name: str, remedy: str = "give a NumPy array") -> np.ndarray:
    """A value as an array in the machine's byte order; a plain array is returned as it is.

    Args:
      value: array, or anything that NumPy makes an array of.
      name: name of the value in an error message.
      remedy: advice if it is not one array.

    Raises:
      InputError: if it is not one array, or a masked array that hides values.
    """
    try:
        require_unmasked(value, name)
        array = np.asarray(value)
    except InputError:
        raise
    # Objects of other libraries convert themselves, and may raise what they like.
    except (ValueError, TypeError, OverflowError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"{name} of type {type(value).__name__}: must be one array ({reason(error)}); {remedy}"
        ) from None
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def require_unmasked(value: Any, name: str, depth: int = 0) -> None:
    """Raises `InputError` if an array, or one inside lists and tuples, hides values by a mask.

    Args:
      value: array, or anything else.
      name: name of the value.
      depth: number of lists around it, which may be nested as far as arrays have axes.
    """
    if isinstance(value, list | tuple):
        require(depth < _MOST_AXES, name, f"is nested deeper than {_MOST_AXES} lists", "flatten it")
        for part in value:
            if isinstance(part, list | tuple | np.ma.MaskedArray):
                require_unmasked(part, name, depth + 1)
    elif isinstance(value, np.ma.MaskedArray):
        hidden = int(np.count_nonzero(np.ma.getmaskarray(value)))
        require(
            hidden == 0,
            f"{name} is a masked array that hides {hidden} of {value.size} values",
            "must not hide any",
            "fill them with .filled(...), or leave their samples out",
        )


def within(array: np.ndarray, low: int, high: int) -> bool:
    """Whether all integers of an array lie in `low..high`, compared without a cast."""
    return not array.size or (int(array.min()) >= low and int(array.max()) <= high)


def as_int32(array: np.ndarray, what: str, remedy: str) -> np.ndarray:
    """Integers or bools as int32; raises `InputError` if one of them does not fit.

    Args:
      array: array of integers or bools.
      what: name of a value in an error message, e.g. `"y: label"`.
      remedy: advice in an error message.
    """
    if array.dtype.kind != "b" and not within(array, -(2**31), 2**31 - 1):
        low, high = int(array.min()), int(array.max())
        require(high < 2**31, f"{what} {high}", "must be below 2^31", remedy)
        raise InputError(f"{what} {low}: must be at least -2^31; {remedy}")
    return array.astype(np.int32)


def read_arrays(path: AnyPath, layout: Layout, remedy: str) -> dict[str, np.ndarray]:
    """Arrays of an .npz file by name, in the machine's byte order; nothing is unpickled.

    Args:
      path: path of the file.
      layout: kind and shape of every array that is read. A kind is the name of a dtype, or
        "integers", "numbers", "text", "names" (integers or text) or "numbers, bools or text". An
        axis is a length or a name; axes of one name are equally long, and none of them is empty.
      remedy: advice in an error message.

    Raises:
      InputError: if the file is damaged or too large, lacks an array, or holds one of another kind
        or shape.
    """
    arrays = npz_arrays(path, {name: kind for name, (kind, _) in layout.items()}, remedy)
    lengths: dict[str | int, dict[str, int]] = {}
    for name, (_, axes) in layout.items():
        shape = arrays[name].shape
        fixed = [axis if isinstance(axis, int) else length for axis, length in zip(axes, shape)]
        require(
            len(shape) == len(axes) and list(shape) == fixed,
            f"{path}: array {name!r} has the shape {list(shape)}",
            f"must be [{', '.join(map(str, axes))}]",
            remedy,
        )
        for axis, length in zip(axes, shape, strict=True):
            if isinstance(axis, str):
                lengths.setdefault(axis, {})[name] = length
    for found in lengths.values():
        require(
            len(set(found.values())) == 1 and 0 not in found.values(),
            str(path),
            f"holds arrays of unequal or no length: {found}",
            remedy,
        )
    return arrays


def npz_arrays(path: AnyPath, kinds: Mapping[str, str], remedy: str) -> dict[str, np.ndarray]:
    """Arrays of any shape of an .npz file by name; see `read_arrays`.

    Args:
      path: path of the file.
      kinds: kind of every array that is read.
      remedy: advice in an error message.
    """
    with open_file(path, remedy) as file:
        if file.read(len(_NPY)) == _NPY:
            raise InputError(
                f"{path}: holds a single array (.npy), and must be an .npz archive; {remedy}"
            )
    contents = zip_members(path, list(kinds), remedy, ".npz file", "arrays", ".npy")
    arrays = {}
    for (name, kind), content in zip(kinds.items(), contents, strict=True):
        try:
            arrays[name] = _parsed(content, kind)
        except _DAMAGE as error:
            raise InputError(
                f"{path}: not a readable .npz file (array {name!r} {reason(error)}); {remedy}"
            ) from None
    return arrays


def packed_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The content of an .npz file; equal arrays give equal bytes, whenever they are packed.

    Args:
      arrays: arrays by name, of numbers, bools or text.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            # A `ZipInfo` has a fixed time; a plain name would get that of the clock.
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def _parsed(content: bytes, kind: str) -> np.ndarray:
    """The array of an .npy file; raises one of `_DAMAGE` if it is damaged or of another kind."""
    stream = io.BytesIO(content)
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"is of format {version}")
    shape, by_column, dtype = _HEADERS[version](stream, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise ValueError("holds Python objects, which are never unpickled")
    if dtype.name != kind and dtype.kind not in _WORDS.get(kind, ""):
        raise ValueError(f"is of {dtype}, and must be {kind}")
    held, claimed = len(content) - stream.tell(), math.prod(shape) * dtype.itemsize
    if held != claimed or min(shape, default=0) < 0:
        raise ValueError(f"claims {list(shape)} x {dtype} and holds {held} bytes")
    order: Literal["F", "C"] = "F" if by_column else "C"
    array: np.ndarray = np.ndarray(shape, dtype, content, stream.tell(), order=order)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    if array.dtype.kind == "U" and array.size and not _is_text(array):
        raise ValueError("holds what is no text")
    return array


def _is_text(array: np.ndarray) -> bool:
    codes = np.ascontiguousarray(array).view(np.uint32)
    return not ((codes > 0x10FFFF) | ((codes >= 0xD800) & (codes <= 0xDFFF))).any()
