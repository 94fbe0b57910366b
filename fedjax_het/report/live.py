"""The page of a job that goes on, drawn again when its records have changed."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any

from fedjax_het.common.errors import InputError
from fedjax_het.common.writing import encoded
from fedjax_het.report.explorer import page_data
from fedjax_het.report.page import Content, body, document
from fedjax_het.report.progress import Place, Watched
from fedjax_het.report.units import quantity

# A page is drawn at most in so much of the time, because the job needs the processor.
_SHARE = 0.2
# Between two runs of a comparison no process holds one, while pages are drawn and methods compiled.
_BETWEEN_S = 60.0

Holds = Callable[[Any], tuple[str, bool] | None]


@dataclass(frozen=True)
class State:
    """What is known of a job without its records.

    Attributes:
      state: `"waiting"`, `"running"`, `"finished"` or `"stopped"`.
      text: the same for readers, with how far it is.
    """

    state: str
    text: str


class LivePage:
    """The page of a directory, and the state of the job in it.

    Args:
      watched: the directory.
      holds: function that tells who holds the lock of a directory, and whether that process has
        ended; None if nobody does.

    Attributes:
      version: number of the page, which rises with every change.
      page: the page, in UTF-8.
      state: state of the job.
    """

    def __init__(self, watched: Watched, holds: Holds):
        self._watched, self._holds = watched, holds
        self._content: Content | None = None
        self._stamp: Any = None
        self._next_s, self._changed_s = 0.0, time.monotonic()
        self.version, self.page = 0, b""
        self.state = State("waiting", "")
        self.refresh()

    def refresh(self) -> None:
        """Looks at the directory, and draws the page again if the records have changed."""
        try:
            self._read()
        except InputError as error:
            # Files that change while they are read may contradict each other once.
            self.state = State(self.state.state, f"The records cannot be read: {error}")
            if not self.page:
                self._write()

    def _read(self) -> None:
        before, self.state = self.state.state, self._state()
        stamp = (self.state.state, [place.stamp() for place in self._watched.places()])
        began_s = time.monotonic()
        if stamp == self._stamp or (began_s < self._next_s and before == self.state.state):
            return
        self._changed_s = began_s
        self._content = self._watched.content()
        self.state = self._state()
        self._write()
        self._stamp, ended_s = stamp, time.monotonic()
        self._next_s = ended_s + (ended_s - began_s) / _SHARE

    def _write(self) -> None:
        """Makes the page of the content."""
        version = self.version + 1
        news = {"live": True, "version": version}
        banner = (
            f'<p id="live" role="status" class="{self.state.state}">{escape(self.state.text)}</p>\n'
        )
        if self._content is None:
            title = f"{self._watched.root}: no evaluated step yet"
            page = document(title, f"<h1>{escape(title)}</h1>\n{banner}", news, live=True)
        else:
            data = news | page_data(self._content.runs, self._content.results)
            page = document(self._content.title, banner + body(self._content), data, live=True)
        # The page comes first: whoever hears of the version asks for it.
        self.page = encoded(page)
        self.version = version

    def _state(self) -> State:
        """The state of the job; whoever holds a lock in the directory works on it."""
        places, kind = self._watched.places(), self._watched.kind
        # A comparison is written under the lock of its directory, a trial runs under its own.
        paths = [self._watched.root, *(p.path.parent for p in places), *(p.path for p in places)]
        held = [found for path in dict.fromkeys(paths) if (found := self._holds(path)) is not None]
        alive, killed = (
            "; ".join(dict.fromkeys(who for who, gone in held if gone == ended))
            for ended in (False, True)
        )
        told = self._progress(places)
        if alive:
            return State("running", f"Running: {told} By {alive}.")
        if self._watched.done:
            return State("finished", f"Finished: {told}")
        if not places:
            return State("waiting", "No run has begun here yet.")
        since_s = time.monotonic() - self._changed_s
        if kind != "run" and not killed and since_s < _BETWEEN_S:
            return State("running", f"Between two runs: {told}")
        return State(
            "stopped",
            f"Stopped before the end: {told} No process works on it"
            f"{f'; {killed} has ended' if killed else ''}. The same command goes on from the last "
            "checkpoint.",
        )

    def _progress(self, places: list[Place]) -> str:
        """How far the job is; of a run, up to the last page."""
        if self._watched.kind == "run":
            if self._content is None:
                return "no evaluated step yet."
            summary = next(iter(self._content.runs.values()))[0].summary
            why = f", ended by {summary['ended']}" if summary.get("ended") else ""
            now = quantity(summary["virtual_s"], "s")
            return f"step {summary['steps']}, {now} of virtual time{why}."
        jobs, ended = self._watched.jobs(), sum(place.ended for place in places)
        if jobs is None:
            return f"{ended} of {len(places)} runs that began have ended."
        return f"{ended} of {jobs.runs} runs have ended."
