"""Complete runs in one call."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Unpack, overload

from absl import logging
from tqdm import tqdm

from fedjax_het.common.errors import require
from fedjax_het.common.types import PyTree
from fedjax_het.common.writing import usable_path
from fedjax_het.contract.algorithm import Algorithm, Variables
from fedjax_het.engine.engine import Engine
from fedjax_het.problem import Problem
from fedjax_het.report.audit import AuditError, verify
from fedjax_het.report.records import RunRecord
from fedjax_het.runtime import processes
from fedjax_het.simulation.evaluation import Evaluator
from fedjax_het.simulation.options import RunKeywords, RunOptions
from fedjax_het.simulation.saved import save_model
from fedjax_het.simulation.simulation import Simulation


class Result(NamedTuple):
    """The result of a simulation, which `report.compare` accepts.

    Attributes:
      variables: final global model.
      state: final state of the algorithm.
      record: record of the run.
      faults: violations of the event log's invariants (`report.audit.verify`); empty if sound.
      problem: problem of the run.
      best: model of the best evaluation; None without `patience`.
    """

    variables: Variables
    state: PyTree
    record: RunRecord
    faults: list[str]
    problem: Problem
    best: Variables | None = None

    def save(self, path: str | Path) -> None:
        """Writes the final model as a safetensors file, which `load_model` reads.

        A run with a work directory leaves `model.safetensors` there by itself. The file of a model
        from `freeze` or `lora` has the complete parameters, with the adapters added.

        Args:
          path: path of the file; its directory must exist.

        Raises:
          InputError: if the file cannot be written.
        """
        save_model(path, self.problem, self.variables)


@overload
def simulate(
    algorithm: Algorithm,
    problem: Problem,
    *,
    seeds: None = None,
    audit: bool = True,
    config: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    evaluator: Evaluator | None = None,
    **options: Unpack[RunKeywords],
) -> Result: ...
@overload
def simulate(
    algorithm: Algorithm,
    problem: Problem,
    *,
    seeds: Sequence[int],
    audit: bool = True,
    config: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    evaluator: Evaluator | None = None,
    **options: Unpack[RunKeywords],
) -> list[Result]: ...
def simulate(
    algorithm: Algorithm,
    problem: Problem,
    *,
    seeds: Sequence[int] | None = None,
    audit: bool = True,
    config: Mapping[str, Any] | None = None,
    engine: Engine | None = None,
    evaluator: Evaluator | None = None,
    **options: Unpack[RunKeywords],
) -> Result | list[Result]:
    """Runs a federated method on a fleet, in virtual time.

    Args:
      algorithm: method to run, made for this problem.
      problem: model, data and fleet.
      seeds: seeds of several runs, which share their compiled programs; each run has its own
        directory `seed<n>` if there is a `workdir`. None runs once, with `seed`.
      audit: whether a violation of the event log's invariants raises an error; False only logs it.
      config: configuration to record; a resumed run must have the same one.
      engine: engine of an earlier run of this algorithm object, whose programs are used again.
      evaluator: evaluator of an earlier run on this problem, whose program is used again.
      **options: fields of `RunOptions`; `rounds` is required.

    Returns:
      The `Result`, or one for each of the seeds, in their order.

    Raises:
      InputError: for options that cannot be used, or a work directory of another configuration.
      AuditError: if the event log of a finished run is not sound; its records are complete.
    """
    shared: dict[str, Any] = {"config": config, "engine": engine, "evaluator": evaluator}
    if seeds is None:
        return _run(algorithm, problem, options, audit, shared)
    runs = _by_seed(options, seeds)
    first = RunOptions.parse(runs[0])
    shared["engine"] = engine or Engine(algorithm, first.resources(problem))
    shared["evaluator"] = evaluator or Evaluator(problem)
    return [_run(algorithm, problem, run, audit, shared) for run in runs]


def _by_seed(options: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """The options of the run with each seed."""
    require(
        len(seeds) > 0 and len(set(seeds)) == len(seeds),
        f"seeds = {list(seeds)}",
        "must be different whole numbers, at least one",
        "use seeds=(0, 1, 2)",
    )
    require(
        "seed" not in options,
        f"seed = {options.get('seed')} beside seeds = {list(seeds)}",
        "is one of several",
        "leave one of the two out",
    )
    workdir = options.get("workdir")
    root = None if workdir is None else usable_path(workdir, "workdir")
    runs = [
        {**options, "seed": seed, "workdir": None if root is None else root / f"seed{seed}"}
        for seed in seeds
    ]
    for run in runs:
        RunOptions.parse(run)
    return runs


def _run(
    algorithm: Algorithm,
    problem: Problem,
    options: Any,
    audit: bool,
    shared: Mapping[str, Any],
) -> Result:
    """Runs until the end, starting from the newest checkpoint if there is one."""
    with Simulation(algorithm, problem, **shared, **options) as run:
        with tqdm(
            total=run.options.rounds,
            initial=run.rounds_done,
            disable=None if processes.is_leader() else True,
            unit="round",
            desc=run.name,
        ) as bar:
            while not run.done:
                bar.update(run.advance())
        record = run.record
    faults = audited(record, audit)
    return Result(run.variables, run.state, record, faults, problem, run.best)


def audited(record: RunRecord, strict: bool = True) -> list[str]:
    """The violations of the event log's invariants, which are logged.

    Args:
      record: record of a finished run.
      strict: whether a violation raises an error.

    Raises:
      AuditError: if there are any, and `strict`.
    """
    faults = verify(record.clients, record.metrics, record.summary)
    for fault in faults:
        logging.error("event log: %s", fault)
    if faults and strict:
        raise AuditError(record.summary["name"], faults)
    return faults
