"""The package keeps the shape that `pyproject.toml` and `docs/architecture.md` say it has."""

import os
import re
import runpy
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "fedjax_het"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What each contract of `lint-imports` refuses: its title, a file, and the import planted in it.
FORBIDDEN = {
    "a room imports one above it": (
        "Imports point down",
        "common/errors.py",
        "fedjax_het.contract",
    ),
    "the runtime imports federated learning": (
        "Imports point down",
        "runtime/processes.py",
        "fedjax_het.models",
    ),
    "a method imports the engine": (
        "Imports point down",
        "algorithms/fedavg.py",
        "fedjax_het.engine",
    ),
    "a method imports the simulation": (
        "Imports point down",
        "algorithms/fedpmt.py",
        "fedjax_het.simulation",
    ),
    "the report imports the engine": (
        "Imports point down",
        "report/__init__.py",
        "fedjax_het.engine",
    ),
    "a method imports another": (
        "Methods are independent",
        "algorithms/feddrop.py",
        "fedjax_het.algorithms.fedpmt",
    ),
    "a program names a method": (
        "Outside its room",
        "config.py",
        "fedjax_het.algorithms.fedopt",
    ),
    "two modules of a room import each other": (
        "No import runs in a circle",
        "common/errors.py",
        "fedjax_het.common.options",
    ),
    "the package imports a launch program": (
        "The package imports nothing that stands around it",
        "problem.py",
        "launch.train",
    ),
    "the package imports the tests": (
        "The package imports nothing that stands around it",
        "data/load.py",
        "tests.problems",
    ),
}


@pytest.fixture
def copy(tmp_path):
    """A copy of the package and of its contracts, where imports can be planted."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(root):
    """The exit status and the lines of `lint-imports` over a checkout."""
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache", "--no-logo"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def broken(lines):
    """The titles of the contracts that were broken."""
    return [line.partition(" BROKEN")[0] for line in lines if " BROKEN" in line]


@pytest.mark.parametrize("case", FORBIDDEN)
def test_lint_refuses_a_planted_import(copy, case):
    contract, file, imported = FORBIDDEN[case]
    with (copy / PACKAGE.name / file).open("a") as source:
        source.write(f"\nimport {imported}\n")
    status, lines = lint_imports(copy)
    assert status == 1
    assert any(title.startswith(contract) for title in broken(lines)), lines
    importer = Path(file).parent.name if file.endswith("__init__.py") else Path(file).stem
    assert any(" -> " in line and f".{importer} " in line for line in lines), lines


@pytest.mark.parametrize(
    ("contract", "file"),
    [("Imports point down", "attic.py"), ("Methods are independent", "algorithms/fednew.py")],
)
def test_lint_asks_where_a_new_room_or_method_belongs(copy, contract, file):
    (copy / PACKAGE.name / file).write_text('"""New."""\n')
    status, lines = lint_imports(copy)
    assert status == 1
    (title,) = broken(lines)
    assert title.startswith(contract)
    assert any(Path(file).stem in line for line in lines)


def test_the_picture_of_the_rooms_is_current():
    rooms = runpy.run_path(str(ROOT / "docs" / "rooms.py"))
    page = rooms["PAGE"].read_text()
    assert page == rooms["insert"](page, rooms["picture"]()), "run `make rooms`"


def test_no_module_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in MODULES}
    long = {str(path.relative_to(ROOT)): n for path, n in lengths.items() if n > 350}
    assert not long


def test_modules_are_short_on_the_whole():
    lengths = [len(path.read_text().splitlines()) for path in MODULES if path.stem != "__init__"]
    assert statistics.median(lengths) <= 180


def test_a_method_has_few_files():
    rooms = [path.parent for path in PACKAGE.glob("algorithms/*/__init__.py")]
    files = {room.name: len(list(room.rglob("[!_]*.py"))) for room in rooms}  # not __init__
    assert {name: n for name, n in files.items() if n > 8} == {}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=str)
def test_a_program_defines_its_flags_only_when_it_runs(path):
    # All programs share one set of flags, and a process may import several.
    for line in path.read_text().splitlines():
        assert not re.match(r"\S.*flags\.DEFINE_", line), line
