"""Transformations from a configuration, by name."""

from collections.abc import Callable, Mapping
from typing import Any

from fedjax_het.common.errors import require, require_known
from fedjax_het.common.options import check_options
from fedjax_het.transforms.compose import Transformation

# A name; a mapping of the name and options; or a transformation.
Choice = str | Mapping[str, Any] | Transformation


def named(
    choice: Choice, factories: Mapping[str, Callable[..., Transformation]], what: str
) -> Transformation:
    """A transformation from a configuration.

    Args:
      choice: name of a factory; a mapping of its name and options, e.g. `{"name": "oort", "cut":
        0.7}`; or a transformation, which is returned.
      factories: factories by name.
      what: name of the option in errors.

    Raises:
      InputError: for unknown names and options.
    """
    if callable(choice):
        return choice
    options = {"name": choice} if isinstance(choice, str) else dict(choice)
    name: Any = options.pop("name", None)
    require(
        isinstance(name, str),
        f"{what} without a name, {sorted(options)}",
        f"must have a name, one of {', '.join(factories)}",
        f"add it, e.g. 'name': {next(iter(factories))!r}",
    )
    require_known(name, factories, what)
    check_options(options, f"option of {what} {name!r}", factories[name])
    return factories[name](**options)
