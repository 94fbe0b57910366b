"""Text of quantities for readers: three digits, a suitable unit, and a spread only if known."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_TIME = ((172800.0, 86400.0, "d"), (7200.0, 3600.0, "h"), (120.0, 60.0, "min"), (0.1, 1.0, "s"),
         (1e-4, 1e-3, "ms"), (0.0, 1e-6, "µs"))  # fmt: skip
_SMALL = ((0.1, 1.0, ""), (1e-4, 1e-3, "m"), (0.0, 1e-6, "µ"))
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (0.0, ""))


@dataclass(frozen=True)
class Spread:
    """A quantity over the seeds of a method.

    Attributes:
      values: values of the quantity, one per seed, never empty.
    """

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None for one seed, whose spread is unknown."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


def spread(values: Sequence[float | None]) -> Spread | None:
    """The `Spread` of the finite values; None if there are none."""
    finite = tuple(float(v) for v in values if v is not None and math.isfinite(v))
    return Spread(finite) if finite else None


def spread_data(value: Spread | None) -> dict[str, Any] | None:
    """A spread for JSON, with all its values."""
    if value is None:
        return None
    return {"mean": value.mean, "std": value.std, "values": value.values}


def unit(magnitude: float, kind: str) -> tuple[float, str]:
    """Divisor and name of the most readable unit for `magnitude`.

    Args:
      magnitude: value in seconds, bytes, joules, FLOPs, FLOP/s or plain counts.
      kind: kind of the value, in the same order: `"s"`, `"B"`, `"J"`, `"FLOP"`, `"FLOP/s"` or `""`.
    """
    if kind == "s":
        return next((scale, name) for low, scale, name in _TIME if magnitude >= low or not low)
    if kind == "":
        return 1.0, ""
    if kind == "J" and magnitude < 1e3:
        return next((scale, prefix + kind) for low, scale, prefix in _SMALL if magnitude >= low)
    return next((low or 1.0, prefix + kind) for low, prefix in _PREFIXES if magnitude >= low)


def decimals(value: float, digits: int = 3, most: int = 3) -> int:
    """Number of decimals that show `digits` significant digits, at most `most`."""
    if value == 0 or not math.isfinite(value):
        return 0
    return min(max(digits - 1 - math.floor(math.log10(abs(value))), 0), most)


def smallest(values: Iterable[Spread | None]) -> float | None:
    """The smallest positive mean, which sets the unit of a table row; None if there is none."""
    return min((v.mean for v in values if v is not None and v.mean > 0), default=None)


def quantity(value: Spread | float | None, kind: str, like: float | None = None) -> str:
    """`value` with its unit, as `"12.3 ± 0.4 s"`; without spread for one seed; `"-"` for None.

    Args:
      value: value to write.
      kind: kind of the value, as in `unit`.
      like: magnitude whose unit is used, so that all cells of a row have one unit; default `value`.
    """
    if value is None:
        return "-"
    mean, std = (value.mean, value.std) if isinstance(value, Spread) else (value, None)
    scale, name = unit(mean if like is None else like, kind)
    places = decimals(mean / scale)
    if std:
        rounded = float(f"{std / scale:.0e}")  # 0.0999 becomes 0.1, which has one digit
        places = max(places, min(decimals(rounded, 1), places + 1))
    text = f"{mean / scale:.{places}f}"
    if std is not None:
        text += f" ± {std / scale:.{places}f}"
    return f"{text} {name}".rstrip()


def percent(value: Spread | float | None, places: int = 2) -> str:
    """A share as `"97.03 ± 0.12 %"`; without spread for one seed; `"-"` for None."""
    if value is None:
        return "-"
    if isinstance(value, Spread) and value.std is not None:
        return f"{100 * value.mean:.{places}f} ± {100 * value.std:.{places}f} %"
    mean = value.mean if isinstance(value, Spread) else value
    return f"{100 * mean:.{places}f} %"


def number(value: Spread | float | None) -> str:
    """A number without unit, with four digits, as `"3.214 ± 0.120"`; `"-"` for None."""
    if value is None:
        return "-"
    mean, std = (value.mean, value.std) if isinstance(value, Spread) else (value, None)
    largest = max(abs(mean), std or 0.0)
    form = ".4g" if 0 < largest < 0.01 else f".{decimals(largest, 4, 5)}f"
    return f"{mean:{form}}" + ("" if std is None else f" ± {std:{form}}")


def times(ratio: float) -> str:
    """A ratio with three digits, as `"2.13×"`."""
    return f"{ratio:.{min(decimals(ratio), 2)}f}×"
