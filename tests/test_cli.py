"""The command line: dispatch, overrides, errors of one line, and the four programs."""

import json
import os
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from absl import flags
from absl import logging as absl_logging

from fedjax_het import __version__, cli, config, experiment

# ml_collections loads configuration files by a method that Python is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.*load_module:DeprecationWarning")

ROOT = Path(__file__).parents[1]
CONFIG = """
from ml_collections import ConfigDict

def get_config():
    return ConfigDict({
        "data": {
            "source": "digits", "num_clients": 4,
            "partition": {"name": "dirichlet", "alpha": 0.5},
        },
        "model": {"name": "mlp", "hidden": (8,)},
        "fleet": {"name": "speed_groups"},
        "algorithm": {"name": "fedavg", "learning_rate": 0.1},
        "run": {"rounds": 1},
        "compare": {"methods": {"A": {}, "B": {"name": "fedpmt"}}, "seeds": (0,)},
    })
"""


@pytest.fixture
def tiny(tmp_path):
    """Path of a small configuration."""
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def fedjax_het(monkeypatch, capsys):
    """Runs `fedjax-het ARGS` in this process; gives the exit status, output and errors."""
    before, verbosity = set(flags.FLAGS), absl_logging.get_verbosity()

    def forget():
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        flags.FLAGS.unparse_flags()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fedjax-het", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        forget()
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    yield run
    forget()
    absl_logging.set_verbosity(verbosity)


@pytest.fixture
def resolved(fedjax_het, tiny, tmp_path, monkeypatch):
    """The configuration that `train` would run, given overrides."""

    def of(*overrides):
        seen = []

        def train(settings, workdir, announce):
            problem = experiment.build_problem(settings)
            seen.append(config.resolve({**settings, "compare": {}}, problem))
            sys.exit(0)

        monkeypatch.setattr(experiment, "train", train)
        arguments = (f"--config.{override}" for override in overrides)
        fedjax_het("train", f"--config={tiny}", f"--workdir={tmp_path}", *arguments)
        return seen[0]

    return of


def test_the_installed_command_is_this_main():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fedjax-het": "fedjax_het.cli:main"}


def test_help_lists_the_commands(fedjax_het):
    status, out, _ = fedjax_het("--help")
    assert status == 0
    assert {"train:", "compare:", "sweep:", "profile:", "report:"} <= set(out.split())


def test_the_version_is_the_package_s(fedjax_het):
    assert fedjax_het("--version") == (0, f"fedjax-het {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "command 'trian': must be one of compare, .*; did you mean 'train'"),
        (["train", "--config=TINY"], "flag --workdir=None: .* must have a value"),
        (["train", "--workdir=x"], "flag --config=None: .* must have a value"),
        (["train", "--config=TINY", "--wrkdir=x"], "'wrkdir'. Did you mean: workdir"),
        (["train", "--config=TINY", "--workdir=x", "y"], "argument 'y': is not a flag"),
        (["train", "--config=no.py", "--workdir=x"], "--config=no.py: is not a file; name one"),
        (["train", "--config=no.py", "--workdir=x", "--config.run.rounds=2"], "no.py"),
        (["compare", "--config=TINY", "--workdir=x", "--seeds=a,1"], "--seeds=a,1: must be whole"),
        (["compare", "--config=TINY", "--workdir=x", "--more=no.py"], "'no.py': is not a file"),
        (["compare", "--config=TINY", "--workdir=x", "--workers=0"], "--workers=0: .* positive"),
        (["compare", "--config=TINY", "--workdir=x", "--workers=9999"], "workers = 9999: must be"),
        (["sweep", "--config=TINY"], "flag --workdir=None: .* must have a value"),
        (["profile", "--config=TINY", "--batch=0"], "--batch=0: .* positive"),
        (["profile", "--config=TINY", "--nomeasure", "--out=x"], "--out=x: needs a measurement"),
        (["profile", "--config=TINY", "--out=no/x"], "--out=no/x: must be in a directory"),
        (["plan", "--config=TINY"], "algorithm 'fedavg': plans no rounds ahead"),
        (["report", "--workdir=no"], "no: holds neither a run .* nor a comparison"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_ends_with_one_line(fedjax_het, tiny, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = fedjax_het(*(str(a).replace("TINY", str(tiny)) for a in arguments))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert re.search(message, line), line
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.py"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.bogus=1", "option of fedavg 'bogus': must be one of batch_size"),
        ("algorithm.momentum=high", "'momentum' = 'high': must be a number; e.g. momentum = 0.0"),
        ("run.rounds=many", "--config.run.rounds=many"),
        ("run.rounds=0", "rounds = 0: must be a whole number of at least 1"),
        ("run.tensorboard=maybe", "'tensorboard' = 'maybe': must be True or False"),
        ("modle.name=mlp", "override of --config: 'modle'"),
        ("modle=3", "config section 'modle': must be one of"),
        ("run=3", "--config.run=3"),
        ("data.source=digit", "data set 'digit'"),
    ],
)
def test_a_bad_override_is_named(fedjax_het, tiny, tmp_path, override, message):
    workdir = tmp_path / "out"
    status, out, err = fedjax_het(
        "train", f"--config={tiny}", f"--workdir={workdir}", f"--config.{override}"
    )
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not workdir.exists()


def test_overrides_keep_the_types_of_options(resolved):
    settings = resolved(
        "run.rounds=2",  # in the file: a whole number
        "algorithm.learning_rate=1e-3",
        "model.hidden=(4, 3)",
        "run.seed=7",
        "algorithm.momentum=0.9",  # not in the file: read as literals
        "algorithm.weighting=uniform",
        "algorithm.clients_per_round=3",
        "data.partition.balanced=False",
        "run.targets=(0.5, 0.6)",
        "run.chunk=None",
    )
    assert (settings["run"]["rounds"], settings["run"]["seed"]) == (2, 7)
    assert settings["run"]["targets"] == [0.5, 0.6]
    assert settings["run"]["chunk"] is None
    assert settings["model"]["hidden"] == [4, 3]
    algorithm = settings["algorithm"]
    assert (algorithm["learning_rate"], algorithm["momentum"]) == (1e-3, 0.9)
    assert (algorithm["weighting"], algorithm["clients_per_round"]) == ("uniform", 3)
    assert settings["data"]["partition"]["balanced"] is False


def test_boolean_overrides_need_no_value(resolved):
    assert resolved("data.partition.balanced")["data"]["partition"]["balanced"] is True
    lower = resolved("data.partition.balanced=false")
    assert lower["data"]["partition"]["balanced"] is False


def test_text_that_looks_like_a_number_stays_text(tmp_path):
    settings = config.plain({"data": {"source": "1e3"}, "run": {"name": "007", "targets": (1, 2)}})
    assert settings == {"data": {"source": "1e3"}, "run": {"name": "007", "targets": [1, 2]}}


def test_profile_prints_counted_beside_measured(fedjax_het, tiny, tmp_path):
    out = tmp_path / "profile.json"
    status, text, _ = fedjax_het("profile", f"--config={tiny}", "--batch=4", f"--out={out}")
    assert status == 0
    head, first, second, foot = text.splitlines()
    assert {"block", "params", "forward", "XLA", "measured"} <= set(head.split())
    assert (first.split()[:2], second.split()[:2]) == (["fc1", "520"], ["fc2", "90"])
    assert "full step 2,528 FLOPs/sample" in foot
    assert json.loads(out.read_text())["batch"] == 4


def test_plan_prints_deadlines_and_batches(fedjax_het, tiny):
    planned = ("name=salf", "rounds=3", "total_s=6")
    status, out, _ = fedjax_het(
        "plan",
        f"--config={tiny}",
        *(f"--config.algorithm.{option}" for option in planned),
        "--config.fleet.name=adel",
        "--config.fleet.stages=2",
    )
    assert status == 0
    for words in ("salf: rounds = 3", "deadline (s)", "step size", "batch (samples)", "power"):
        assert words in out
    for words in ("communication (s)", "chance that all miss layer", "chance to miss layer"):
        assert words in out


def test_compare_hands_over_files_and_seeds(fedjax_het, tiny, tmp_path, monkeypatch):
    def compare(configs, workdir, seeds):
        assert [settings["data"]["source"] for settings in map(config.plain, configs)] == [
            "digits",
            "digits",
        ]
        assert (workdir, seeds) == (str(tmp_path), [4, 5])
        sys.exit(7)

    monkeypatch.setattr(experiment, "compare", compare)
    arguments = (f"--config={tiny}", f"--more={tiny}", "--seeds=4,5", f"--workdir={tmp_path}")
    assert fedjax_het("compare", *arguments)[0] == 7


def test_sweep_hands_over_and_compares_what_it_tuned(fedjax_het, tiny, tmp_path, monkeypatch):
    class Found:
        tuned = "tuned"

        def table(self):
            return "the table"

    def found(settings, workdir):
        assert (settings["data"]["source"], workdir) == ("digits", str(tmp_path))
        return Found()

    def compare(configs, place):
        assert (configs, place) == (["tuned"], tmp_path / "comparison")
        sys.exit(7)

    monkeypatch.setattr("fedjax_het.sweeps.sweep", found)
    monkeypatch.setattr(experiment, "compare", compare)
    arguments = ("sweep", f"--config={tiny}", f"--workdir={tmp_path}")
    assert fedjax_het(*arguments)[:2] == (0, "\nthe table\n\n")
    assert fedjax_het(*arguments, "--then_compare")[0] == 7


def test_a_sweep_without_a_section_is_one_line(fedjax_het, tiny, tmp_path):
    pytest.importorskip("optuna")
    status, _, err = fedjax_het("sweep", f"--config={tiny}", f"--workdir={tmp_path}/out")
    assert (status, err) == (
        2,
        "error: config.sweep is missing: must be given; see the files in configs/\n",
    )


@pytest.mark.parametrize("program", ["train", "compare", "sweep", "profile", "report"])
def test_launch_programs_are_the_commands(program):
    assert runpy.run_path(str(ROOT / "launch" / f"{program}.py"))[program] is cli.COMMANDS[program]


def launch(program, *arguments):
    """Runs `python -m launch.PROGRAM` as a user would."""
    environment = {k: v for k, v in os.environ.items() if k != "FEDJAX_HET_DATA"}
    return subprocess.run(
        [sys.executable, "-m", f"launch.{program}", *map(str, arguments)],
        cwd=ROOT,
        env={**environment, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_train_and_report_as_programs(tiny, tmp_path):
    run = tmp_path / "run"
    momentum = "--config.algorithm.momentum=0.9"
    done = launch("train", f"--config={tiny}", f"--workdir={run}", momentum)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout[: done.stdout.index("\n}\n") + 3])
    assert printed["algorithm"]["momentum"] == 0.9
    assert json.loads((run / "config.json").read_text())["algorithm"] == printed["algorithm"]
    assert f"report: {run}/report.html" in done.stdout
    (run / "report.html").unlink()
    done = launch("report", f"--workdir={run}")
    assert (done.returncode, done.stdout) == (0, f"{run}/report.html\n"), done.stderr
    assert (run / "report.html").exists()
