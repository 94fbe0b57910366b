"""The rules for a configuration that was run, and for one that was refused."""

import contextlib
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from benchmarks.faults.campaign import Verdict, failure, kind_of, short
from fedjax_het import experiment
from fedjax_het.common.errors import InputError
from fedjax_het.common.jsonio import jsonable
from fedjax_het.engine.sampling import Sampler
from fedjax_het.report.records import RunRecord
from fedjax_het.simulation.simulate import Result
from fedjax_het.simulation.simulation import Simulation

_LATEST_S = 1e15
_PRICED_WITHIN = 1e4
# Longest refusal that a person would read, in characters.
_LONGEST = 2000
_MAPPED = 20_000


class TooMuchError(Exception):
    """The case asks for more local steps than a campaign can wait for."""


def verdict(config: dict[str, Any], workdir: bool, built: bool, rounds: int, steps: int) -> Verdict:
    """Runs a configuration in this process and judges what comes of it.

    Args:
      config: the configuration; one with a section `compare` is run as a comparison.
      workdir: whether the run has a work directory and a page.
      built: whether the problem is only built, because its network takes long to compile.
      rounds: largest number of rounds to run.
      steps: largest number of local steps of a task.
    """
    try:
        with _bounded(rounds, steps), tempfile.TemporaryDirectory(prefix="faults-") as place:
            if built:
                experiment.build_problem(experiment.plain(config))
                return Verdict("built")
            if "compare" in config:
                experiment.compare([config], place)
                experiment.report(place)
                return Verdict("compared")
            result = experiment.train(config, place if workdir else None, announce=_announced)
            if workdir:
                RunRecord.load(place)
                experiment.report(place)
            broken = broken_rule(result)
            return failure(f"rule: {broken[0]}", broken[1]) if broken else Verdict("ran")
    except InputError as error:
        return refused(str(error))
    except TooMuchError:
        return Verdict("asks for too many steps")
    except Exception as error:
        return failure(kind_of(error), repr(error))
    finally:
        release()


def refused(message: str) -> Verdict:
    """The verdict on the message of an `InputError`."""
    if len(message) > _LONGEST:
        return failure("refused in a line that nobody reads", message)
    if not re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", message):
        return failure("refused without value, limit and remedy in one line", message)
    return Verdict("refused", detail=short(message))


def _announced(settings: dict[str, Any]) -> None:
    json.dumps(jsonable(settings), allow_nan=False).encode()


def broken_rule(result: Result) -> tuple[str, str] | None:
    """The rule that a run breaks, and by what; None if it is sound."""
    record = result.record
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(result.variables)]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        return "the model is not finite", ""
    previous = 0.0
    for row in record.metrics:
        if not previous <= row["virtual_s"] < _LATEST_S:
            return "the clock", f"{previous} s, then {row['virtual_s']} s"
        previous = row["virtual_s"]
        score = row.get(record.metric.name)
        if record.metric.share and score is not None and not 0 <= score <= 1:
            return "a share beyond [0, 1]", f"{record.metric.name} = {score}"
    if record.clients and not previous > 0:
        return "the clock", "stands still"
    full = float(result.problem.cost.step_flops())
    for row in record.clients:
        if row["status"] != "merged":
            continue
        if not row["samples"] > 0 or not row["steps"] > 0:
            return "a merged task trained nothing", _told(row)
        price = row["flops"] / row["samples"] / full
        if not 1 / _PRICED_WITHIN < price < _PRICED_WITHIN:
            return "a merged task is charged for other work", _told(row)
    numbers = [record.summary[name] for name in ("virtual_s", "flops", "bytes_up", "bytes_down")]
    if not all(math.isfinite(number) for number in numbers):
        return "totals that are not finite", str(numbers)
    return None


def _told(row: dict[str, Any]) -> str:
    return f"{row['samples']} samples, {row['steps']} steps, {row['flops']} FLOPs"


@contextlib.contextmanager
def _bounded(rounds: int, steps: int) -> Iterator[None]:
    """Runs end after some rounds, and before tasks that a campaign cannot wait for."""
    done, dispatch = Simulation.done, Sampler.dispatch

    def over(self: Simulation) -> bool:
        return self.rounds_done >= rounds or bool(done.fget(self))  # type: ignore[attr-defined]

    def bounded(self: Sampler, plan: Any, *rest: Any, **more: Any) -> Any:
        if plan.steps.size and int(plan.steps.max()) > steps:
            raise TooMuchError
        return dispatch(self, plan, *rest, **more)

    with (
        mock.patch.object(Simulation, "done", property(over)),
        mock.patch.object(Sampler, "dispatch", bounded),
    ):
        yield


def release() -> None:
    """Lets programs go before there are more than a process may map."""
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > _MAPPED:
        jax.clear_caches()
