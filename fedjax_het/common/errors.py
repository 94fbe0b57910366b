"""The exception that bad input raises, and the checks that raise it."""

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import Any

# Characters of a message: of its begin, where the value stands, and of its end.
_BEGIN, _END = 500, 1000


class InputError(ValueError):
    """A given value cannot be used; the message, one line, names value, limit and remedy.

    Of a message that nobody would read to the end, which a value of thousands of characters makes,
    the middle is left out.
    """

    def __init__(self, message: str):
        line = re.sub(r"\s*\n\s*", " ", message)  # arrays print several lines
        if len(line) > _BEGIN + _END + len(" ... "):
            line = f"{line[:_BEGIN]} ... {line[-_END:]}"
        super().__init__(line)


def require(condition: bool, value: str | Callable[[], str], limit: str, remedy: str) -> None:
    """Raises `InputError("value: limit; remedy")` unless `condition` holds.

    Args:
      condition: condition that must be true.
      value: text of the bad value with its name, e.g. `"alpha = -1"`, or a function that returns
        it, which avoids printing arrays in functions that are called often.
      limit: condition in words, e.g. `"must be positive"`.
      remedy: advice to the user, e.g. `"use 0.1 for strong and 100 for weak label skew"`.
    """
    if not condition:
        raise InputError(f"{value() if callable(value) else value}: {limit}; {remedy}")


def require_known(name: Any, known: Iterable[str], what: str) -> None:
    """Raises `InputError` unless `name` is one of `known`; suggests the nearest spelling.

    Args:
      name: key or choice that was given.
      known: names that are allowed.
      what: kind of the name, e.g. `"algorithm"`.
    """
    known = sorted(known)
    if name in known:
        return
    if not known:
        raise InputError(f"{what} {name!r}: there is none to choose from; leave it out")
    near = get_close_matches(str(name), known, n=1)
    remedy = f"did you mean {near[0]!r}?" if near else "choose one of them"
    raise InputError(f"{what} {name!r}: must be one of {', '.join(known)}; {remedy}")
