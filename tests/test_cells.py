"""Cells of a study: each is run once, whatever comes between."""

import functools
import json

import pytest
from problems import nudge, scalar_problem

from benchmarks.cells import curve, run_cells
from fedjax_het.common.errors import InputError
from fedjax_het.simulation.simulate import simulate


def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path):
    ran, told = [], []

    def cell(name, fails=False):
        ran.append(name)
        if fails:
            raise RuntimeError("the power went")
        return {"name": name, "value": 0.1 + 0.2}

    with pytest.raises(RuntimeError, match="the power went"):
        run_cells({"a": lambda: cell("a"), "b": lambda: cell("b", fails=True)}, tmp_path / "cells")
    cells = {name: functools.partial(cell, name) for name in "abc"}
    found = run_cells(cells, tmp_path / "cells", lambda name, value: told.append(name))
    assert ran == ["a", "b", "b", "c"]
    assert told == ["b", "c"]
    assert list(found) == ["a", "b", "c"]
    assert found["c"] == {"name": "c", "value": 0.1 + 0.2}
    assert json.loads((tmp_path / "cells" / "a.json").read_text()) == found["a"]


def test_cells_of_one_file_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cells .* differ in more than punctuation"):
        run_cells({"a/b": dict, "a b": dict}, tmp_path)


def test_the_curve_of_a_run_has_its_evaluations_only():
    problem = scalar_problem((3, 4))
    record = simulate(nudge(problem), problem, rounds=4, eval_every=2).record
    columns = curve(record)
    assert columns["step"] == [0, 2, 4]
    assert columns["virtual_s"] == [record.metrics[step]["virtual_s"] for step in (0, 2, 4)]
    assert all(0 <= accuracy <= 1 for accuracy in columns["accuracy"])
