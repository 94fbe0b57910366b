"""What is handed out: the wheel holds the package, whole, and nothing else."""

import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

import fedjax_het

ROOT = Path(__file__).parents[1]
LEFT_BEHIND = (".*", "__pycache__", "*.egg-info", "build", "dist", "runs")

pytestmark = pytest.mark.slow  # the build fetches its own setuptools


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, open; built from a copy, for a build leaves files in the checkout."""
    checkout = tmp_path_factory.mktemp("wheel") / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--wheel-dir", "out", "."], cwd=checkout, check=True)
    (path,) = (checkout / "out").iterdir()
    with zipfile.ZipFile(path) as opened:
        yield opened


def test_the_wheel_is_the_package(wheel):
    about = f"fedjax_het-{fedjax_het.__version__}.dist-info/"
    packed = {name for name in wheel.namelist() if not name.startswith(about)}
    held = [*(ROOT / "fedjax_het").rglob("*.py"), *(ROOT / "fedjax_het/report/assets").iterdir()]
    assert packed == {path.relative_to(ROOT).as_posix() for path in held}


def test_the_wheel_says_what_it_is(wheel):
    about = f"fedjax_het-{fedjax_het.__version__}.dist-info"
    metadata = message_from_bytes(wheel.read(f"{about}/METADATA"))
    assert metadata["Name"] == "fedjax-het"
    assert metadata["Version"] == fedjax_het.__version__
    for path in ("LICENSE", "fedjax_het/report/assets/uPlot.LICENSE"):
        assert wheel.read(f"{about}/licenses/{path}") == (ROOT / path).read_bytes()
    commands = wheel.read(f"{about}/entry_points.txt").decode().split("\n")
    assert "fedjax-het = fedjax_het.cli:main" in commands
