"""What decides the result of a run, and therefore must agree when it is resumed."""

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
    algorithm: Algorithm, problem: Problem, options: RunOptions, config: Mapping[str, Any]
) -> dict[str, Any]:
    """What a resumed run must share with its checkpoint: all but how long to go on.

    Args:
      algorithm: the method.
      problem: model, data and fleet.
      options: how the simulation runs.
      config: the resolved configuration, or nothing.
    """
    settings = {name: part for name, part in config.items() if name != "run"}
    if "data" in settings:
        # Where the files lie does not matter; what is in them is the fingerprint's business.
        settings["data"] = {k: v for k, v in settings["data"].items() if k != "data_dir"}
    several = {"processes": processes.count()} if processes.count() > 1 else {}
    return {
        **several,
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
    """Raises `InputError` unless what was saved carries this identity.

    Args:
      what: how to call it in the message.
      saved: content of a `meta.json` or `config.json`.
      identity: what decides the result of the run that wants to go on.
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
    """The settings in which two configurations differ, as `name: old -> new`, comma-separated."""
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [
            differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
            for key in sorted({*old, *new})
        ]
        return ", ".join(part for part in parts if part)
    return "" if old == new else f"{path}: {old!r} -> {new!r}"
