"""Checks of rows by columns find what a check of every value finds, and name its row."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_het.common.errors import InputError
from fedjax_het.report.kinds import check_rows, fits

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**63 - 1, 2**63, 1e300, 1e301, -1e301, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=2),
    st.just([]),
    st.just({}),
)


def is_of(value, kind):
    """The definition of the kinds, value by value."""
    number = type(value) in (int, float) and abs(value) <= 1e300
    return {
        "i": type(value) is int and 0 <= value < 2**63,
        "n": number and value >= 0,
        "r": number,
        "b": type(value) is bool,
        "t": type(value) is str,
        "l": type(value) is list,
        "d": type(value) is dict,
    }[kind]


@given(st.lists(VALUES, max_size=4), st.sampled_from("inrbtldwfgom"))
def test_a_column_fits_if_each_value_does(values, kind):
    plain = dict(zip("wfgom", "inrtd", strict=True)).get(kind)
    expected = all(
        is_of(value, plain or kind) or (plain is not None and value is None) for value in values
    )
    assert fits(values, kind) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([], r"^rows, line 3: must be a mapping, not list; restore"),
        ({"b": 1.0}, r"^rows, line 3: 'a': is missing; restore"),
        ({"a": -1}, r"^rows, line 3: a = -1 must be a whole number >= 0; restore"),
        ({"a": True}, r"^rows, line 3: a = True must be a whole number >= 0; restore"),
        ({"a": 1, "b": None}, r"^rows, line 3: b = None must be a number; restore"),
    ],
)
def test_the_first_row_that_does_not_fit_is_named(row, message):
    schema = {"a": "i", "b?": "r"}
    sound = [{"a": 1, "b": 0.5}, {"a": 2, "more": []}]
    check_rows(sound, schema, "rows")
    with pytest.raises(InputError, match=message):
        check_rows([*sound, row, {"a": None}], schema, "rows")
