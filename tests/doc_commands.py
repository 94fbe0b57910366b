"""Commands of the documentation: parsed by their programs, and started up to the problem.

What takes long is replaced by `Started`, which says that the program came so far.
"""

import argparse
import contextlib
import os
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from pathlib import Path
from unittest import mock

import absl.app
import program_flags
from absl import flags

from fedjax_het import algorithms, cli, experiment, sweeps
from fedjax_het.common.errors import InputError
from fedjax_het.config import methods, named
from fedjax_het.fleet import profile
from fedjax_het.report import serving
from fedjax_het.runtime import workers

ROOT = Path(__file__).parents[1]


class Started(Exception):  # noqa: N818 (good news)
    """A program has understood its flags and made its problem."""


def run_command(line, namespace):
    """Runs one line of a shell block; what it cannot run is an error."""
    words = shlex.split(line, comments=True)
    while words and (re.match(r"\w+=", words[0]) or words[0] in ("nice", "PYTHONPATH=.")):
        words.pop(0)
    match words:
        case []:
            return
        case ["fedjax-het", command, *given]:
            _program(command, given)
        case ["python", "-m", module, *given] if module.startswith("launch."):
            _program(module.partition(".")[2], given)
        case ["python", "-m", module, *given]:
            _module(module, given)
        case ["python", "-c", code]:
            with warnings.catch_warnings():
                # One line has no room to close its files.
                warnings.simplefilter("ignore", ResourceWarning)
                exec(code, namespace)
        case ["pip", "install", what]:
            extras = re.fullmatch(r"fedjax-het(?:\[([\w,]+)\])?", what)[1]
            known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set((extras or "").split(",")) <= {"", *known["optional-dependencies"]}, line
        case ["make", *targets]:
            known = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
            assert set(targets) <= set(known), line
        case _:
            raise ValueError(f"no test runs {line!r}")


@contextlib.contextmanager
def _arguments(*given):
    """The command line of a program, whose flags are forgotten afterwards."""
    with mock.patch.object(sys, "argv", list(given)), program_flags.of_one_program():
        yield


def _made(config):
    """Makes problem and methods of a configuration, if its data are here."""
    settings = experiment.plain(config)
    try:
        problem = experiment.build_problem(settings)
    except InputError as error:
        if not re.search("no file|no data directory|no saved model|pip install", str(error)):
            raise
        raise Started from error
    for method in methods(settings).values():
        name, options = named({"algorithm": method}, "algorithm")
        algorithms.build(name, problem, **options)
    raise Started


def _stop(*given, **options):
    raise Started


def _program(command, given):
    assert command in cli.COMMANDS, command
    stops = [
        (experiment, "train", lambda config, *rest, **options: _made(config)),
        (experiment, "compare", lambda configs, *rest: _made(configs[0])),
        (experiment, "plan", lambda config, out: _made(config)),
        (experiment, "report", _stop),
        (sweeps, "sweep", lambda config, workdir: _made(config)),
        (profile, "measure", _stop),
        # The machine of a reader may have more cores.
        (workers, "require_cores", lambda count: None),
        (workers, "run", lambda count, workdir: None),
        (serving, "Server", _stop),
        (os, "nice", lambda more: None),
    ]
    if command == "watch":
        # The job that is watched has begun.
        Path(given[0]).mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        for module, name, function in stops:
            stack.enter_context(mock.patch.object(module, name, function))
        stack.enter_context(_arguments("fedjax-het", command, *given))
        try:
            cli.main()
        except Started:
            return
        except SystemExit as end:
            if end.code:
                raise ValueError(f"{command} refuses {given}") from end


def _module(module, given):
    """Runs a program of this repository until it has read its flags."""
    path = ROOT / f"{module.replace('.', '/')}.py"
    read = argparse.ArgumentParser.parse_args

    def parse_args(self, *more):
        read(self, *more)
        raise Started

    def run(main, argv=None, flags_parser=None):
        flags.FLAGS(sys.argv)
        raise Started

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        mock.patch.object(absl.app, "run", run),
        _arguments(str(path), *given),
        contextlib.suppress(Started),
    ):
        runpy.run_path(str(path), run_name="__main__")
        raise AssertionError(f"{module} reads no flags")
