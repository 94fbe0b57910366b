"""Messages that a person reads."""

import pytest

from fedjax_het.common.errors import InputError, require


def test_a_message_is_one_line():
    assert str(InputError("x = [[1]\n  [2]]: must be flat; ravel it")) == (
        "x = [[1] [2]]: must be flat; ravel it"
    )


def test_a_value_without_end_leaves_limit_and_remedy_in_the_message():
    with pytest.raises(InputError) as error:
        require(False, f"name = {'x' * 10_000!r}", "must be short", "shorten it")
    message = str(error.value)
    assert len(message) == 1505
    assert message.startswith("name = 'xxx")
    assert message.endswith("xxx': must be short; shorten it")
    long = "y" * 1505
    assert str(InputError(long)) == long
