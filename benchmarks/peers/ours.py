"""This library's own simulation loop on a work."""

import os
import sys
from typing import Any

import jax
import numpy as np

from benchmarks.peers.work import Gate, load
from benchmarks.peers.works import SEED, SETTINGS
from fedjax_het.contract.algorithm import Variables
from fedjax_het.engine.engine import Engine
from fedjax_het.problem import Problem
from fedjax_het.runtime import processes
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.options import RunOptions
from fedjax_het.simulation.simulate import simulate


class GatedEvaluator(Evaluator):
    """Evaluates and waits at the end of every block.

    Args:
      problem: model and data.
      gate: holds the process between blocks.
      every: rounds of a block.
      compile_s: gives the seconds spent compiling the training programs so far.
    """

    def __init__(self, problem: Problem, gate: Gate, every: int, compile_s: Any):
        super().__init__(problem)
        self._gate, self._every, self._compile_s = gate, every, compile_s
        self._rounds = -every
        self._last: dict[str, Any] = {}

    def __call__(self, variables: Variables, target: str | None = None) -> dict[str, Any]:
        """The newest evaluation."""
        self._rounds += self._every
        if self._rounds == 0:
            self._last = super().__call__(variables, target)
            self._gate.ready()
            return self._last

        def measure() -> float:
            self._last = Evaluator.__call__(self, variables, target)
            return self._last["accuracy"]

        jax.block_until_ready(variables)
        self._gate.after_round(self._rounds, measure, compile_s=self._compile_s())
        return self._last


def main() -> None:
    """`python -m benchmarks.peers.ours FOLDER NAME KEY [--tuned] [--apart]`."""
    folder, name, key, *flags = sys.argv[1:]
    devices = (os.cpu_count() or 1) if "--apart" in flags else 1
    processes.divide_cpu(devices)
    work = load(folder)
    gate = Gate(work, name)
    setting = SETTINGS[key]()
    algorithm = setting.algorithm()
    every = work.blocks[0]
    options: dict[str, Any] = {"rounds": work.rounds, "seed": SEED, "eval_every": every}
    options["devices"] = devices
    if "--tuned" in flags:
        options["convolution"] = "tuned"
    engine = Engine(algorithm, RunOptions.parse(options).resources(setting.problem))
    evaluator = GatedEvaluator(
        setting.problem, gate, every, lambda: engine.resources.compiler.seconds
    )
    result = simulate(algorithm, setting.problem, engine=engine, evaluator=evaluator, **options)
    gate.finish([np.asarray(a) for a in jax.tree.leaves(result.variables.params["blocks"])])


if __name__ == "__main__":
    main()
