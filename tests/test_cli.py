"""The command line: dispatch, help, overrides, errors of one line, and the programs."""

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

from fedjax_het import __version__, algorithms, cli, config, experiment, models, objectives
from fedjax_het.data.partition import PARTITIONERS
from fedjax_het.data.sources import SOURCES
from fedjax_het.fleet import FLEETS
from fedjax_het.runtime import processes

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


def test_devices_of_a_run_divide_the_cpu(resolved, monkeypatch):
    asked = []
    monkeypatch.setattr(processes, "divide_cpu", asked.append)
    assert resolved("run.devices=2")["run"]["devices"] == 2
    assert asked == [2]
    resolved()
    assert asked == [2]


def test_the_installed_command_is_this_main():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"fedjax-het": "fedjax_het.cli:main"}


def test_help_lists_the_commands(fedjax_het):
    status, out, _ = fedjax_het("--help")
    assert status == 0
    for name, command in cli.COMMANDS.items():
        assert re.search(rf"^  fedjax-het {name} +{re.escape(command.about)}$", out, re.M)
    assert fedjax_het() == (0, out, "")


@pytest.mark.parametrize("name", sorted(cli.COMMANDS))
def test_help_of_a_command_lists_its_flags(fedjax_het, name):
    command, own = cli.COMMANDS[name], flags.FlagValues()
    command.define(own)
    status, out, err = fedjax_het(name, "--help")
    assert (status, err) == (0, "")
    assert max(map(len, out.split("\n"))) <= 104
    told = " ".join(out.split())
    for flag in (own[flag] for flag in own):
        assert re.search(rf"^  --(\[no\])?{flag.name}[= ]", out, re.M)
        assert flag.help in told
    assert own or "--" not in out
    # What the examples say is right: their flags are known, and no required one is missing.
    assert command.examples
    for example in command.examples:
        assert f"\n  {example}" in out
        program, said, *arguments = example.split()
        assert (program, said) == ("fedjax-het", name)
        given = [word for word in arguments if not word.startswith("--config.")]
        words = own([example, *given])[1:]
        assert len(words) == len(command.arguments)


def test_help_says_what_is_required_and_what_is_usual(fedjax_het):
    _, out, _ = fedjax_het("profile", "--help")
    assert "usage: fedjax-het profile --config=FILE [--FLAG=VALUE ...]\n" in out
    assert re.search(r"--config=FILE[^-]*--config.section.option=value. \(required\)", out)
    assert "Samples per measured step. (default: 32)" in out
    assert re.search(r"--\[no\]measure .* \(default: true\)", out)
    _, out, _ = fedjax_het("list", "-h")
    assert "usage: fedjax-het list datasets|fleets|methods|models|objectives|partitions\n" in out


def test_help_and_mistakes_need_no_jax():
    asked = ["", "--help", "--version", "train --help", "compare --version", "trian", "list fleet"]
    asked += ["init no.csv --out=no.txt", "train --wrkdir=x"]
    program = f"""
import sys
from absl import flags
from fedjax_het import cli
for line in {asked!r}:
    sys.argv = ["fedjax-het", *line.split()]
    try:
        cli.main()
    except SystemExit as end:
        print("status", end.code)
    for name in ("label", "client", "split", "out"):
        if name in flags.FLAGS:
            delattr(flags.FLAGS, name)
assert not {{"jax", "scipy", "matplotlib"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    statuses = re.findall(r"^status (\d)$", done.stdout, re.M)
    assert statuses == ["0", "0", "0", "0", "0", "2", "2", "2", "2"]
    assert len(done.stderr.splitlines()) == 4, done.stderr


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
        (["watch"], "argument WORKDIR is missing: must be given; try fedjax-het watch runs/demo"),
        (["watch", "no"], "workdir = 'no': is not a directory; name the one that train, compare"),
        (["watch", ".", "--host=0.0.0.0"], "--host=0.0.0.0: must be an address of the loopback"),
        (["watch", ".", "--port=70000"], "--port=70000: .*65535"),
        (["list"], r"argument datasets\|fleets.* is missing: .*; try fedjax-het list methods"),
        (["list", "fleet"], "list 'fleet': must be one of datasets, .*; did you mean 'fleets'"),
        (["list", "models", "fleets"], "argument 'fleets': is not a flag"),
        (["init"], "argument FILE is missing: must be given; try fedjax-het init hospitals.csv"),
        (["init", "TINY"], "tiny.py: is there already; name another file with --out"),
        (["init", "no.csv"], "no.csv: does not exist; give a CSV file .* or an .npz file"),
        (["init", "no.txt"], "'no.txt': must end in .csv or .npz"),
        (["init", "no.csv", "--out=no.txt"], "--out=no.txt: must end in .py"),
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
        ("run.sinks=('tensorbord',)", "sink 'tensorbord': must be one of"),
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


REGISTRIES = {
    "datasets": SOURCES,
    "fleets": FLEETS,
    "methods": algorithms.ALGORITHMS,
    "models": models.MODELS,
    "objectives": objectives.OBJECTIVES,
    "partitions": PARTITIONERS,
}


@pytest.mark.parametrize("what", sorted(REGISTRIES))
def test_list_has_a_line_for_every_name(fedjax_het, what):
    status, out, err = fedjax_het("list", what)
    assert (status, err) == (0, "")
    told = dict(re.split("  +", line, maxsplit=1) for line in out.splitlines())
    assert [*told] == sorted(REGISTRIES[what])
    for name, line in told.items():
        assert line == REGISTRIES[what][name].__doc__.split("\n")[0]


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
