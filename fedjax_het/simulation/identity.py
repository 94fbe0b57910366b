"""The identity of a run: all values that decide its result and must agree when it resumes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import jsonable
from fedjax_het.common.numbers import shown
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.contract.plan import Schedule
from fedjax_het.contract.selection import Selector
from fedjax_het.data.batches import Batch
from fedjax_het.data.sources import PLACES
from fedjax_het.fleet.files import without_paths
from fedjax_het.models.structure import structure
from fedjax_het.problem import Problem
from fedjax_het.runtime import processes
from fedjax_het.simulation.options import EVALUATION, FREE, MACHINE, RunOptions

# Parts of the identity that a resumed run may change, with a warning where this changes results.
CHANGEABLE = ("machine", "evaluation")
# Differences that a message names, and characters of a name or a text.
_NAMED, _NAME = 8, 100


def identify(
    algorithm: Algorithm,
    problem: Problem,
    options: RunOptions,
    config: Mapping[str, Any],
    initial: str | None = None,
) -> dict[str, Any]:
    """The identity of a run; it does not contain the options in `FREE`, e.g. the number of rounds.

    Its parts `CHANGEABLE` are recorded, but need not agree when the run resumes.

    Args:
      algorithm: method to run.
      problem: model, data and fleet.
      options: options of the run.
      config: resolved configuration; may be empty.
      initial: digest of the model at the start, or None if it is drawn.
    """
    settings = {name: part for name, part in config.items() if name != "run"}
    if "data" in settings:
        # Where files are does not matter; the fingerprint and the digests cover their content.
        settings["data"] = {k: v for k, v in settings["data"].items() if k not in PLACES}
    if "fleet" in settings:
        # The fleet's description has a digest of its files.
        settings["fleet"] = without_paths(settings["fleet"])
    if "model" in settings:
        settings["model"] = {k: v for k, v in settings["model"].items() if k != "start"}
    origin = problem.model.origin
    digests = {"initial": initial, "constants": None if origin is None else origin.digest}
    several = {"processes": processes.count()} if processes.count() > 1 else {}
    # Tracing a deep network takes a second, and only a run with a directory can resume.
    network = None if options.workdir is None else structure(problem.model)
    objective = None if options.workdir is None else _objective(problem)
    run = {name: value for name, value in asdict(options).items() if name not in FREE}
    return {
        **several,
        **{name: value for name, value in digests.items() if value is not None},
        "settings": settings,
        "run": {name: value for name, value in run.items() if name not in (*MACHINE, *EVALUATION)},
        "machine": {name: run[name] for name in MACHINE},
        "evaluation": {name: run[name] for name in EVALUATION},
        "algorithm": algorithm.name,
        "options": algorithm.options,
        "model": problem.model.name,
        "network": network,
        "objective": objective,
        "compute_dtype": problem.model.compute_dtype,
        "parameters": problem.cost.param_count,
        "data": problem.data.fingerprint(),
        "fleet": problem.fleet.describe(),
    }


def _objective(problem: Problem) -> dict[str, Any]:
    model, y = problem.model, problem.data.y
    shape: Any = jax.ShapeDtypeStruct
    outputs = shape(model.activation_shapes(1)[-1].shape, jnp.float32)
    batch = Batch(
        x=model.input_shapes(1),
        y=shape((1, *y.shape[1:]), y.dtype),
        weight=shape((1,), jnp.float32),
        sample=shape((1,), jnp.int32),
    )
    return problem.objective.described(outputs, batch)


def require_same(what: str, saved: Any, identity: Mapping[str, Any]) -> None:
    """Raises `InputError` unless a saved file holds this identity, apart from `CHANGEABLE` parts.

    A file of an earlier version, without options and network, is refused as well, because nobody
    can know whether it holds this run.

    Args:
      what: name of the saved file or directory in the message.
      saved: content of a `meta.json` or `config.json`.
      identity: identity of the run that resumes.
    """
    old: Any = saved.get("identity") if isinstance(saved, dict) else None
    found = jsonable({k: v for k, v in identity.items() if k not in CHANGEABLE})
    missing = []
    if isinstance(old, dict):
        missing = [name for name in ("options", "network") if name not in old]
        if missing:
            # Other parts may differ too, which says more.
            known = ("algorithm", "model", "parameters", "data", "fleet")
            found = {name: found[name] for name in known if name in old}
        old = {name: value for name, value in old.items() if name in found or not missing}
        old = {name: value for name, value in old.items() if name not in CHANGEABLE}
    differing = differences(old, found, "" if isinstance(old, dict) else "identity")
    require(
        not differing,
        what,
        f"was made with another configuration ({differing})",
        "resume with the configuration it was made with, or use a new work directory",
    )
    require(
        not missing,
        what,
        f"does not say with which {' and '.join(missing)} it was made, as an earlier version wrote "
        "it",
        "finish the run with that version, or use a new work directory",
    )


def warn_of_changes(algorithm: Algorithm, saved: Any, identity: Mapping[str, Any]) -> None:
    """Logs a warning if a run continues on another kind of machine, or is evaluated otherwise.

    Args:
      algorithm: method of the run.
      saved: content of a `meta.json`.
      identity: identity of the run that resumes.
    """
    changed = {
        part: differences(saved["identity"][part], jsonable(identity[part])) for part in CHANGEABLE
    }
    if changed["machine"]:
        logging.warning(
            "the run continues with %s: sums are added in another order, so the results may differ "
            "from those of an uninterrupted run in their last bits",
            changed["machine"],
        )
    # A schedule of plans knows no accuracy.
    scored = isinstance(algorithm.select, Selector) and algorithm.select.scored
    if changed["evaluation"] and (scored or not isinstance(algorithm.plan, Schedule)):
        logging.warning(
            "the run continues with %s: plans of %s may depend on the accuracies of evaluations, "
            "so the results may differ from those of an uninterrupted run",
            changed["evaluation"],
            algorithm.name,
        )


def differences(old: Any, new: Any, path: str = "") -> str:
    """The first values in which two configurations differ, as `name: old -> new`, in short."""
    found = list(_differences(old, new, path))
    more = [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
    return ", ".join([*found[:_NAMED], *more])


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield f"{path[:_NAME]}: {shown(old, _NAME)} -> {shown(new, _NAME)}"
