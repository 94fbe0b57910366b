"""Cost around the training of a few clients out of ten thousand to a million.

    python -m benchmarks.scale.population
    python -m benchmarks.scale.population --sizes 1000000 --methods fedavg,oort

Every size and method runs in a process of its own, after a small run that starts JAX. Clients have
two samples of 32 numbers each, and the cohort trains an MLP. Columns:

* `data`: bytes of samples and partition; `peak`: largest memory of the run beyond that of the
  process before it had the data, over these bytes; `a client`: what is left of it without the
  arrays that were given and the copy of the data on the device.
* `set-up`: seconds of `from_arrays`, problem, method and `Simulation`, with its first evaluation,
  without compilation.
* `step`: milliseconds of a round or merge, rows in files included, without compiled programs, which
  are waited for and timed by themselves (`programs`); median of the steps after the first ones.
* `evaluation`: the same of an evaluation, with the values of all clients.
* `record`: seconds of summary and population, and of reading and checking the whole record.

Times are those on the wall and, in brackets, of all processors of the process, which say more on a
loaded machine.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import harness
from fedjax_het import algorithms, transforms
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.data.federated import FederatedData, from_arrays
from fedjax_het.fleet.device import Fleet
from fedjax_het.models.mlp import mlp
from fedjax_het.problem import Problem
from fedjax_het.runtime.compiling import Compiler
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.simulation import Simulation

_FEATURES, _CLASSES, _SAMPLES, _TEST = 32, 10, 2, 1000
_MODULE = "benchmarks.scale.population"
# Rounds are planned up to 32 ahead, so only the steps between the first ones and that many before
# the last plan one round each.
_FIRST, _AHEAD = 5, 32


def make_arrays(clients: int) -> dict[str, np.ndarray]:
    """Random samples, and their owners in random order."""
    rng = np.random.default_rng(0)
    n = clients * _SAMPLES
    owner = np.repeat(np.arange(clients), _SAMPLES)
    rng.shuffle(owner)
    return {
        "x": rng.standard_normal((n, _FEATURES), np.float32),
        "y": rng.integers(0, _CLASSES, n),
        "clients": owner,
        "test_x": rng.standard_normal((_TEST, _FEATURES), np.float32),
        "test_y": rng.integers(0, _CLASSES, _TEST),
    }


def make_problem(data: FederatedData) -> Problem:
    """An MLP on devices whose speeds spread by a factor of ten and vary from task to task."""
    speed = 1e9 * 10 ** np.random.default_rng(1).uniform(0, 1, data.num_clients)
    model = mlp((_FEATURES,), _CLASSES, hidden=(32,))
    return Problem(model, data, Fleet(speed, compute_jitter=0.2))


def _deadline(problem: Problem, **training: Any) -> Algorithm:
    """FedAvg with the deadline that half of the devices meet."""
    work = float(problem.cost.step_flops(0, problem.model.num_blocks - 1)) * _SAMPLES
    middling_s = float(np.median(work / problem.fleet.flops_per_s))
    return algorithms.drop_stragglers(problem, deadline_s=middling_s, **training)


def _fedbuff(buffer_size: int) -> Callable[..., Algorithm]:
    """FedBuff with merges of so many, or of all at work if they are fewer."""

    def method(problem: Problem, **training: Any) -> Algorithm:
        size = min(buffer_size, training["clients_per_round"])
        return algorithms.fedbuff(problem, buffer_size=size, **training)

    return method


METHODS: dict[str, Callable[..., Algorithm]] = {
    "fedavg": algorithms.fedavg,
    "deadline": _deadline,
    "fedbuff": _fedbuff(10),
    "fedbuff_100": _fedbuff(100),
    "fedasync": algorithms.fedasync,
    "oort": lambda problem, **training: transforms.select.oort()(
        algorithms.fedavg(problem, **training)
    ),
}


class _Seconds(NamedTuple):
    """Seconds on the wall, and of all processors of this process."""

    wall: float = 0.0
    processors: float = 0.0

    def __sub__(self, other: "_Seconds") -> "_Seconds":
        return _Seconds(self.wall - other.wall, self.processors - other.processors)


def _now() -> _Seconds:
    return _Seconds(time.perf_counter(), time.process_time())


def _median(times: Sequence[_Seconds]) -> _Seconds:
    return _Seconds(*(statistics.median(clock) for clock in zip(*times, strict=True)))


class Programs:
    """Time in compiled programs, which are waited for, and of compiling them, of two clocks."""

    def __init__(self) -> None:
        self._ran, self._compiled = _Seconds(), _Seconds()

    def host(self, work: Callable[[], Any]) -> tuple["_Seconds", "_Seconds"]:
        """Time of work of this process outside and inside of compiled programs."""
        began, ran, compiled = _now(), self._ran, self._compiled
        work()
        inside = self._ran - ran
        return _now() - began - inside - (self._compiled - compiled), inside

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Counts the programs that are compiled inside."""
        compile = Compiler.compile

        def timed(compiler: Compiler, *arguments: Any, **options: Any) -> Callable[..., Any]:
            began = _now()
            program = compile(compiler, *arguments, **options)
            self._compiled -= began - _now()

            def run(*values: Any) -> Any:
                began = _now()
                try:
                    return jax.block_until_ready(program(*values))
                finally:
                    self._ran -= began - _now()

            return run

        Compiler.compile = timed  # type: ignore[method-assign, assignment]
        try:
            yield
        finally:
            Compiler.compile = compile  # type: ignore[method-assign]


def one_run(clients: int, name: str, cohort: int, steps: int) -> dict[str, Any]:
    """Times and memory of one run, in this process.

    Args:
      clients: size of the population.
      name: key of `METHODS`.
      cohort: clients of a round, or at work at a time.
      steps: rounds or merges to time.
    """
    programs = Programs()
    with tempfile.TemporaryDirectory() as workdir, programs.watched():
        _run(programs, make_arrays(cohort), name, cohort, 2, Path(workdir) / "small")
        arrays = make_arrays(clients)
        given = sum(array.nbytes for array in arrays.values())
        harness.reset_peak()
        before = harness.memory_bytes()["now"] - given
        found = _run(programs, arrays, name, cohort, steps, Path(workdir) / "run")
        peak = harness.memory_bytes()["peak"] - before
    beyond = (peak - given - found["data_bytes"]) / clients
    told = {"clients": clients, "method": name, "peak_bytes": peak, "bytes_a_client": beyond}
    return {**told, "given_bytes": given, **found}


def _run(
    programs: Programs,
    arrays: dict[str, np.ndarray],
    name: str,
    cohort: int,
    steps: int,
    place: Path,
) -> dict[str, Any]:
    """Times of a run; `arrays` are those of `from_arrays`."""
    ready: dict[str, Any] = {}

    def make() -> None:
        ready["data"] = from_arrays(**arrays, num_classes=_CLASSES)  # type: ignore[arg-type]

    def pose() -> None:
        ready["problem"] = make_problem(ready["data"])
        training = {"learning_rate": 0.05, "batch_size": _SAMPLES, "clients_per_round": cohort}
        ready["method"] = METHODS[name](ready["problem"], **training)

    rounds, never = _FIRST + steps + _AHEAD, 10**9

    def open_run() -> None:
        ready["evaluator"] = Evaluator(ready["problem"])
        ready["run"] = Simulation(
            ready["method"],
            ready["problem"],
            rounds=rounds,
            eval_every=never,
            checkpoint_every=never,
            workdir=place,
            evaluator=ready["evaluator"],
        )

    set_up = [programs.host(part)[0] for part in (make, pose, open_run)]
    with ready["run"] as run:
        timed = [programs.host(run.step) for _ in range(_FIRST + steps)][_FIRST:]
        host, device = zip(*timed, strict=True)
        while not run.done:
            run.step()
        evaluation, _ = programs.host(lambda: ready["evaluator"](run.variables))
        record, _ = programs.host(lambda: ready.update(record=run.record))
    data = ready["data"]
    times = {
        **dict(zip(("from_arrays", "problem", "simulation"), set_up, strict=True)),
        "step": _median(host),
        "programs": _median(device),
        "evaluation": evaluation,
        "record": record,
    }
    return {
        "data_bytes": sum(a.nbytes for a in (data.x, data.y, data.order, data.count)),
        "seconds": {name: each._asdict() for name, each in times.items()},
        "slowest_step_s": max(each.wall for each in host),
        "tasks": len(ready["record"].clients),
        "record_bytes": sum(path.stat().st_size for path in place.iterdir() if path.is_file()),
    }


def measure(sizes: list[int], methods: list[str], cohort: int, steps: int) -> dict[str, Any]:
    """Runs the benchmark; see the module."""
    facts = harness.machine()
    rows = []
    for size in sizes:
        for name in methods:
            child = ["--child", "--sizes", str(size), "--methods", name]
            child += ["--cohort", str(cohort), "--steps", str(steps)]
            rows.append(harness.in_child(_MODULE, child))
    return {"machine": facts, "cohort": cohort, "steps": steps, "rows": rows}


def report(results: dict[str, Any]) -> str:
    """The results as a table."""
    about_time = ("set-up s", "step ms", "programs ms", "evaluation ms", "record s")
    header = ("method", "clients", *about_time, "data MB", "peak", "B a client")

    def both(row: dict[str, Any], *names: str, scale: float = 1.0) -> str:
        wall, own = (
            scale * sum(row["seconds"][name][clock] for name in names)
            for clock in ("wall", "processors")
        )
        return f"{wall:.3g} ({own:.3g})"

    lines = [
        [
            row["method"],
            f"{row['clients']:,}",
            both(row, "from_arrays", "problem", "simulation"),
            *(both(row, name, scale=1e3) for name in ("step", "programs", "evaluation")),
            both(row, "record"),
            f"{row['data_bytes'] / 1e6:.1f}",
            f"{row['peak_bytes'] / row['data_bytes']:.2f}",
            f"{row['bytes_a_client']:.0f}",
        ]
        for row in results["rows"]
    ]
    about = f"cohort of {results['cohort']}, {results['steps']} steps timed"
    return "\n".join(
        [harness.describe(results["machine"]), about, "", harness.table(header, lines)]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="10000,100000,1000000", help="clients, comma-separated")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of these")
    parser.add_argument("--cohort", type=int, default=1000, help="clients of a round, or at work")
    parser.add_argument("--steps", type=int, default=20, help="rounds or merges to time")
    parser.add_argument("--json", help="also write the results here")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.sizes.split(",")]
    methods = arguments.methods.split(",")
    if arguments.child:
        print(json.dumps(one_run(sizes[0], methods[0], arguments.cohort, arguments.steps)))
        return
    results = measure(sizes, methods, arguments.cohort, arguments.steps)
    print(report(results))
    harness.write(arguments.json, results)


if __name__ == "__main__":
    main()
