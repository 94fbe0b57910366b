"""`fedjax-het list`: the names that configurations may use, with a line on each."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from fedjax_het.cli.running import Command
from fedjax_het.common.errors import require_known

# Modules and names of the registries.
_REGISTRIES = {
    "datasets": ("data", "SOURCES"),
    "fleets": ("fleet", "FLEETS"),
    "methods": ("algorithms", "ALGORITHMS"),
    "models": ("models", "MODELS"),
    "objectives": ("objectives", "OBJECTIVES"),
    "partitions": ("data", "PARTITIONERS"),
}


def _list(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    (what,) = arguments
    require_known(what, _REGISTRIES, "list")
    room, name = _REGISTRIES[what]
    registry = getattr(importlib.import_module(f"fedjax_het.{room}"), name)
    print("\n".join(lines(registry)))


def lines(registry: Mapping[str, Callable[..., Any]]) -> list[str]:
    """The names of a registry in order, each with the first line of its factory's docstring."""
    width = max(map(len, registry))
    told = {name: (inspect.getdoc(registry[name]) or "").split("\n")[0] for name in registry}
    return [f"{name:{width}}  {told[name]}" for name in sorted(registry)]


listing = Command(
    "list",
    "Lists the names that configurations use, with a line on each.",
    [f"fedjax-het list {what}" for what in ("methods", *sorted(set(_REGISTRIES) - {"methods"}))],
    lambda flag_values: None,
    _list,
    ["|".join(_REGISTRIES)],
)
