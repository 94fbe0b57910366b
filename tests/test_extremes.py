"""Extreme numbers for every option of everything that a name builds: refused, or built."""

import contextlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest

from fedjax_het import algorithms, fleet, models, objectives
from fedjax_het.algorithms import registry
from fedjax_het.common.errors import InputError
from fedjax_het.common.options import check_types, parameters
from fedjax_het.data.load import load_federated
from fedjax_het.data.partition import PARTITIONERS, partitioner
from fedjax_het.data.sources import SOURCES
from fedjax_het.fleet.presets import FLEETS
from fedjax_het.simulation.options import RunOptions
from fedjax_het.transforms.catalogue import TRANSFORMATIONS
from fedjax_het.transforms.named import named

# Numbers that no option takes, whatever it means.
IMPOSSIBLE = (2**63, -(2**63) - 1, 10**30, 10**400, 10**5000, float("nan"), 1e308, -1e308, 1e-320)
IMPOSSIBLE = (*IMPOSSIBLE, 1j, [None], [[1]], [float("nan")], [10**400])
# Values that mean something for some options only.
UNUSUAL = (0, -1, 2**31, 2**32 + 1, 2**31 - 1, 10**12, 1e30, 1e-30, float("inf"), "", [], None)
UNUSUAL = (*UNUSUAL, True, {}, [0, [1]])

FACTORIES: dict[str, tuple[Callable[..., Any], ...]] = {
    **{f"method {n}": registry.signatures(n) for n in algorithms.ALGORITHMS},
    **{f"model {n}": (f, models.build) for n, f in models.MODELS.items()},
    **{f"objective {n}": (f,) for n, f in objectives.OBJECTIVES.items()},
    **{f"fleet {n}": (f, fleet.build) for n, f in FLEETS.items()},
    **{f"partition {n}": (f,) for n, f in PARTITIONERS.items()},
    **{f"source {n}": (f, load_federated) for n, f in SOURCES.items()},
    **{f"transformation {n}": (f,) for n, f in TRANSFORMATIONS.items()},
    "run": (RunOptions,),
}


def numeric(hint: Any) -> bool:
    """Whether an annotation is of numbers, or of lists of them."""
    if get_origin(hint) is Annotated:
        return True
    return hint in (int, float) or any(map(numeric, get_args(hint)))


def groups(hint: Any) -> list[type]:
    kinds = [hint, *get_args(hint)]
    return [k for k in kinds if isinstance(k, type) and hasattr(k, "__dataclass_fields__")]


def every_number(*factories: Callable[..., Any]) -> list[tuple[str, type | None]]:
    """Numeric options, and those inside of groups with the class of the group."""
    found: list[tuple[str, type | None]] = []
    for name, each in parameters(*factories).items():
        if name == "problem":
            continue
        if numeric(each.annotation):
            found.append((name, None))
        for group in groups(each.annotation):
            inner = parameters(group).items()
            found += [(n, group) for n, p in inner if numeric(p.annotation)]
    return found


@pytest.mark.parametrize("of", FACTORIES)
def test_no_option_takes_an_impossible_number(of):
    for name, group in every_number(*FACTORIES[of]):
        factories = FACTORIES[of] if group is None else (group,)
        for value in IMPOSSIBLE:
            with pytest.raises(InputError) as caught:
                check_types({name: value}, "option", *factories)
            assert "\n" not in str(caught.value)


NEEDED = {"deviation": 1.0, "factor": 2.0, "levels": 4, "share": 0.4, "bits": 4, "count": 1, "d": 4}
NEEDED |= {"deadline_s": 1.0, "interval_s": 1.0, "noise": 1.0, "clip": 1.0, "attackers": 1}
NEEDED |= {"limit": 1.0, "choice": "sgd", "learning_rate": 0.1, "alpha": 1.0, "sigma": 1.0}
NEEDED |= {"labels_per_client": 2, "num_clients": 4, "rounds": 1}
NEEDED |= {"path": str(Path(__file__).parent / "fleet" / "files" / "devices.csv")}


def built(options: Mapping[str, Any], make: Callable[..., Any]) -> None:
    """Builds something, or is told why not."""
    with warnings.catch_warnings(), contextlib.suppress(InputError):
        warnings.simplefilter("ignore", RuntimeWarning)  # overflow that is refused afterwards
        make(**options)


def made_by(of: str) -> Callable[..., Any]:
    kind, _, name = of.partition(" ")
    makers: dict[str, Callable[..., Any]] = {
        "objective": lambda **o: objectives.build(name, **o),
        "fleet": lambda **o: fleet.build(name, **{"num_clients": 8, **o}).describe(),
        "partition": lambda **o: partitioner(name, **o),
        "transformation": lambda **o: named({"name": name, **o}, TRANSFORMATIONS, "step"),
        "run": RunOptions,
    }
    return makers[kind]


QUICK = [n for n in FACTORIES if n.split()[0] not in ("method", "model", "source")]


@pytest.mark.parametrize("of", QUICK)
def test_unusual_values_are_refused_or_built(of):
    factories = FACTORIES[of]
    known = {n: p for n, p in parameters(*factories).items() if n != "name" or of == "run"}
    required = {n for n, p in known.items() if p.default is inspect.Parameter.empty}
    for name in known:
        needed = {n: NEEDED[n] for n in required}
        for value in UNUSUAL:
            built({**needed, name: value}, made_by(of))
            if of.startswith("transformation"):
                built({**needed, name: value}, TRANSFORMATIONS[of.split()[1]])
