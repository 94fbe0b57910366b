"""Options against the signatures of the factories that take them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fedjax_het.common.errors import InputError
from fedjax_het.common.numbers import Count, Unlimited
from fedjax_het.common.options import (
    check_options,
    check_types,
    checked,
    defaults,
    filled,
    grouped,
    parameters,
    real,
)


@dataclass
class Common:
    rate: float
    batch: int = 20


def factory(
    problem,
    *,
    number: float = 0.5,
    whole: int | None = None,
    flag: bool = False,
    text: str = "a",
    choice: Literal["red", "green"] = "red",
    numbers: Sequence[float] = (1.0,),
    pair: tuple[float, str] = (1.0, "x"),
    array: np.ndarray | None = None,
    rule: Sequence[float] | Callable[[int], float] | None = None,
    table: Mapping[str, Any] | None = None,
    place: str | Path | None = None,
    free=None,
    rounds: Count = 1,
    levels: Sequence[Count] | None = None,
    memory: Unlimited = np.inf,
    **rest: Any,
):
    return problem


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("number", 1),
        ("number", np.float32(0.25)),
        ("number", 1e-30),
        ("number", 0),
        ("number", 2**62),
        ("whole", 2**63 - 1),
        ("rounds", np.int64(2**31 - 1)),
        ("levels", [2**31 - 1]),
        ("memory", float("inf")),
        ("memory", 1e9),
        ("whole", None),
        ("whole", np.int64(3)),
        ("flag", np.True_),
        ("choice", "green"),
        ("numbers", [1, 2.5]),
        ("numbers", np.arange(3)),
        ("numbers", ()),
        ("pair", [1, "y"]),
        ("array", [0.5, 1.0]),
        ("array", np.zeros((2, 2))),
        ("rule", lambda round: 0.5),
        ("rule", (0.5,)),
        ("table", {"a": 1}),
        ("place", Path("x")),
        ("free", object()),
    ],
)
def test_values_of_the_annotated_type_pass(option, value):
    check_types({option: value}, "option", factory)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("number", "1", "'number' = '1': must be a number; e.g. number = 0.5"),
        ("number", True, "must be a number"),
        ("number", np.zeros(2), "must be a number"),
        ("number", float("inf"), "must be a finite number (0, or 1e-30 to 1e+30 in size)"),
        ("number", float("nan"), "must be a finite number"),
        ("number", np.float64(1e308), "must be a finite number"),
        ("number", 1e-320, "must be a finite number"),
        ("number", 10**20, "must be a finite number"),
        ("number", 1j, "must be a number;"),
        ("numbers", [1.0, float("nan")], "must be a list, each a finite number"),
        ("numbers", [1, [2]], "must be a list, each a number;"),
        ("numbers", [None, 1], "must be a list, each a number;"),
        ("memory", float("nan"), "must be inf or a finite number"),
        ("whole", 2**63, "'whole' = 9223372036854775808: must be a whole number that fits 64 bits"),
        ("rounds", 2**31, "at most 2147483647 (programs hold it in 32 bits); e.g. rounds = 1"),
        ("levels", [2**31], "must be a list, each a whole number of at most 2147483647"),
        ("whole", 2.0, "must be a whole number or None; correct whole"),
        ("flag", 1, "must be True or False"),
        ("text", 3, "must be text"),
        ("choice", "gren", "choice 'gren': must be one of green, red; did you mean 'green'?"),
        ("numbers", 1.0, "must be a list, each a number"),
        ("numbers", "12", "must be a list, each a number"),
        ("numbers", [1.0, "2"], "must be a list, each a number"),
        ("pair", [1.0], "must be a list"),
        ("array", 0.5, "must be a list or None"),
        ("rule", 0.5, "must be a list, each a number or a function or None"),
        ("table", [1], "must be a Mapping or None"),
        ("place", 5, "must be text or a Path or None"),
    ],
)
def test_values_of_another_type_are_named(option, value, message):
    with pytest.raises(InputError) as caught:
        check_types({option: value}, "option", factory)
    assert message in str(caught.value)


def test_a_number_that_python_refuses_to_write_is_named_by_its_size():
    for option in ("whole", "number", "rounds"):
        with pytest.raises(InputError, match=f"{option}' = <whole number of 16610 bits>: must be"):
            check_types({option: 10**5000}, "option", factory)


@checked
def direct(problem, rate: float = 1.0, *, text: str = "a", **rest: float):
    """A factory that users call."""
    return problem, rate, text, rest


def test_a_checked_factory_checks_its_numbers_on_every_call():
    assert direct(1, 2.0, text=3, more=1j) == (1, 2.0, 3, {"more": 1j})
    assert direct.__doc__ == "A factory that users call."
    for call in (lambda: direct(1, np.nan), lambda: direct(problem=1, rate=np.nan)):
        with pytest.raises(InputError, match="option of direct 'rate' = nan: must be a finite"):
            call()


def test_options_of_several_factories_are_known_together():
    given = {"rate": 0.1, "number": 1.0}
    check_options(given, "option", factory, Common, derived=("problem",))
    with pytest.raises(InputError, match="'rate' is missing: must be given, a number; add rate"):
        check_options({"number": 1.0}, "option", factory, Common, derived=("problem",))
    with pytest.raises(InputError, match=r"'bach': must be one of .*; did you mean 'batch'"):
        check_options({**given, "bach": 1}, "option", factory, Common, derived=("problem",))
    with pytest.raises(InputError, match=r"'problem': follows from .*; leave it out"):
        check_options({**given, "problem": 1}, "option", factory, Common, derived=("problem",))


def test_what_a_partial_fixes_is_no_option():
    red = functools.partial(factory, choice="red", number=2.0)
    assert {"choice", "number"}.isdisjoint(parameters(red))
    with pytest.raises(InputError, match="'choice': must be one of"):
        check_options({"choice": "green"}, "option", red, derived=("problem",))


def test_defaults_are_those_of_the_signature():
    assert defaults(Common) == {"batch": 20}
    assert defaults(functools.partial(factory, text="b"))["numbers"] == (1.0,)
    assert "problem" not in defaults(factory)
    assert "rest" not in defaults(factory)


def test_the_only_choice_of_none_is_to_leave_it_out():
    with pytest.raises(InputError, match="'x': there is none to choose from; leave it out"):
        check_options({"x": 1}, "option", lambda: None)


@dataclass(frozen=True)
class Links:
    rate: float = 10.0
    sizes: str = "bitmap"


def networked(*, links: Links | None = None, own: Links = Links(rate=3.0)) -> None:
    del links, own


def test_a_group_of_options_is_its_dataclass_or_a_mapping():
    check_options({"links": {"rate": 5}, "own": Links()}, "option", networked)
    made = grouped({"links": {"rate": 5}, "own": Links(2.0)}, networked)
    assert made == {"links": Links(5), "own": Links(2.0)}
    assert grouped({"links": None}, networked) == {"links": None}
    assert grouped({"own": {"sizes": "index"}}, networked) == {"own": Links(3.0, "index")}
    with pytest.raises(InputError, match=r"option 'links', its option 'rat'.*did you mean 'rate'"):
        check_options({"links": {"rat": 5}}, "option", networked)
    with pytest.raises(InputError, match=r"option 'links', its option 'rate' = 'fast': .*a number"):
        check_options({"links": {"rate": "fast"}}, "option", networked)
    with pytest.raises(InputError, match="option 'own' = 7"):
        check_options({"own": 7}, "option", networked)


def test_what_is_left_out_of_a_group_is_filled_in():
    assert defaults(networked) == {"links": None, "own": {"rate": 3.0, "sizes": "bitmap"}}
    assert filled({"links": {"sizes": "index"}, "own": {"sizes": "coo64"}}, networked) == {
        "links": {"rate": 10.0, "sizes": "index"},
        "own": {"rate": 3.0, "sizes": "coo64"},
    }


@pytest.mark.parametrize("hint", [float, float | None, Unlimited, Unlimited | None])
def test_whole_numbers_beyond_32_bits_are_reals_where_a_real_one_is_asked_for(hint):
    for value in (2**31, -(2**32) - 1, 10**18):
        assert real(value, hint) == value
        assert isinstance(real(value, hint), float)
    for value in (7, 2**31 - 1, 0.5, None, "x", True):
        assert real(value, hint) is value


@pytest.mark.parametrize("hint", [int, Count, int | None, int | float, Any, str])
def test_whole_numbers_stay_whole_where_one_is_asked_for(hint):
    assert isinstance(real(2**40, hint), int)


def test_factories_are_given_reals():
    @checked
    def made(number: float = 0.5, whole: int = 0):
        return number, whole

    assert [type(value) for value in made(2**40, 2**40)] == [float, int]
    assert [type(value) for value in made(number=2**40, whole=2**40)] == [float, int]
    found = grouped({"number": 2**40, "whole": 2**40}, factory)
    assert [type(value) for value in found.values()] == [float, int]
