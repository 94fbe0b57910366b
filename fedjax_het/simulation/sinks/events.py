"""Scalars for TensorBoard, written with tensorboardX (extra `tracking`)."""

import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedjax_het.common.writing import make_directory, refusing
from fedjax_het.simulation import stopwatch
from fedjax_het.simulation.sinks.base import SinkRun, missing

# Seconds after which rows are sent to the disk, for those who watch the run.
_FLUSH_S = 120.0


class TensorBoard:
    """Writes every number under its own name.

    Args:
      events: tensorboardX's writer of an event file. Its `SummaryWriter` gives the events to a
        thread, and waits for ever once an error of the disk has ended that thread.
      event: function of the step, the wall time and the numbers by name, which makes an event.
      place: path of the events for error messages.
    """

    def __init__(self, events: Any, event: Callable[..., Any], place: Path):
        self._events, self._event, self._place = events, event, place
        self._flushed_s = stopwatch.clock()

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Writes the numbers of one step; raises `WriteError` if the disk refuses."""
        with refusing(str(self._place)):
            self._events.write_event(self._event(step, time.time(), numbers))
            if stopwatch.clock() - self._flushed_s > _FLUSH_S:
                self._flushed_s = stopwatch.clock()
                self._events.flush()

    def close(self) -> None:
        """Flushes and closes the event file."""
        with refusing(str(self._place)):
            self._events.close()


def tensorboard(run: SinkRun) -> TensorBoard:
    """Events in `tensorboard` in the work directory.

    Raises:
      InputError: if tensorboardX is missing, or the directory cannot be written to.
    """
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError as error:
        raise missing("tensorboard", "tensorboardX", "tracking") from error

    def event(step: int, wall_s: float, numbers: Mapping[str, float]) -> Any:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in numbers.items()]
        return Event(step=step, wall_time=wall_s, summary=Summary(value=values))

    place = run.workdir / "tensorboard"
    make_directory(place, str(place))
    with refusing(str(place)):
        # tensorboardX names files by the second; a run that resumes within one has its own.
        events = EventsWriter(str(place / "events"), f".{uuid.uuid4().hex[:8]}")
    return TensorBoard(events, event, place)
