"""The input of a contender: samples, cohorts, batches and initial weights; and the gate.

A contender is a process. It loads a `Work`, prepares, and runs all rounds in its own way, with a
call of the `Gate` after each. At the end of a batch of rounds the gate evaluates, reports, and
stops the process until the driver continues it, so that contenders run in turn.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.nets import Layer


@dataclass(frozen=True)
class Work:
    """One federated training, sample by sample.

    Attributes:
      folder: where it lies.
      network: layers of the model.
      learning_rate: of the clients' plain SGD; the server takes the mean by samples.
      batch: samples per step.
      blocks: rounds after which a block ends, ascending; the first is the warm-up.
      x: float32[N, ...], channels last, or symbols int32[N, T], ready for the model.
      y: int32[N], or int32[N, T] where every next symbol is predicted.
      test_x, test_y: the test set, likewise.
      cohort: int32[R, K], clients of a round.
      steps: int32[R, K], local steps.
      batches: int32[R, K, steps, batch], rows of `x`; -1 past a client's last step.
      first: int32[R, K], shallowest block that the client trains; all 0 but in partial training.
      level: int32[R, K], width of the client's sub-network, an index into `shapes`.
      shapes: shapes of the parameters by level, in the order of `leaves`; level 0 is the model.
      leaf_block: int32[leaves], the block that a parameter belongs to.
      leaves: initial weights.
    """

    folder: Path
    network: list[Layer]
    learning_rate: float
    batch: int
    blocks: tuple[int, ...]
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray
    cohort: np.ndarray
    steps: np.ndarray
    batches: np.ndarray
    first: np.ndarray
    level: np.ndarray
    shapes: list[list[list[int]]]
    leaf_block: np.ndarray
    leaves: list[np.ndarray]

    @property
    def rounds(self) -> int:
        """Rounds in all."""
        return len(self.cohort)

    def samples(self, round: int, member: int) -> np.ndarray:
        """int32[n]: rows of `x` that a member of a round's cohort visits, batch after batch."""
        return self.batches[round, member, : self.steps[round, member]].reshape(-1)

    def save(self) -> None:
        """Writes the work to `folder`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fields = dict(vars(self))
        leaves = {f"weights_{i}": leaf for i, leaf in enumerate(fields.pop("leaves"))}
        del fields["folder"]
        arrays = {k: fields.pop(k) for k in list(fields) if isinstance(fields[k], np.ndarray)}
        (self.folder / "work.json").write_text(json.dumps(fields))
        np.savez(self.folder / "work.npz", **arrays, **leaves)


def load(folder: str | Path) -> Work:
    """Reads what `Work.save` wrote."""
    folder = Path(folder)
    fields = json.loads((folder / "work.json").read_text())
    with np.load(folder / "work.npz") as file:
        arrays = {name: file[name] for name in file.files}
    count = sum(name.startswith("weights_") for name in arrays)
    leaves = [arrays.pop(f"weights_{i}") for i in range(count)]
    return Work(folder=folder, leaves=leaves, **{**fields, **arrays})


class Gate:
    """Reports to the driver and waits for its turn; from here on only the driver may use stdout.

    Args:
      work: the work.
      name: of the contender.
    """

    def __init__(self, work: Work, name: str):
        self._work, self._name = work, name
        self._began = 0.0
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def ready(self) -> None:
        """Everything is set up; the next line of code begins the first round."""
        self._say(event="ready")
        self._wait()

    def after_round(self, done: int, evaluate: Callable[[], float], **extra: Any) -> None:
        """Ends the block if `done` rounds end one.

        Args:
          done: rounds so far; their work is finished, nothing is still in flight.
          evaluate: gives the test accuracy.
          **extra: numbers to report.
        """
        if done not in self._work.blocks:
            return
        trained = time.perf_counter()
        accuracy = float(evaluate())
        evaluated = time.perf_counter()
        self._say(
            event="block",
            rounds=done,
            train_s=trained - self._began,
            eval_s=evaluated - trained,
            accuracy=accuracy,
            **extra,
        )
        self._wait()

    def finish(self, leaves: Sequence[np.ndarray]) -> None:
        """Hands in the trained weights, in our order and layout."""
        path = self._work.folder / f"{self._name}.npz"
        np.savez(path, *(np.asarray(leaf) for leaf in leaves))
        self._say(event="done", weights=str(path))
        self._out.close()

    def _say(self, **message: Any) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            raise SystemExit("the driver is gone")
        self._began = time.perf_counter()
