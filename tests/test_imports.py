"""What importing the library loads, and what it leaves for later."""

import json
import subprocess
import sys

import pytest

import fedjax_het as fh

# Each takes as long as a third of the rest; only some runs need them.
LATER = ("matplotlib", "orbax", "pandas", "scipy.optimize", "scipy.sparse", "sklearn", "tensorflow")


def loaded(program):
    program += "; import json, sys; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("program", "computes"),
    [
        ("import fedjax_het as fh; [getattr(fh, name) for name in fh.__all__]", True),
        ("from fedjax_het.models import mlp", True),
        ("import fedjax_het.report", False),
    ],
)
def test_the_library_leaves_heavy_packages_for_later(program, computes):
    modules = set(loaded(program))
    assert ("jax" in modules) == computes
    assert sorted(modules & set(LATER)) == []


def test_the_command_line_leaves_everything_for_later():
    modules = set(loaded("import fedjax_het.cli, launch.train; assert 'fleet' in dir(fedjax_het)"))
    assert sorted(modules & {"jax", "flax", "scipy", *LATER}) == []


def test_what_comes_later_is_there_when_it_is_asked_for():
    modules = loaded(
        "import fedjax_het.report.comparison, fedjax_het as fh; "
        "assert callable(fh.report.compare) and callable(fh.report.write_report)"
    )
    assert "matplotlib" in modules
    assert set(fh.report.__all__) <= {*dir(fh.report), "compare", "write_report", "Comparison"}
    with pytest.raises(AttributeError, match="module 'fedjax_het' has no attribute 'nothing'"):
        fh.nothing  # noqa: B018
    with pytest.raises(AttributeError, match=r"fedjax_het\.report.* 'nothing'"):
        fh.report.nothing  # noqa: B018
