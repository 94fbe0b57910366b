"""The pages of the reference: one for each public room, generated from its `__all__`.

What several rooms export is described once, in the innermost of them, and the others link to it.
"""

import contextlib
import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, get_args, get_type_hints

ROOMS = (
    "fedjax_het",
    "fedjax_het.algorithms",
    "fedjax_het.contract",
    "fedjax_het.data",
    "fedjax_het.export",
    "fedjax_het.fleet",
    "fedjax_het.local",
    "fedjax_het.models",
    "fedjax_het.objectives",
    "fedjax_het.report",
    "fedjax_het.simulation",
    "fedjax_het.sweeps",
    "fedjax_het.transforms",
    "fedjax_het.transforms.attack",
    "fedjax_het.transforms.compress",
    "fedjax_het.transforms.pace",
    "fedjax_het.transforms.privacy",
    "fedjax_het.transforms.robust",
    "fedjax_het.transforms.select",
    "fedjax_het.transforms.server",
)


def write(folder: Path) -> None:
    """Writes the pages; one that would not change is left alone, so that it is not built again."""
    folder.mkdir(exist_ok=True)
    homes = _homes()
    modules = {home for home in homes.values() if home not in ROOMS and _is_module(home)}
    pages = {room: _room(room, homes) for room in ROOMS}
    pages |= {name: _module(name) for name in modules}
    for name, text in pages.items():
        page = folder / f"{name}.rst"
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
    for page in folder.glob("*.rst"):
        if page.stem not in pages:
            page.unlink()


def skip(app: Any, kind: str, name: str, member: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out the fields of a class, which its docstring describes."""
    described = inspect.isroutine(member) or isinstance(member, (property, cached_property))
    return True if kind == "class" and not described else None


def short_types(app: Any, thing: Any, bound: bool) -> None:
    """Leaves the ranges of numbers out of signatures: `Annotated[int, Range(...)]` is `int`."""
    with contextlib.suppress(NameError, AttributeError, TypeError):
        thing.__annotations__ = get_type_hints(thing)


def short_defaults(
    app: Any, what: str, name: str, thing: Any, options: Any, signature: str, returned: str
) -> tuple[str | None, str]:
    """Leaves out defaults that have no text in Python: `<Always object at 0x...>` is `...`."""
    return signature and re.sub(r"<[^<>]+>", "...", signature), returned


def escape(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes reStructuredText of a docstring.

    Single backticks are code, lone stars are stars, and what stands between dollars is a formula.
    What follows a line that ends with `::` stays as it is.
    """
    parts, literal, margin = [""], False, 0
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if literal and line.strip() and indent <= margin:
            literal = False
            parts.append("")
        parts[-1] += line + "\n"
        if not literal and line.endswith("::"):
            literal, margin = True, indent
            parts.append("")
    # Text and literal blocks alternate.
    parts[::2] = [_MARKS.sub(_escaped, text) for text in parts[::2]]
    lines[:] = "".join(parts).split("\n")


_MARKS = re.compile(
    r"`(?P<code>[^`]+)`"
    r"|\$\$(?P<display>[^$]+)\$\$"  # a paragraph of its own
    r"|\$(?P<formula>[^$]+)\$"
    r"|(?P<emphasis>(?<!\S)\*[^\s*][^*]*\*(?!\w))"
    r"|(?<=\S)[*|]|[*|](?=\S)|_(?!\w)|\\"
)


def _escaped(found: re.Match[str]) -> str:
    if found["emphasis"]:
        return found.group()
    if found["display"]:
        return f".. math:: {' '.join(found['display'].split())}"
    if found["formula"]:
        marked = f":math:`{found['formula']}`"
    elif found["code"]:
        marked = f"``{found['code']}``"
    else:
        return "\\" + found.group()
    # Marks end where a space does; one that is escaped is not seen.
    before, after = found.string[: found.start()][-1:], found.string[found.end() :][:1]
    return ("\\ " if before.strip() else "") + marked + ("\\ " if after.strip() else "")


def _homes() -> dict[str, str]:
    """The place where each public name is described, by the full name under which it is used."""
    found: dict[Any, str] = {}
    homes = {}
    # Inner rooms first.
    for room in sorted(ROOMS, key=lambda name: -name.count(".")):
        for name in importlib.import_module(room).__all__:
            thing = _get(room, name)
            if inspect.ismodule(thing):
                homes[f"{room}.{name}"] = thing.__name__
            elif inspect.isclass(thing) or inspect.isroutine(thing):
                homes[f"{room}.{name}"] = found.setdefault(thing, f"{room}.{name}")
            else:
                homes[f"{room}.{name}"] = found.setdefault(id(thing), f"{room}.{name}")
    return homes


def _get(room: str, name: str) -> Any:
    return getattr(importlib.import_module(room), name)


def _is_module(name: str) -> bool:
    room, _, last = name.rpartition(".")
    return inspect.ismodule(_get(room, last))


def _room(room: str, homes: Mapping[str, str]) -> str:
    names = sorted(
        (name for name in importlib.import_module(room).__all__ if name != "__version__"),
        key=str.lower,
    )
    full = {name: f"{room}.{name}" for name in names}
    parts = [_title(room), f".. automodule:: {room}\n   :no-members:", f".. currentmodule:: {room}"]
    kinds: dict[str, list[str]] = {"Modules": [], "Classes": [], "Functions": [], "Values": []}
    for name in names:
        thing = _get(room, name)
        if inspect.ismodule(thing):
            kinds["Modules"].append(name)
        elif inspect.isclass(thing):
            kinds["Classes"].append(name)
        else:
            kinds["Functions" if inspect.isroutine(thing) else "Values"].append(name)
    for kind, members in kinds.items():
        if members and kind != "Values":
            parts.append(f".. rubric:: {kind}")
            lines = "\n".join(
                f"   ~{homes[full[name]].removeprefix(room + '.')}" for name in members
            )
            parts.append(f".. autosummary::\n   :nosignatures:\n\n{lines}")
    for kind, directive in (("Classes", "autoclass"), ("Functions", "autofunction")):
        parts += [
            f".. {directive}:: {full[name]}" + ("\n   :members:" if kind == "Classes" else "")
            for name in kinds[kind]
            if homes[full[name]] == full[name]
        ]
    values = [name for name in kinds["Values"] if homes[full[name]] == full[name]]
    parts += [_value(room, name) for name in values]
    groups = _groups(room, kinds["Functions"]) if room == "fedjax_het.algorithms" else []
    if groups:
        parts.append(".. rubric:: Groups of options")
        parts += [f".. autoclass:: {group}" for group in groups]
    return "\n\n".join(parts) + "\n"


def _value(room: str, name: str) -> str:
    """A registry, with the names in it."""
    value = _get(room, name)
    told = ", ".join(f"``{key}``" for key in sorted(map(str, value)))
    return f".. py:data:: {room}.{name}\n\n   {told}"


def _groups(room: str, functions: Sequence[str]) -> list[str]:
    """Dataclasses of the room's own that its functions take as options."""
    found = set()
    for name in functions:
        for hint in inspect.signature(_get(room, name)).parameters.values():
            found |= {
                f"{kind.__module__}.{kind.__qualname__}"
                for kind in [hint.annotation, *get_args(hint.annotation)]
                if inspect.isclass(kind)
                and dataclasses.is_dataclass(kind)
                and kind.__module__.startswith(f"{room}.")
            }
    return sorted(found, key=lambda name: name.rpartition(".")[2])


def _module(name: str) -> str:
    return "\n\n".join([_title(name), f".. automodule:: {name}\n   :members:"]) + "\n"


def _title(name: str) -> str:
    return f"{name}\n{'=' * len(name)}"
