"""Selections as transformations of methods: who takes part, with any method and pace."""

from collections.abc import Callable, Mapping
from typing import Any

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options
from fedjax_het.transforms.compose import Transformation
from fedjax_het.transforms.select.fedcs import fedcs
from fedjax_het.transforms.select.oort import oort
from fedjax_het.transforms.select.simple import power_of_choice, uniform, weighted
from fedjax_het.transforms.select.tifl import tifl

__all__ = [
    "SELECTIONS",
    "build",
    "fedcs",
    "oort",
    "power_of_choice",
    "tifl",
    "uniform",
    "weighted",
]

# Factories of transformations by name.
SELECTIONS: dict[str, Callable[..., Transformation]] = {
    "fedcs": fedcs,
    "oort": oort,
    "power_of_choice": power_of_choice,
    "tifl": tifl,
    "uniform": uniform,
    "weighted": weighted,
}


def build(select: str | Mapping[str, Any] | Transformation) -> Transformation:
    """A selection from a configuration.

    Args:
      select: name of a selection; a mapping of its name and options, e.g. `{"name": "oort", "cut":
        0.7}`; or a transformation, which is returned.

    Raises:
      InputError: for unknown names and options.
    """
    if callable(select):
        return select
    options = {"name": select} if isinstance(select, str) else dict(select)
    name: Any = options.pop("name", None)
    require(
        isinstance(name, str),
        f"select without a name, {sorted(options)}",
        f"must have a name, one of {', '.join(SELECTIONS)}",
        "e.g. select = {'name': 'oort'}",
    )
    require_known(name, SELECTIONS, "select")
    check_options(options, f"option of select {name!r}", SELECTIONS[name])
    return SELECTIONS[name](**options)
