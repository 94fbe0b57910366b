"""The identity of a run: all values that decide its result and must agree when it resumes."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedjax_het.common.errors import require
from fedjax_het.common.jsonio import jsonable
from fedjax_het.contract.algorithm import Algorithm
from fedjax_het.problem import Problem
from fedjax_het.runtime import processes
from fedjax_het.simulation.options import FREE, RunOptions


def identify(
    algorithm: Algorithm,
    problem: Problem,
    options: RunOptions,
    config: Mapping[str, Any],
    initial: str | None = None,
) -> dict[str, Any]:
    """The identity of a run; it does not contain the options in `FREE`, e.g. the number of rounds.

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
        settings["data"] = {k: v for k, v in settings["data"].items() if k != "data_dir"}
    if "model" in settings:
        settings["model"] = {k: v for k, v in settings["model"].items() if k != "start"}
    origin = problem.model.origin
    digests = {"initial": initial, "constants": None if origin is None else origin.digest}
    several = {"processes": processes.count()} if processes.count() > 1 else {}
    return {
        **several,
        **{name: value for name, value in digests.items() if value is not None},
        "settings": settings,
        "run": {name: value for name, value in asdict(options).items() if name not in FREE},
        "algorithm": algorithm.name,
        "model": problem.model.name,
        "compute_dtype": problem.model.compute_dtype,
        "parameters": problem.cost.param_count,
        "data": problem.data.fingerprint(),
        "fleet": problem.fleet.describe(),
    }


def require_same(what: str, saved: Any, identity: Mapping[str, Any]) -> None:
    """Raises `InputError` unless a saved file holds this identity.

    Args:
      what: name of the saved file or directory in the message.
      saved: content of a `meta.json` or `config.json`.
      identity: identity of the run that resumes.
    """
    old = saved.get("identity") if isinstance(saved, dict) else None
    differing = differences(old, jsonable(identity), "" if isinstance(old, dict) else "identity")
    require(
        not differing,
        what,
        f"was made with another configuration ({differing})",
        "resume with the configuration it was made with, or use a new work directory",
    )


def differences(old: Any, new: Any, path: str = "") -> str:
    """The values in which two configurations differ, as `name: old -> new`, comma-separated."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            for key in sorted({*old, *new})
        ]
        return ", ".join(part for part in parts if part)
    return "" if old == new else f"{path}: {old!r} -> {new!r}"
