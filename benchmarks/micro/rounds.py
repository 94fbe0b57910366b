"""Rounds per second of whole simulations: batches of rounds in one program, and single rounds.

    taskset -c 0 python -m benchmarks.micro.rounds
    python -m benchmarks.micro.rounds --only mlp_10,leaf_cnn --repeats 9

The time includes sampling, planning, the clock and the records, but not evaluation and the summary
at the end. "one by one" plans a round, runs training, merge and server step in separate programs
and waits for them, as for methods whose plans depend on the model. "batches of one" is the program
of a batch of rounds with a single round. The three run in turn.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import harness, isa
from benchmarks.micro.training import make_work
from benchmarks.peers.works import many_small
from fedjax_het.algorithms.fedavg import fedavg
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.engine.engine import make_engine
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler
from fedjax_het.simulation.simulate import simulate


class NoEvaluation:
    """Stands in for the evaluator."""

    def __init__(self) -> None:
        self.compiler = Compiler()

    def mean(self, models: Sequence[Variables], target: str) -> dict[str, Any]:
        """Waits for the models."""
        jax.block_until_ready(models)
        return {target: 0.0}


def thousand_small() -> tuple[Algorithm, Problem, int]:
    """Work (c) of the peers: 1,000 clients of 20 digits, all in every round."""
    setting = many_small()
    return setting.algorithm(), setting.problem, 16


def cohort_of_ten(model: str, rounds: int) -> tuple[Algorithm, Problem, int]:
    """100 clients of two mini-batches of 20, ten in every round."""
    problem = make_work(model, 100, 2, 20).problem
    algorithm = fedavg(problem, learning_rate=0.01, batch_size=20, clients_per_round=10)
    return algorithm, problem, rounds


WORKS: dict[str, Callable[[], tuple[Algorithm, Problem, int]]] = {
    "digits_1000": thousand_small,
    "logistic_10": lambda: cohort_of_ten("logistic", 320),
    "mlp_10": lambda: cohort_of_ten("mlp", 64),
    "leaf_cnn_10": lambda: cohort_of_ten("leaf_cnn", 4),
}


def one_by_one(algorithm: Algorithm) -> Algorithm:
    """The method with a plan of which nothing is known: no batches of rounds."""

    def plan(*arguments: Any) -> Any:
        return algorithm.plan(*arguments)

    return algorithm._replace(plan=plan)


def measure(name: str, repeats: int) -> dict[str, Any]:
    """Rounds a second of a work, in its three ways.

    Args:
      name: in `WORKS`.
      repeats: turns.
    """
    algorithm, problem, rounds = WORKS[name]()
    ways = {
        "batches": (algorithm, rounds),
        "batches of one": (algorithm, 1),
        "one by one": (one_by_one(algorithm), rounds),
    }
    engines = {way: make_engine(method, problem) for way, (method, _) in ways.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, (method, every) in ways.items():
            stub: Any = NoEvaluation()
            engine = {"engine": engines[way], "evaluator": stub}
            result = simulate(method, problem, rounds=rounds, eval_every=every, **engine)
            wall = result.record.column("wall_s")
            if turn:
                seconds[way].append(float(wall[-1] - wall[0]) / rounds)
    ratios = {
        way: harness.spread(list(np.asarray(seconds["one by one"]) / np.asarray(taken)))
        for way, taken in seconds.items()
    }
    return {
        "name": name,
        "seconds": {way: harness.spread(taken) for way, taken in seconds.items()},
        "speedup": ratios,
        "programs": {way: engine.programs for way, engine in engines.items()},
    }


def report(results: dict[str, Any]) -> str:
    """The table as text."""
    header = ("work", "way", "ms a round", "rounds a second, one by one = 1", "programs")
    rows = [
        [
            work["name"],
            way,
            str(harness.Spread(*(1e3 * s for s in taken))),
            str(work["speedup"][way]),
            str(work["programs"][way]),
        ]
        for work in results["works"]
        for way, taken in work["seconds"].items()
    ]
    return "\n".join([harness.describe(results["machine"]), "", harness.table(header, rows)])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(WORKS), help="works, by name")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", help="also write the results here")
    arguments = isa.parse(parser)
    results = {
        "machine": harness.machine(),
        "works": [measure(name, arguments.repeats) for name in arguments.only.split(",")],
    }
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
