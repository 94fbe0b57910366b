"""Values for the options of a configuration: by their types, and hostile ones, with hypothesis."""

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, Union, get_args, get_origin

from hypothesis import strategies as st

from benchmarks.faults import tiny
from fedjax_het import models, objectives
from fedjax_het.algorithms.registry import signatures
from fedjax_het.common.options import parameters
from fedjax_het.config import CompareOptions
from fedjax_het.data.load import load_federated
from fedjax_het.data.partition import PARTITIONERS
from fedjax_het.data.sources import SOURCES
from fedjax_het.fleet import presets
from fedjax_het.simulation.options import RunOptions
from fedjax_het.transforms.catalogue import TRANSFORMATIONS

# Values that a JSON file cannot hold, or not shortly, stand for themselves as `{"$": name, ...}`.
_SPECIAL: dict[str, Callable[..., Any]] = {
    "complex": lambda: 1j,
    "long text": lambda: "x" * 10_000,
    "nested": lambda depth: _nested(depth),
    "power": lambda base, exponent: base**exponent,
}
_WHOLE: tuple[Any, ...] = (
    *(0, -1, 1, 2, 2**31 - 1, 2**31, 2**32, 2**32 + 1, 2**63, -(2**63), 10**6, 10**12, 10**30),
    {"$": "power", "base": 10, "exponent": 400},
)
_REAL: tuple[Any, ...] = (
    *(0.0, -0.5, 0.5, 1.5, float("nan"), float("inf"), float("-inf")),
    *(1e308, -1e308, 1e-308, 1e-320, 1e15, 1e-15),
)
_HOSTILE: tuple[Any, ...] = (
    *_WHOLE,
    *_REAL,
    *("", "\ud800", "\x00", "../x", "[", "a\nb", True, False, None),
    *([], [None], [0], [-1], [[]], [0, [1]], ["a"], [None, 1], [1e308], [float("nan")], {}),
    *({"name": "x"}, {"a": None}, {"$": "complex"}, {"$": "long text"}),
    *({"$": "nested", "depth": 50}, {"$": "nested", "depth": 5000}),
)
_WORDS = (
    "sgd",
    "adam",
    "cosine",
    "loss",
    "accuracy",
    "macro_f1",
    "even",
    "crop_flip",
    "iid",
    "a.b",
)
_LABELS = ("", " ", "a/b", "..", "\ud800", "x" * 300, "A", "a", "<b>", "\x00")
# Options that follow from others or choose the factory, and are refused as such.
_DERIVED = (
    *("data.name", "model.name", "model.num_classes", "fleet.name", "fleet.num_clients"),
    "data.partition.num_clients",
)
# Parameters that no file gives, and places on the disk, which would be written to or read.
_GIVEN = ("problem", "input_shape", "partition", "workdir", "data_dir", "initial", "start")


def value_of(spec: Any) -> Any:
    """The value that a case's JSON stands for."""
    if isinstance(spec, dict) and "$" in spec:
        rest = {name: value for name, value in spec.items() if name != "$"}
        return _SPECIAL[spec["$"]](**rest)
    if isinstance(spec, dict):
        return {name: value_of(value) for name, value in spec.items()}
    return [value_of(each) for each in spec] if isinstance(spec, list) else spec


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@st.composite
def changes(draw: st.DrawFn, config: Mapping[str, Any], most: int = 3) -> list[list[Any]]:
    """One to `most` changed options of a configuration, as pairs of a path and a value."""
    known = options(config)
    count = draw(st.sampled_from([1, 1, 1, most]))
    chosen = st.sampled_from(sorted(known))
    paths = draw(st.lists(chosen, min_size=1, max_size=count, unique=True))
    return [[path, draw(values(known[path]))] for path in paths]


def options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The types of all options that a configuration can have, by path."""
    data, model = config["data"], config["model"]
    sections: dict[str, tuple[Callable[..., Any], ...]] = {
        "data": (load_federated, SOURCES[data["source"]]),
        "data.partition": (PARTITIONERS[data["partition"]["name"]],),
        "model": (models.build, models.MODELS[model["name"]]),
        "objective": (
            objectives.OBJECTIVES[config.get("objective", {}).get("name", "classification")],
        ),
        "fleet": (presets.build, presets.FLEETS[config["fleet"]["name"]]),
        "algorithm": signatures(config["algorithm"]["name"]),
        "run": (RunOptions,),
    }
    for place, each in enumerate(config["algorithm"].get("compose", ())):
        sections[f"algorithm.compose.{place}"] = (TRANSFORMATIONS[each["name"]],)
    if "compare" in config:
        sections["compare"] = (CompareOptions,)
    found: dict[str, Any] = {}
    for section, factories in sections.items():
        found |= _of(section, factories)
    return {path: hint for path, hint in found.items() if path not in _DERIVED}


def _of(section: str, factories: tuple[Callable[..., Any], ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in parameters(*factories).items():
        if name in _GIVEN:
            continue
        found[f"{section}.{name}"] = parameter.annotation
        group = next((k for k in _kinds(parameter.annotation) if _is_group(k)), None)
        if group is not None:
            found |= _of(f"{section}.{name}", (group,))
    return found


def _kinds(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_group(hint: Any) -> bool:
    return isinstance(hint, type) and is_dataclass(hint)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values for an annotated type; one in eight may be of any type."""
    fitting = st.one_of(*map(_typed, _kinds(hint)))
    return st.one_of(st.sampled_from(_HOSTILE), *[fitting] * 7)


def _typed(hint: Any) -> st.SearchStrategy[Any]:
    origin, inner = get_origin(hint), get_args(hint)
    if hint is float:
        ordinary = st.one_of(st.floats(0, 2), st.sampled_from([1e-3, 1.0, 10.0, 1e6]))
        return st.one_of(ordinary, st.floats(), st.sampled_from(_REAL), st.sampled_from(_WHOLE))
    if hint is int:
        return st.one_of(st.integers(1, 12), st.integers(), st.sampled_from(_WHOLE))
    if hint is bool:
        return st.booleans()
    if hint is str:
        return st.one_of(st.sampled_from(_WORDS), st.text(max_size=5))
    if hint is type(None):
        return st.none()
    if origin is Literal:
        return st.sampled_from(inner)
    if origin is tuple and Ellipsis not in inner:
        return st.tuples(*map(_typed, inner)).map(list)
    if origin in (Sequence, list, tuple):
        return st.lists(st.one_of(*map(_typed, _kinds(inner[0]))), max_size=6)
    if origin is dict:  # labels of a comparison and their methods
        labels = st.one_of(st.sampled_from(_LABELS), st.text(max_size=3))
        methods = st.sampled_from([{}, {"name": "fedpmt"}, {"name": "x"}, {"epochs": -1}])
        return st.dictionaries(labels, methods, max_size=2)
    if origin is Mapping or hint in (Mapping, dict):
        return _mapping()
    if _is_group(hint):
        known = {name: values(p.annotation) for name, p in parameters(hint).items()}
        return st.fixed_dictionaries({}, optional=known)
    # Functions and the like, which a file of options cannot hold.
    return st.sampled_from(_WORDS) if hint is not inspect.Parameter.empty else st.none()


def _mapping() -> st.SearchStrategy[Any]:
    """A transformation or an optimiser by name, with an option or none."""
    names = st.sampled_from([*sorted(tiny.TRANSFORMATIONS), "sgd", "adam", "uniform", "oort"])
    keys = st.sampled_from(["share", "rank", "targets", "learning_rate", "cut", "count", "d"])
    more = st.dictionaries(keys, st.sampled_from(_HOSTILE), max_size=1)
    return st.tuples(names, more).map(lambda both: {"name": both[0], **both[1]})
