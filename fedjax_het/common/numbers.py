"""Numbers that an option can have, stated by its annotation and checked by `common.options`.

A plain `int` fits 64 bits. A plain `float` is finite, and 0 or of a size that single precision and
products of two such numbers can hold: nothing physical is larger or smaller. The aliases below
state other ranges, e.g. `rounds: Count`, `memory_bytes: Unlimited`.
"""

import math
import reprlib
from typing import Annotated, Any, NamedTuple

import numpy as np

# Smallest and largest size of a number that is not 0.
LEAST, MOST = 1e-30, 1e30
INT32, INT64 = 2**31 - 1, 2**63 - 1


class Range(NamedTuple):
    """The numbers that an option's annotation allows.

    Attributes:
      most: largest size (absolute value).
      why: reason of that limit, in words.
      infinite: whether infinity is a value as well.
    """

    most: float
    why: str = ""
    infinite: bool = False


_WHOLE = Range(INT64)
_REAL = Range(MOST)

# A number for which infinity means that there is no limit.
Unlimited = Annotated[float, Range(MOST, infinite=True)]
# A number of rounds, steps, samples ...: programs hold them in 32 bits.
Count = Annotated[int, Range(INT32, "programs hold it in 32 bits")]
# Seed of a random key, which has 32 bits: larger ones would repeat the draws of smaller ones.
Seed = Annotated[int, Range(2**32 - 1, "a random key has 32 bits")]
# A number of clients, of classes, or of units of a layer.
Size = Annotated[int, Range(10**7, "no memory holds more")]
# A number of layers, blocks or stages, which are built one by one.
Depth = Annotated[int, Range(1000, "they are built one by one")]


def is_real(value: Any) -> bool:
    """Whether a value is one real number of Python or NumPy; True and False are none."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def fits(value: Any, kind: type, limit: Range | None = None) -> bool:
    """Whether a number lies in a range.

    Args:
      value: number of Python or NumPy.
      kind: int or float, the type of the option.
      limit: range of the option; None for that of all of its kind.
    """
    number = int(value) if isinstance(value, int | np.integer) else float(value)
    if isinstance(number, int) and abs(number) > INT64:
        return False
    limit = limit or (_WHOLE if kind is int else _REAL)
    if not math.isfinite(number):
        return limit.infinite and not math.isnan(number)
    size = abs(number)
    return size <= limit.most and (kind is int or size == 0 or size >= LEAST)


def words(kind: type, limit: Range | None = None) -> str:
    """The numbers in a range, for messages."""
    limit = limit or (_WHOLE if kind is int else _REAL)
    if kind is float:
        finite = "inf or a finite number" if limit.infinite else "a finite number"
        return f"{finite} (0, or {LEAST:g} to {MOST:g} in size)"
    if limit is _WHOLE:
        return "a whole number that fits 64 bits"
    return f"a whole number of at most {limit.most} ({limit.why})"


def reals(value: Any) -> np.ndarray | None:
    """Real numbers as float64[...]; None for anything else, complex numbers and bools included."""
    try:
        given = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return given.astype(np.float64) if given.dtype.kind in "iuf" else None


def usable(values: np.ndarray) -> np.ndarray:
    """Whether each number is finite, and 0 or of a physical size, as `fits`; bool[...]."""
    size = np.abs(values)
    return (size == 0) | ((size >= LEAST) & (size <= MOST))


class _Short(reprlib.Repr):
    def repr_int(self, x: int, level: int) -> str:
        # Python refuses to write whole numbers of thousands of digits.
        bits = x.bit_length()
        return super().repr_int(x, level) if bits < 1000 else f"<whole number of {bits} bits>"


def shown(value: Any, text: int = 30) -> str:
    """A short text of a value, for messages; of texts at most `text` characters."""
    short = _Short()
    short.maxstring = text
    return short.repr(value)
