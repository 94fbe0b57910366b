"""Processes of the campaigns: forks of one that has imported everything and started nothing.

Importing JAX and the package takes seconds, a fork milliseconds. The campaign's own process
therefore imports everything and never asks JAX for a device, whose threads a fork would lose.
"""

import atexit
import gc
import math
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  a child should not have to import it
import orbax.checkpoint  # noqa: F401
import sklearn.datasets  # noqa: F401

# A child whose memory grows beyond this fails, and not the machine.
MEMORY_BYTES = 6 * 1024**3
_CRASHED = 70
# A fork that gets less than this part of a processor waits for something else.
_SHARE = 100
# A fork is asked so often whether it has answered.
_TURN_S = 1.0


@dataclass(frozen=True)
class Ended:
    """How a child ended.

    Attributes:
      code: exit status; the negative number of a signal that ended it; None if it hung and was
        killed.
      used_s: processor time that it took, which other programs do not change.
      output: what it wrote to its standard output and error.
    """

    code: int | None
    used_s: float
    output: str


def freeze() -> None:
    """Leaves the imported modules alone in all later collections, so that forks share them."""
    gc.collect()
    gc.freeze()


class Child:
    """A fork that runs a function and writes its output to a file.

    Args:
      work: function to run; `SystemExit` ends the child with its status, any other exception with a
        traceback and status 70.
      output: file for its standard output and error.
    """

    def __init__(self, work: Callable[[], Any], output: Path):
        self._output, self._start, self._used_s = output, time.monotonic(), 0.0
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            _become(work, output)

    def wait(self, seconds: float) -> Ended:
        """Waits for the end of the child; kills it after `seconds`."""
        code = self._ended(seconds)
        if code is None:
            self.kill()
        return self._told(code)

    def kill_after(self, used_s: float, seconds: float) -> Ended | None:
        """Kills the child; None if it was killed, else how it ended before.

        Args:
          used_s: processor time of the child after which it is killed.
          seconds: time after which it is killed anyway.
        """
        code = self._ended(seconds, used_s)
        if code is None:
            self.kill()
            return None
        return self._told(code)

    def kill(self) -> None:
        """Kills the child with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def _ended(self, seconds: float, used_s: float = math.inf) -> int | None:
        until = self._start + seconds
        while True:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._used_s = used.ru_utime + used.ru_stime
                return os.waitstatus_to_exitcode(status)
            left = until - time.monotonic()
            if left <= 0 or _used_s(self.pid) >= used_s:
                return None
            time.sleep(min(0.002, left))

    def _told(self, code: int | None) -> Ended:
        return Ended(code, self._used_s, self._output.read_text(errors="replace"))


def _become(work: Callable[[], Any], output: Path) -> None:
    """Runs the work in this child, which then ends."""
    code = 0
    # Only what the child itself registers: the parent's functions remove the parent's files.
    atexit._clear()
    try:
        target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(target, 1)
        os.dup2(target, 2)
        _bound()
        work()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = _CRASHED
    finally:
        try:
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _bound() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Worker:
    """A fork that answers one case after another, and is replaced when it hangs, dies or grows.

    Args:
      answer: function from a case to its answer, which is pickled.
      output: file for what the fork prints.
      seconds: time for a case after which the fork counts as hanging.
      most: number of cases after which a fork is replaced.
      grown: memory in bytes at which a fork is replaced.
    """

    def __init__(
        self,
        answer: Callable[[Any], Any],
        output: Path,
        seconds: float = 60.0,
        most: int = 400,
        grown: int = 2 * 1024**3,
    ):
        self._answer, self._output, self._seconds = answer, output, seconds
        self._most, self._grown = most, grown
        self._child: Child | None = None
        self._line: Connection | None = None
        self._left = 0

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def ask(self, case: Any) -> Any:
        """The answer; an `Ended` if the fork hung (`code` None) or died."""
        if self._child is None:
            self._begin()
        assert self._child is not None
        assert self._line is not None
        self._line.send(case)
        try:
            if self._answers(self._line, self._child.pid):
                found = self._line.recv()
                self._left -= 1
                if self._left <= 0 or _resident(self._child.pid) > self._grown:
                    self.end()
                return found
            ended = Ended(None, _used_s(self._child.pid), "")
        except (EOFError, ConnectionResetError):
            ended = self._child.wait(5.0)
            self._child = None
        self.end()
        return ended

    def _answers(self, line: Connection, pid: int) -> bool:
        """Waits for an answer; a fork that computes on a busy machine gets the time it lacks."""
        began, waited_s, used_s = time.monotonic(), 0.0, _used_s(pid)
        while not line.poll(_TURN_S):
            # Time for which the whole campaign was stopped is no time that the fork had.
            waited_s += min(time.monotonic() - began, 2 * _TURN_S)
            began, cpu_s = time.monotonic(), _used_s(pid) - used_s
            busy = cpu_s > waited_s / _SHARE
            if waited_s > self._seconds and not (busy and cpu_s < self._seconds):
                return False
        return True

    def end(self) -> None:
        """Ends the fork; the next question starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None
        if self._line is not None:
            self._line.close()
            self._line = None

    def _begin(self) -> None:
        ours, theirs = multiprocessing.Pipe()

        def work() -> None:
            ours.close()
            while True:
                theirs.send(self._answer(theirs.recv()))

        self._child, self._line, self._left = Child(work, self._output), ours, self._most
        theirs.close()


def _resident(pid: int) -> int:
    """Resident memory of a process in bytes; 0 where the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0
    return pages * resource.getpagesize()


def _used_s(pid: int) -> float:
    """Processor time of a process in seconds; 0 where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
