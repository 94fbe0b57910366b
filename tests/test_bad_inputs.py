"""Malformed inputs: each is named, with its limit and a remedy, before anything is compiled."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from malformed import (
    attacks,
    configs,
    devices,
    files,
    fleets,
    methods,
    objectives,
    optimizers,
    own_files,
    places,
    ranges,
    samples,
    selections,
    starts,
)

from fedjax_het.common.errors import InputError

GROUPS = (
    attacks,
    configs,
    samples,
    devices,
    files,
    fleets,
    methods,
    objectives,
    optimizers,
    own_files,
    places,
    ranges,
    selections,
    starts,
)
TABLE = {
    f"{group.__name__.rpartition('.')[2]}: {expected}": (call, expected)
    for group in GROUPS
    for call, expected in group.CASES
}


@pytest.fixture(scope="module")
def compiled() -> Iterator[SimpleNamespace]:
    """Counts the programs that are handed to the backend."""
    counter = SimpleNamespace(programs=0)

    def listen(event: str, duration_secs: float, **details: Any) -> None:
        del duration_secs, details
        if event == "/jax/core/compile/backend_compile_duration":
            counter.programs += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counter
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.parametrize("name", TABLE)
def test_bad_input_is_named_before_anything_is_compiled(name, tmp_path, compiled, monkeypatch):
    monkeypatch.delenv("FEDJAX_HET_DATA", raising=False)
    call, expected = TABLE[name]
    before = compiled.programs
    with pytest.raises(InputError) as caught:
        call(tmp_path)
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]+: [^\n]+; [^\n]+", message), message
    head, _, tail = message.rpartition("; ")
    value, limit, remedy = expected.split(" | ")
    assert value in head, message
    assert limit in head, message
    assert remedy in tail, message
    assert compiled.programs == before


def test_compilations_are_counted(compiled):
    before = compiled.programs
    jax.jit(lambda x: x * 3.25 + 0.125)(np.float32(1.0))
    assert compiled.programs == before + 1


def test_the_table_is_long():
    assert len(TABLE) >= 80
    assert len(TABLE) == sum(len(group.CASES) for group in GROUPS)
