"""A contender as a separate process, controlled over its pipes."""

import itertools
import json
import os
import selectors
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.work import Work

# Nothing is read back that an earlier run compiled: the first block shows what compiling costs.
_ENVIRONMENT = {
    "PYTHONPATH": str(Path(__file__).parents[2]),
    "FEDJAX_HET_COMPILATION_CACHE": "off",
    "FLWR_TELEMETRY_ENABLED": "0",
}
# Seconds that a contender may need for one message: setting up, or one block.
_PATIENCE_S = 300.0


class Contender(NamedTuple):
    """A way to do the work.

    Attributes:
      name: for the tables.
      module: of `benchmarks.peers`.
      flags: further arguments.
      own_python: runs in this interpreter rather than in that of the peers.
      partial: whether it trains only the blocks that a work leaves to a client.
      cuts: whether it trains the sub-networks by width of a work.
      symbols: whether it has the layers of networks over symbols.
    """

    name: str
    module: str
    flags: tuple[str, ...] = ()
    own_python: bool = False
    partial: bool = False
    cuts: bool = False
    symbols: bool = True


CONTENDERS = (
    Contender("ours", "ours", own_python=True, partial=True, cuts=True),
    Contender("ours, measured", "ours", ("--tuned",), own_python=True, partial=True, cuts=True),
    Contender(
        "ours, a client a core", "ours", ("--apart",), own_python=True, partial=True, cuts=True
    ),
    Contender("PyTorch loop", "torch_loop", partial=True),
    Contender("PyTorch loop, frozen", "torch_loop", ("--frozen",), partial=True),
    Contender("PyTorch loop over slices", "torch_widths", cuts=True),
    Contender("pfl-research", "pfl_sim"),
    Contender("Flower", "flower_sim"),
    Contender("fedjax", "fedjax_sim", symbols=False),
    Contender("FLGo", "flgo_sim"),
)


class Process:
    """A running contender.

    Args:
      contender: which.
      work: what it does.
      key: of the work's setting.
      python: interpreter of the peers.
    """

    def __init__(self, contender: Contender, work: Work, key: str, python: str):
        self.contender = contender
        self.blocks: list[dict[str, Any]] = []
        self.failure: str | None = None
        self.weights: list[np.ndarray] | None = None
        self._label = "".join(c if c.isalnum() else "_" for c in contender.name)
        self._log = work.folder / f"{self._label}.log"
        flags = (*((key,) if contender.own_python else ()), *contender.flags)
        module = f"benchmarks.peers.{contender.module}"
        interpreter = sys.executable if contender.own_python else python
        scratch = work.folder / self._label
        scratch.mkdir()
        self._began = time.perf_counter()
        with open(self._log, "w") as log:
            self._child = subprocess.Popen(
                [interpreter, "-m", module, str(work.folder), self._label, *flags],
                cwd=scratch,
                env={**os.environ, **_ENVIRONMENT},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._listen("ready")
        self.setup_s = time.perf_counter() - self._began

    def block(self) -> None:
        """Lets it run one block."""
        self._go()
        if message := self._listen("block"):
            self.blocks.append(message)

    def seconds(self) -> list[float]:
        """Seconds of training in each batch of rounds, without separately reported compilation."""
        compiled = [0.0, *(block.get("compile_s", 0.0) for block in self.blocks)]
        spent = [b - a for a, b in itertools.pairwise(compiled)]
        return [block["train_s"] - s for block, s in zip(self.blocks, spent, strict=True)]

    def close(self) -> None:
        """Lets it finish, and takes its weights."""
        self._go()
        if message := self._listen("done"):
            with np.load(message["weights"]) as file:
                self.weights = [file[name] for name in file.files]
        self._end()

    def _go(self) -> None:
        if self.failure is None and self._child.stdin:
            self._child.stdin.write("go\n")
            self._child.stdin.flush()

    def _listen(self, event: str) -> dict[str, Any] | None:
        """The next message, which must be `event`; None and a `failure` if it is not to be had."""
        if self.failure is not None or self._child.stdout is None:
            return None
        line = _read_line(self._child, _PATIENCE_S)
        if line and (message := json.loads(line))["event"] == event:
            return message
        said = self._log.read_text().strip().splitlines() or ["it said nothing"]
        errors = [text for text in said if "Error" in text] or said
        self.failure = errors[-1][-300:] if line == "" else f"no answer in {_PATIENCE_S:.0f} s"
        self._end()
        return None

    def _end(self) -> None:
        for stream in (self._child.stdin, self._child.stdout):
            if stream:
                stream.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def _read_line(child: subprocess.Popen[str], patience_s: float) -> str | None:
    """A line of the child's output, "" at its end, None if it takes too long."""
    assert child.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        return child.stdout.readline() if selector.select(patience_s) else None
