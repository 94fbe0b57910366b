"""What a sink is: another place for the numbers of a run; `metrics.jsonl` stays the truth."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from absl import logging

from fedjax_het.common.errors import InputError
from fedjax_het.common.writing import WriteError

_SKIPPED = ("step", "info", "nonfinite")


class Sink(Protocol):
    """Takes the numbers of a run, step by step."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Takes the numbers of one server step, by name.

        A run that was killed and resumed may repeat steps, with the same numbers.
        """

    def close(self) -> None:
        """Ends the run, finished or not."""


class SinkRun(NamedTuple):
    """The run that a sink is opened for.

    Attributes:
      workdir: work directory.
      name: name of the run.
      config: resolved configuration; of a run that has none, the options by which it resumes.
    """

    workdir: Path
    name: str
    config: Mapping[str, Any]


Opener = Callable[[SinkRun], Sink]


class Sinks:
    """The sinks of a run, of which none can end it.

    Args:
      sinks: sinks by name.
    """

    def __init__(self, sinks: Mapping[str, Sink]):
        self._open = dict(sinks)

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Passes on the numbers of one row of `metrics.jsonl`.

        Raises:
          WriteError: if the disk refuses what it would refuse the rows of the run too.
        """
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if name not in _SKIPPED and isinstance(value, int | float)
        }
        for name, sink in list(self._open.items()):
            self._guard(name, functools.partial(sink.write, metrics["step"], numbers))

    def close(self) -> None:
        """Closes all of them."""
        for name, sink in list(self._open.items()):
            self._guard(name, sink.close)

    def _guard(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except WriteError:
            raise
        except Exception as error:
            # A tracker's server may be gone for an hour; the run, which needs none, goes on.
            del self._open[name]
            told = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            logging.warning(
                "sink %r failed (%s) and gets no further rows; metrics.jsonl has them all",
                name,
                told,
            )


def missing(sink: str, library: str, extra: str) -> InputError:
    """The error for a sink whose library is not installed."""
    return InputError(
        f"sinks with {sink!r}: {library} is not installed; "
        f"install it with pip install 'fedjax-het[{extra}]', or leave {sink!r} out"
    )
